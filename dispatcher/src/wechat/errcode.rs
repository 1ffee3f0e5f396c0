//! The meaning of WeChat's codes. No other module knows these codes. WeChat changes the texts of its errors, so only
//! codes are matched.

use std::net::IpAddr;

use domain::Kind;

/// What an errcode means, and so how a correct sender reacts. The scope of a meaning is what it condemns: nothing for
/// now, the token, the credential, the user, the message, the template, a source of credentials, a message generation,
/// the app, or the way to WeChat. What is wider than the message never ends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Accepted; one use is spent.
    Delivered,
    /// Busy for the moment: back off and try the same credential again.
    Busy,
    /// Another call for the same user is in progress: try again with jitter, one send per user at a time.
    OneAtATime,
    /// The user gets messages too often for now: the message is not sent, the credential is not spent.
    UserBusy,
    /// The app sends too fast: slow it down, and try the same credential again.
    RateReached,
    /// The access token is invalid, expired, or not the latest: drop it if it is still the stored one, fetch a new one,
    /// and try again.
    TokenInvalid,
    /// The call had no access token. This is a bug of this program. Handled like [`Meaning::TokenInvalid`], and logged
    /// as an error.
    TokenMissing,
    /// The credential is invalid, expired, or another user's: discard it and take the next. WeChat may not know a young
    /// prepay id yet.
    CredentialWrong,
    /// The credential is used up. After an unanswered attempt with the same form id, this means that the message was
    /// delivered.
    CredentialUsed,
    /// The credential is blocked: discard it and take the next.
    CredentialBlocked,
    /// The user refuses messages of this template. The user's grants of it are revoked.
    RefusedByUser,
    /// The user does not follow the account, or refuses its messages: the message fails, the credential is not spent.
    /// Other kinds of accounts and gateways answer this.
    Unfollowed,
    /// The openid is not a user of this app: the message fails, the credential is not spent.
    UserWrong,
    /// Something in the message is wrong: it fails, the credential is not spent.
    MessageWrong,
    /// The user got the same message within the last 60 seconds. After an unanswered attempt, this means that the
    /// message was delivered. Otherwise it fails, the credential is not spent.
    Duplicate,
    /// WeChat reviews the message, and may send it later by itself. A second send would be a second message.
    InReview,
    /// The template is banned. Other templates of the app are not affected.
    TemplateBanned,
    /// The app may not use one source of credentials for now.
    SourceBarred(Kind),
    /// The app sends no more messages with this API until midnight of UTC+8. See [`is_clearable`].
    QuotaReached,
    /// The app is blocked for some time.
    AppBlocked,
    /// The app may not use this API: no permission, or banned. The API of the other message generation is not affected.
    ApiForbidden,
    /// The app may not do anything: WeChat restricted it, or does not know it.
    AppForbidden,
    /// The address that the call came from is not on the app's list. The errmsg names it: see [`seen_address`].
    AddressRefused,
    /// The way to WeChat is wrong: another URL or method, or the body was lost.
    Misconfigured,
    /// WeChat no longer serves this message generation for this app.
    Retired,
    Unknown,
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub errcode: i32,
    pub meaning: Meaning,
    /// A description for people, in our own words.
    pub sentence: &'static str,
}

const fn row(errcode: i32, meaning: Meaning, sentence: &'static str) -> Row {
    Row { errcode, meaning, sentence }
}

/// A fault in the way to WeChat, with what the operator can do.
macro_rules! check_way {
    ($fault:literal) => {
        concat!($fault, ": check that base_url leads to WeChat, or to a gateway with the same API, and what is between")
    };
}

const NOT_AUTHORIZED: &str = "the app is not authorized to the third-party platform that calls, or not for this API";

pub const NOT_ON_IP_LIST: &str =
    "the dispatcher's IP address, as WeChat sees it, is not on the app's IP list: add it in the WeChat console";

