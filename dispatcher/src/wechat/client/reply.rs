//! Results of a call. Nothing here quotes text from WeChat, or from a gateway in its place, except [`Reply::Answered`].

use std::fmt;
use std::time::Duration;

use store::delivery_failures::MsgId;

use crate::wechat::token_codes;

/// Maximum length of a rid. WeChat's rids have about 26 characters.
const MAX_RID: usize = 64;

/// Maximum number of digits in one group of a rid.
const MAX_GROUP: usize = 12;

/// Why the HTTP client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The base URL cannot have a path. The apps file does not accept such a URL.
    #[error("the base URL of the app cannot be extended with a path")]
    BaseUrl,
    /// TLS cannot be set up, most often because the machine has no CA certificates.
    #[error("TLS cannot be set up; are CA certificates installed? ({0})")]
    Tls(String),
}

/// Result of one call.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
    /// WeChat answered.
    Answered {
        /// 0 is success. For other codes see [`crate::wechat::errcode`].
        errcode: i32,
        /// WeChat's text without the rid. It may quote the message or the token, so it must not be logged; `Debug`
        /// omits it.
        errmsg: String,
        /// Id of the call (rid), which WeChat's support asks for; empty if WeChat gave none.
        rid: String,
        /// WeChat's id of an accepted subscription message.
        msgid: Option<MsgId>,
    },
    /// Certainly no byte of the request was sent: there was no connection.
    NotSent(Cause),
    /// The request may have arrived and may have taken effect.
    Unanswered(Cause),
}

impl fmt::Debug for Reply {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { errcode, rid, msgid, .. } => {
                let mut answered = out.debug_struct("Answered");
                answered.field("errcode", errcode).field("rid", rid).field("msgid", msgid).finish_non_exhaustive()
            }
            Self::NotSent(cause) => out.debug_tuple("NotSent").field(cause).finish(),
            Self::Unanswered(cause) => out.debug_tuple("Unanswered").field(cause).finish(),
        }
    }
}

/// Why there is no usable answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// No connection: refused, unknown host, unreachable, or no TLS.
    #[error("no connection to WeChat")]
    Connect,
    /// The connection was not established in time.
    #[error("no connection to WeChat in time")]
    ConnectTimeout,
    /// No answer in time.
    #[error("no answer from WeChat in time")]
    Timeout,
    /// The connection ended before the answer did.
    #[error("the connection to WeChat broke off")]
    BrokenOff,
    /// An HTTP status other than success.
    #[error("WeChat answered with the HTTP status {0}")]
    HttpStatus(u16),
    /// A redirect. Redirects are never followed.
    #[error("WeChat answered with a redirect (HTTP status {0}), which is not followed")]
    Redirected(u16),
    /// The body is not a JSON object with the required fields: an integer errcode, a token, or a quota.
    #[error("WeChat's answer is not the JSON that was expected")]
    NotJson,
    /// The body is longer than any answer of WeChat.
    #[error("WeChat's answer is longer than the limit")]
    TooLarge,
    /// The token endpoint answered with a code that may be temporary.
    #[error("WeChat gives no access token for now (errcode {code}: {})", token_codes::row_of(*.0).sentence, code = .0)]
    Refused(i32),
}

/// A token as WeChat returned it.
#[derive(Clone, PartialEq, Eq)]
pub struct FetchedToken {
    /// The token. A secret.
    pub token: String,
    /// Lifetime that WeChat gave.
    pub life: Duration,
}

impl fmt::Debug for FetchedToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("FetchedToken").field("life", &self.life).finish_non_exhaustive()
    }
}

/// Why no token was fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// May be temporary: try again later.
    #[error("{cause}")]
    Transient {
        /// WeChat's errcode, if it answered with one.
        errcode: Option<i32>,
        /// What happened.
        cause: Cause,
    },
    /// Permanent until an operator changes something.
    #[error("WeChat refuses an access token (errcode {errcode}): {sentence}")]
    Final {
        /// WeChat's errcode.
        errcode: i32,
        /// Id of the call (rid), which WeChat's support asks for.
        rid: String,
        /// What the operator has to do.
        sentence: &'static str,
    },
}

impl From<Cause> for FetchError {
    fn from(cause: Cause) -> Self {
        Self::Transient { errcode: None, cause }
    }
}

/// How many calls of an app's daily quota are used, from 00:00 UTC+8 on. These are WeChat's numbers. They may lag
/// behind, and may not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Calls that the app may make per day.
    pub daily_limit: u64,
    /// Calls that the app made today.
    pub used: u64,
    /// Calls that the app may still make today.
    pub remain: u64,
}

