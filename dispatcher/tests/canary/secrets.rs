//! The secrets of the test, and the search for them.

use std::fmt::Write as _;

/// The secret of every app. It has the format of a real one, since redaction decides on some values by their format.
pub const SECRET: &str = "5ec2e7ca9a275ec2e7ca9a275ec2e7ca";
/// Prefix of every access token.
pub const TOKEN: &str = "71_tokenCANARY-token_CANARYtoken";
/// Prefix of every openid.
pub const OPENID: &str = "oOpenidCANARYopenid-0_";
/// Prefix of every form id: hex digits, which are stored as bytes.
pub const FORM_ID: &str = "f0e1d2ca9a2700f0e1d2ca9a";
/// Prefix of every prepay id.
pub const PREPAY_ID: &str = "wx20prepayCANARYprepay";
/// Prefix of every grant key and every request id.
pub const REQUEST_ID: &str = "requestCANARYrequest-";
/// Text in the messages.
pub const BODY: &str = "textCANARYtext";
/// The token with which WeChat signs callbacks.
pub const CALLBACK_TOKEN: &str = "callbackCANARYtoken";
/// The password of Redis.
pub const PASSWORD: &str = "redisCANARYpassword";
/// Prefix of the tokens of all callers. It is as long as a real token, since a value that is longer than a name is not
/// logged.
pub const BEARER: &str = "bearerCANARYbearerCANARYbearerCANARYbearerCANARY";
/// The credential that the services send to the collector of traces.
pub const EXPORTER: &str = "exporterCANARYexporter";

/// The key of the token servers, in their URLs and in their headers.
pub const SERVER_KEY: &str = "serverCANARYkey";
/// The password of the forward proxies.
pub const PROXY_PASSWORD: &str = "proxyCANARYpassword";
/// `user` and the password, as they are sent to a proxy.
const PROXY_HEADER: &str = "dXNlcjpwcm94eUNBTkFSWXBhc3N3b3Jk";

const ALL: [(&str, &str); 14] = [
    ("the secret of an app", SECRET),
    ("an access token", TOKEN),
    ("an openid", OPENID),
    ("a form id", FORM_ID),
    ("a prepay id", PREPAY_ID),
    ("a request id", REQUEST_ID),
    ("a message", BODY),
    ("a callback token", CALLBACK_TOKEN),
    ("the password of Redis", PASSWORD),
    ("a caller's token", BEARER),
    ("the credential for the collector of traces", EXPORTER),
    ("the key of a token server", SERVER_KEY),
    ("the password of a proxy", PROXY_PASSWORD),
    ("the header for a proxy", PROXY_HEADER),
];

pub fn openid(number: usize) -> String {
    format!("{OPENID}{number:06}")
}

pub fn form_id(number: usize) -> String {
    format!("{FORM_ID}{number:08x}")
}

/// Finds all constant secrets and those in `made`, in each form in which they could be printed. Returns the kind of
/// each secret that was found, with the surrounding text.
pub fn found(haystack: &[u8], made: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    // One character per byte, because the search in strings is faster.
    let text = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
    let (mut found, searched) = (Vec::new(), text(haystack));
    let made = made.iter().map(|(what, canary)| (*what, canary.as_str()));
    for (what, canary) in ALL.into_iter().chain(made) {
        if let Some(at) = shapes(canary).iter().find_map(|shape| searched.find(&text(shape))) {
            let before = searched[..at].chars().count();
            let around = &haystack[before.saturating_sub(200)..haystack.len().min(before + 80)];
            found.push((what, around.escape_ascii().to_string()));
        }
    }
    found
}

/// The forms of a secret: plain, escaped, as a list of bytes, and as hex. A secret of hex digits is also decoded, and
/// its bytes take the same forms.
fn shapes(canary: &str) -> Vec<Vec<u8>> {
    let mut kinds = vec![canary.as_bytes().to_vec()];
    let digits: Option<Vec<u8>> =
        canary.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    kinds.extend(digits);
    let mut shapes = Vec::new();
    for bytes in kinds {
        let list = bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        shapes.extend([list.into_bytes(), hex.into_bytes(), bytes.escape_ascii().to_string().into_bytes(), bytes]);
    }
    shapes
}

#[test]
fn a_secret_is_found_in_every_form_in_which_it_can_be_printed() {
    let id = form_id(7);
    let packed: Vec<u8> = (0..id.len() / 2).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap()).collect();
    for printed in [
        format!("{id:?}"),
        format!("{:?}", id.as_bytes()),
        format!("{packed:?}"),
        format!("{}", packed.escape_ascii()),
        format!("{{\"a\":\"{SECRET}\"}}"),
        format!("x{TOKEN}&y"),
    ] {
        assert_eq!(found(printed.as_bytes(), &[]).len(), 1, "{printed}");
    }
    assert_eq!(found(&packed, &[]).len(), 1);
    let made = [("a key", "MIGHAgEAMBMG".to_owned())];
    assert_eq!(found(b"key: MIGHAgEAMBMG...", &made), [("a key", "key: MIGHAgEAMBMG...".to_owned())]);
    assert!(found(b"nothing to see", &made).is_empty());
}