/// All known codes, in ascending order.
pub const TABLE: &[Row] = &[
    row(-1, Meaning::Busy, "WeChat is busy"),
    row(0, Meaning::Delivered, "delivered"),
    row(20001, Meaning::Busy, "WeChat is busy"),
    row(40001, Meaning::TokenInvalid, "the access token is invalid or not the latest"),
    row(40003, Meaning::UserWrong, "the openid is not a user of this app"),
    row(40013, Meaning::AppForbidden, "the app id is wrong"),
    row(40014, Meaning::TokenInvalid, "the access token is invalid"),
    row(40033, Meaning::MessageWrong, "the message has characters that WeChat does not accept"),
    row(40035, Meaning::MessageWrong, "a parameter of the message is not valid"),
    row(40036, Meaning::MessageWrong, "the length of the template id is wrong"),
    row(40037, Meaning::MessageWrong, "the template id is wrong"),
    row(40066, Meaning::Misconfigured, check_way!("WeChat does not know this URL")),
    row(40097, Meaning::MessageWrong, "an argument of the message is not valid"),
    row(40164, Meaning::AddressRefused, NOT_ON_IP_LIST),
    row(40241, Meaning::Duplicate, "the user got the same message within the last 60 seconds"),
    row(40249, Meaning::MessageWrong, "the content of the message is not permitted"),
    row(40250, Meaning::MessageWrong, "the content of the message is not permitted"),
    row(40251, Meaning::QuotaReached, "the app sends no more messages today, because of violations"),
    row(40252, Meaning::InReview, "WeChat reviews the message, and sends it later by itself"),
    row(41001, Meaning::TokenMissing, "the access token is missing"),
    row(41002, Meaning::Misconfigured, check_way!("the app id is missing in the call")),
    row(41018, Meaning::ApiForbidden, NOT_AUTHORIZED),
    row(41028, Meaning::CredentialWrong, "the form id is wrong, expired, or another user's"),
    row(41029, Meaning::CredentialUsed, "the form id is used up"),
    row(41030, Meaning::MessageWrong, "the page is wrong"),
    row(41031, Meaning::CredentialBlocked, "the form id is blocked"),
    row(41032, Meaning::SourceBarred(Kind::FormId), "the app's form ids are barred as a punishment"),
    row(41034, Meaning::SourceBarred(Kind::FormId), "the app's form ids are barred as a punishment"),
    row(41035, Meaning::SourceBarred(Kind::PrepayId), "the app's prepay ids are barred as a punishment"),
    row(42001, Meaning::TokenInvalid, "the access token is expired"),
    row(43001, Meaning::Misconfigured, check_way!("WeChat got the call with another HTTP method")),
    row(43002, Meaning::Misconfigured, check_way!("WeChat got the call with another HTTP method")),
    row(43003, Meaning::Misconfigured, check_way!("WeChat got the call without HTTPS")),
    row(43004, Meaning::Unfollowed, "the user does not follow the account"),
    row(43005, Meaning::Unfollowed, "the user is no friend of the account"),
    row(43019, Meaning::Unfollowed, "the user is on the account's blacklist"),
    row(43101, Meaning::RefusedByUser, "the user refuses these messages, or has no grant left"),
    row(43104, Meaning::ApiForbidden, "the app has no permission to send"),
    row(43107, Meaning::ApiForbidden, "the app's ability to send subscription messages is banned"),
    row(43108, Meaning::OneAtATime, "another call for this user is in progress"),
    row(43116, Meaning::TemplateBanned, "the template is banned"),
    row(43117, Meaning::UserBusy, "the user gets messages too often"),
    row(44002, Meaning::Misconfigured, check_way!("WeChat got the call without its body")),
    row(45002, Meaning::MessageWrong, "the message is too long"),
    row(45009, Meaning::QuotaReached, "the app's daily quota is used up"),
    row(45011, Meaning::RateReached, "the app sends too fast"),
    row(45029, Meaning::QuotaReached, "the app has reached its ceiling of messages for today"),
    row(45035, Meaning::AddressRefused, NOT_ON_IP_LIST),
    row(45102, Meaning::AppBlocked, "the app is blocked for some time"),
    row(
        45103,
        Meaning::Retired,
        "WeChat no longer serves form ids for this app; send subscription messages (DELIVERY_SUBSCRIPTION)",
    ),
    row(45168, Meaning::MessageWrong, "the message has sensitive words"),
    row(45501, Meaning::AppBlocked, "the app is blocked for some time"),
    row(47001, Meaning::MessageWrong, "the body of the message is not valid"),
    row(47003, Meaning::MessageWrong, "a value of the message's data is not valid"),
    row(48001, Meaning::ApiForbidden, "the app has no permission for this API"),
    row(48002, Meaning::Unfollowed, "the user refuses messages of the account"),
    row(48004, Meaning::ApiForbidden, "the API is forbidden for this app"),
    row(50001, Meaning::ApiForbidden, "the app has no permission for this API"),
    row(50002, Meaning::AppForbidden, "the app is limited"),
    row(50005, Meaning::Unfollowed, "the user does not follow the account any more"),
    row(61003, Meaning::ApiForbidden, NOT_AUTHORIZED),
    row(61004, Meaning::AddressRefused, NOT_ON_IP_LIST),
    row(61007, Meaning::ApiForbidden, NOT_AUTHORIZED),
    row(61014, Meaning::ApiForbidden, NOT_AUTHORIZED),
    row(61016, Meaning::ApiForbidden, NOT_AUTHORIZED),
    row(61450, Meaning::Busy, "WeChat is busy"),
];

