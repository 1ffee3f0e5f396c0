//! The meaning of WeChat's codes. No other module knows these codes. WeChat changes the texts of its errors, so only
//! codes are matched.

use domain::Kind;

/// The scope that an errcode invalidates, which determines how a correct sender reacts. Mostly ordered from the
/// smallest scope to the largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Accepted; one use is spent.
    Delivered,
    /// Busy for the moment: back off and try the same credential again.
    Busy,
    /// Another call for the same user is in progress: try again with jitter, one send per user at a time.
    OneAtATime,
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
    /// The openid is not a user of this app: the message fails, the credential is not spent.
    UserWrong,
    /// Something in the message is wrong: it fails, the credential is not spent.
    MessageWrong,
    /// The app may not use one source of credentials for now.
    SourceBarred(Kind),
    /// The app's daily quota of this API is used up until midnight of UTC+8.
    QuotaReached,
    /// The app is blocked for some time.
    AppBlocked,
    /// The app may not use this API: no permission, or banned. The API of the other message generation is not affected.
    ApiForbidden,
    /// The app may not do anything: WeChat restricted it, or does not know it.
    AppForbidden,
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

/// All known codes, in ascending order.
pub const TABLE: &[Row] = &[
    row(-1, Meaning::Busy, "WeChat is busy"),
    row(0, Meaning::Delivered, "delivered"),
    row(40001, Meaning::TokenInvalid, "the access token is invalid or not the latest"),
    row(40003, Meaning::UserWrong, "the openid is not a user of this app"),
    row(40013, Meaning::AppForbidden, "the app id is wrong"),
    row(40014, Meaning::TokenInvalid, "the access token is invalid"),
    row(40037, Meaning::MessageWrong, "the template id is wrong"),
    row(41001, Meaning::TokenMissing, "the access token is missing"),
    row(41028, Meaning::CredentialWrong, "the form id is wrong, expired, or another user's"),
    row(41029, Meaning::CredentialUsed, "the form id is used up"),
    row(41030, Meaning::MessageWrong, "the page is wrong"),
    row(41031, Meaning::CredentialBlocked, "the form id is blocked"),
    row(41032, Meaning::SourceBarred(Kind::FormId), "the app's form ids are barred as a punishment"),
    row(41034, Meaning::SourceBarred(Kind::FormId), "the app's form ids are barred as a punishment"),
    row(41035, Meaning::SourceBarred(Kind::PrepayId), "the app's prepay ids are barred as a punishment"),
    row(42001, Meaning::TokenInvalid, "the access token is expired"),
    row(43101, Meaning::RefusedByUser, "the user refuses these messages, or has no grant left"),
    row(43104, Meaning::ApiForbidden, "the app has no permission to send"),
    row(43107, Meaning::ApiForbidden, "the app's ability to send subscription messages is banned"),
    row(43108, Meaning::OneAtATime, "another call for this user is in progress"),
    row(43116, Meaning::ApiForbidden, "the template is banned"),
    row(45009, Meaning::QuotaReached, "the app's daily quota is used up"),
    row(45011, Meaning::RateReached, "the app sends too fast"),
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
    row(48004, Meaning::ApiForbidden, "the API is forbidden for this app"),
    row(50002, Meaning::AppForbidden, "the app is limited"),
];

/// Returns the row of a code. A code that is not in the table is [`Meaning::Unknown`].
pub fn row_of(errcode: i32) -> Row {
    match TABLE.binary_search_by_key(&errcode, |row| row.errcode) {
        Ok(found) => TABLE[found],
        Err(_) => row(errcode, Meaning::Unknown, "WeChat refused with an unknown errcode"),
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

/// Returns the data key that a 47003 rejects: `argument invalid! data.thing3.value ...` yields `thing3`. This is only a
/// hint for people; `None` if WeChat changed the text.
pub fn blamed_key(errmsg: &str) -> Option<&str> {
    let (_, rest) = errmsg.split_once("data.")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    Some(&rest[..end]).filter(|key| !key.is_empty())
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