impl Quota {
    /// Reads all three as JSON integers. WeChat never sends them as strings.
    pub(super) fn read(quota: &serde_json::Value) -> Option<Self> {
        let number = |name| quota.get(name)?.as_u64();
        Some(Self { daily_limit: number("daily_limit")?, used: number("used")?, remain: number("remain")? })
    }
}

/// Why the quota is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// WeChat answered with an errcode. The codes for the token and for a busy WeChat mean the same as for a send, see
    /// [`crate::wechat::errcode`]. 48001 (not permitted), 76021 (unknown path) and 76022 (wrong kind of account) mean
    /// that the quota is not available at all.
    #[error("WeChat does not tell the quota (errcode {errcode})")]
    Refused {
        /// WeChat's errcode, never 0.
        errcode: i32,
        /// Id of the call (rid), which WeChat's support asks for; empty if WeChat gave none.
        rid: String,
    },
    /// There is no usable answer. A gateway that does not know the path usually answers with an HTTP status.
    #[error(transparent)]
    Unanswered(#[from] Cause),
}

/// Reads a msgid. WeChat sends it as a number; a string of digits is accepted too. 0 means none.
pub(super) fn msgid(value: &serde_json::Value) -> Option<MsgId> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
    (number > 0).then_some(MsgId(number))
}

/// True for groups of hex digits, as in `5f9a8b1d-1d6f1e9a-2c5d6f7b`. A rid is written to logs, traces and errors, and
/// a gateway may send anything in its place. The check rejects secrets: a form id or an app secret is one long group,
/// an openid or a token is not hex.
fn is_rid(text: &str) -> bool {
    let mut groups = text.split('-');
    text.len() <= MAX_RID
        && text.contains('-')
        && groups
            .all(|group| (1..=MAX_GROUP).contains(&group.len()) && group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Splits an errmsg into WeChat's text and the rid, which is at the end as `rid: 5f...-...`.
pub(super) fn words(errmsg: serde_json::Value) -> (String, String) {
    let serde_json::Value::String(mut errmsg) = errmsg else {
        return Default::default();
    };
    let Some((words, rid)) = errmsg.split_once("rid: ") else {
        return (errmsg, String::new());
    };
    let rid = rid.split_whitespace().next().unwrap_or_default();
    let (end, rid) =
        (words.trim_end_matches([' ', ',']).len(), if is_rid(rid) { rid.to_owned() } else { String::new() });
    errmsg.truncate(end);
    (errmsg, rid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_is_three_json_integers() {
        let read = |text: &str| Quota::read(&serde_json::from_str(text).unwrap());
        let quota = Quota { daily_limit: 1_000_000, used: 7, remain: 999_993 };
        assert_eq!(read(r#"{"daily_limit":1000000,"used":7,"remain":999993,"more":"x"}"#), Some(quota));
        let uneven = Quota { daily_limit: 5, used: 9, remain: 0 };
        assert_eq!(read(r#"{"daily_limit":5,"used":9,"remain":0}"#), Some(uneven));
        for wrong in [
            "null",
            "7",
            "[5,4,1]",
            "{}",
            r#"{"daily_limit":5,"used":4}"#,
            r#"{"daily_limit":5,"used":4,"remain":null}"#,
            r#"{"daily_limit":5,"used":4,"remain":"1"}"#,
            r#"{"daily_limit":5,"used":4,"remain":-1}"#,
            r#"{"daily_limit":5,"used":4,"remain":1.0}"#,
            r#"{"daily_limit":18446744073709551616,"used":4,"remain":1}"#,
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn msgid_may_use_all_64_bits() {
        let read = |text: &str| msgid(&serde_json::from_str(text).unwrap());
        assert_eq!(read("9007199254740993"), Some(MsgId(9_007_199_254_740_993)));
        assert_eq!(read("\"18446744073709551615\""), Some(MsgId(u64::MAX)));
        for none in ["null", "0", "\"\"", "1.5", "-1", "\"x\"", "{}"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn rid_is_separated_from_the_text() {
        for (errmsg, expected, rid) in [
            ("ok", "ok", ""),
            ("invalid openid rid: 5f9a8b1d-1d6f1e9a-2c5d6f7b", "invalid openid", "5f9a8b1d-1d6f1e9a-2c5d6f7b"),
            ("invalid, rid: 5f9a-1 tail", "invalid", "5f9a-1"),
            ("odd rid: {\"a\"}", "odd", ""),
            ("a form id rid: 5f9a8b1d1d6f1e9a2c5d6f7b5f9a8b1d", "a form id", ""),
            ("an openid rid: oABCD-0123_abcd", "an openid", ""),
            ("rid: -", "", ""),
        ] {
            assert_eq!(words(errmsg.into()), (expected.into(), rid.into()), "{errmsg}");
        }
        let long = format!("odd rid: {}", "a-".repeat(MAX_RID) + "a");
        assert_eq!(words(long.into()).1, "");
    }
}