/// Returns the row of a code. A code that is not in the table is [`Meaning::Unknown`].
pub fn row_of(errcode: i32) -> Row {
    match TABLE.binary_search_by_key(&errcode, |row| row.errcode) {
        Ok(found) => TABLE[found],
        Err(_) => row(errcode, Meaning::Unknown, "the errcode is unknown"),
    }
}

/// WeChat, or a gateway in its place, may answer with any number. Only known codes become a label or an error type.
pub fn is_known(errcode: i32) -> bool {
    TABLE.binary_search_by_key(&errcode, |row| row.errcode).is_ok()
}

/// Whether this is the quota that an operator can reset with WeChat's `clear_quota`. Then `openapi/quota/get` reports a
/// remainder again. The other daily limits last until midnight of UTC+8.
pub fn is_clearable(errcode: i32) -> bool {
    errcode == 45009
}

/// Returns the data key that a 47003 names: `argument invalid! data.thing3.value ...` yields `thing3`. `None` if WeChat
/// changed the text. The key may be missing in the message. It is text from outside: see [`is_key`].
pub fn blamed_key(errmsg: &str) -> Option<&str> {
    let (_, rest) = errmsg.split_once("data.")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    Some(&rest[..end]).filter(|key| !key.is_empty())
}

/// True for a key as WeChat's templates have it: a name of lowercase letters and `_`, and a number, such as `thing3` or
/// `character_string12`. Ids, tokens and secrets do not look like this.
pub fn is_key(key: &str) -> bool {
    let name = key.trim_end_matches(|c: char| c.is_ascii_digit());
    (1..=32).contains(&name.len())
        && key.len() - name.len() <= 3
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// Returns the address that WeChat saw, as the errmsg of [`Meaning::AddressRefused`] names it: `invalid ip 203.0.113.7
/// ipv6 ::ffff:203.0.113.7, not in whitelist`. Only what parses as an address is returned.
pub fn seen_address(errmsg: &str) -> Option<IpAddr> {
    let parts = errmsg.split(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != ':');
    let parse = |part: &str| {
        let part = part.trim_end_matches(['.', ':']);
        // Some texts have a label right before the address: `requestIP:203.0.113.7`.
        part.parse().ok().or_else(|| part.split_once(':')?.1.parse().ok())
    };
    parts.filter_map(parse).next().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_data_key_is_found_in_the_errmsg() {
        assert_eq!(blamed_key("argument invalid! data.thing3.value invalid"), Some("thing3"));
        assert_eq!(blamed_key("argument invalid! data.keyword1"), Some("keyword1"));
        assert_eq!(blamed_key("argument invalid! data..value"), None);
        assert_eq!(blamed_key("data format error"), None);
    }

    #[test]
    fn only_a_name_with_a_number_is_a_key() {
        for key in ["thing3", "character_string12", "name1", "keyword10", "time", "a1"] {
            assert!(is_key(key), "{key}");
        }
        let long = "a".repeat(33);
        for other in ["", "3", "Thing3", "oABCDEFthing", "thing3x", "a1234", "5ec2e7ca9a275ec2", "a-b", "事情1", &long]
        {
            assert!(!is_key(other), "{other}");
        }
    }

    #[test]
    fn address_is_read_only_if_it_is_one() {
        for (errmsg, address) in [
            ("invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist", Some("203.0.113.7")),
            ("invalid ip 203.0.113.7, not in whitelist", Some("203.0.113.7")),
            ("invalid ip ::ffff:203.0.113.7, not in whitelist", Some("203.0.113.7")),
            ("access clientip is not registered, requestIP:2001:db8::7.", Some("2001:db8::7")),
            ("invalid ip evil.example, not in whitelist", None),
            ("invalid ip 1.2.3, not in whitelist", None),
            ("invalid ip 1.2.3.400, not in whitelist", None),
            ("access clientip is not registered", None),
            ("5ec2e7ca9a275ec2e7ca9a275ec2e7ca", None),
            ("", None),
        ] {
            assert_eq!(seen_address(errmsg).map(|seen| seen.to_string()).as_deref(), address, "{errmsg}");
        }
    }

    #[test]
    fn only_the_daily_quota_is_clearable() {
        let cleared: Vec<_> = TABLE.iter().map(|row| row.errcode).filter(|errcode| is_clearable(*errcode)).collect();
        assert_eq!(cleared, [45009]);
    }

    #[test]
    fn table_is_sorted_and_every_row_is_found() {
        assert!(TABLE.is_sorted_by(|a, b| a.errcode < b.errcode));
        for row in TABLE {
            let found = row_of(row.errcode);
            assert_eq!((found.errcode, found.meaning), (row.errcode, row.meaning));
        }
    }

    #[test]
    fn unknown_errcode_fails_only_the_message() {
        assert_eq!(row_of(99999).meaning, Meaning::Unknown);
    }
}
