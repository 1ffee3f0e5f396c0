//! What must not be found anywhere, and the search for it.

use std::fmt::Write as _;

/// The secret of every app. In the shape of a real one, since some things are let through by their shape.
pub const SECRET: &str = "5ec2e7ca9a275ec2e7ca9a275ec2e7ca";
/// Every access token begins so.
pub const TOKEN: &str = "71_tokenCANARY-token_CANARYtoken";
/// Every openid begins so.
pub const OPENID: &str = "oOpenidCANARYopenid-0_";
/// Every form id begins so: hex digits, which are stored as bytes.
pub const FORM_ID: &str = "f0e1d2ca9a2700f0e1d2ca9a";
/// Every prepay id begins so.
pub const PREPAY_ID: &str = "wx20prepayCANARYprepay";
/// The key of every grant, and every request id, begins so.
pub const REQUEST_ID: &str = "requestCANARYrequest-";
/// What messages say.
pub const BODY: &str = "textCANARYtext";
/// What WeChat signs with.
pub const CALLBACK_TOKEN: &str = "callbackCANARYtoken";
/// The password of Redis.
pub const PASSWORD: &str = "redisCANARYpassword";
/// The tokens of all callers begin so; as long as real ones, since what is longer than a name is not shown.
pub const BEARER: &str = "bearerCANARYbearerCANARYbearerCANARYbearerCANARY";
/// What the services show to the collector of traces.
pub const EXPORTER: &str = "exporterCANARYexporter";

const ALL: [(&str, &str); 11] = [
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
    ("what is shown to the collector of traces", EXPORTER),
];

pub fn openid(number: usize) -> String {
    format!("{OPENID}{number:06}")
}

pub fn form_id(number: usize) -> String {
    format!("{FORM_ID}{number:08x}")
}

/// What is found of all of them, and of those `made` by the test itself, with what stands around it: in any of the
/// shapes that printing may give them.
pub fn found(haystack: &[u8], made: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    // A character for each byte: the search in strings is the fast one.
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

/// Plain; as bytes in a list, or in hex; and for hex digits, what they are the digits of, in all these ways again.
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
fn a_secret_is_found_in_whatever_shape_it_is_printed() {
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
