//! What a call may come to. Nothing in here quotes what WeChat, or a gateway in its place, wrote, except for
//! [`Reply::Answered`].

use std::fmt;
use std::time::Duration;

use shared::store::late::MsgId;

use crate::wechat::token::refusals;

/// The longest rid; WeChat's have about 26 characters.
const MAX_RID: usize = 64;

/// The longest group of digits in one.
const MAX_GROUP: usize = 12;

/// Why an HTTP client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The base URL takes no path; the apps file accepts no such URL.
    #[error("the base URL of the app cannot be extended with a path")]
    BaseUrl,
    /// TLS cannot be set up: most often the machine has no CA certificates.
    #[error("TLS cannot be set up; are CA certificates installed? ({0})")]
    Tls(String),
}

/// What became of one call.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
    /// WeChat answered.
    Answered {
        /// 0 is success; the rest is in [`crate::wechat::answer`].
        errcode: i32,
        /// WeChat's words without the rid. They may quote the message or the token, so they belong into no log; `Debug`
        /// leaves them out.
        errmsg: String,
        /// What WeChat's support asks for; empty when there is none.
        rid: String,
        /// WeChat's id of an accepted subscription message.
        msgid: Option<MsgId>,
    },
    /// Certainly not a byte of the request left: there was no connection to write it to.
    NotSent(Cause),
    /// The request may have arrived, and may have taken effect.
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

/// Why there is no answer, or none to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// No connection: refused, unknown host, unreachable, or no TLS.
    #[error("no connection to WeChat")]
    Connect,
    /// No connection in time.
    #[error("no connection to WeChat in time")]
    ConnectTimeout,
    /// No answer in time.
    #[error("no answer from WeChat in time")]
    Timeout,
    /// The connection ended before the answer did.
    #[error("the connection to WeChat broke off")]
    BrokenOff,
    /// An HTTP status that is no success.
    #[error("WeChat answered with the HTTP status {0}")]
    HttpStatus(u16),
    /// A redirect, which is never followed.
    #[error("WeChat answered with a redirect (HTTP status {0}), which is not followed")]
    Redirected(u16),
    /// A body that is no JSON object with what must be in it: an integer errcode, a token, or a quota.
    #[error("WeChat's answer is not the JSON that was expected")]
    NotJson,
    /// A body longer than any answer of WeChat's.
    #[error("WeChat's answer is too long to be one")]
    TooLarge,
    /// An answer of the token endpoint that may be another one later.
    #[error("WeChat gives no access token for now (errcode {code}: {})", refusals::row_of(*.0).sentence, code = .0)]
    Refused(i32),
}

/// A token as WeChat gives it.
#[derive(Clone, PartialEq, Eq)]
pub struct FetchedToken {
    /// The token. A secret.
    pub token: String,
    /// How long it lives, by WeChat's word.
    pub life: Duration,
}

impl fmt::Debug for FetchedToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("FetchedToken").field("life", &self.life).finish_non_exhaustive()
    }
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// May pass: worth another try later.
    #[error("{cause}")]
    Transient {
        /// WeChat's code, if it answered with one.
        errcode: Option<i32>,
        /// What happened.
        cause: Cause,
    },
    /// Will not pass until somebody changes something.
    #[error("WeChat refuses an access token (errcode {errcode}): {sentence}")]
    Final {
        /// WeChat's code.
        errcode: i32,
        /// What WeChat's support asks for.
        rid: String,
        /// What the operator is to do.
        sentence: &'static str,
    },
}

impl From<Cause> for FetchError {
    fn from(cause: Cause) -> Self {
        Self::Transient { errcode: None, cause }
    }
}

/// How much of a day's quota an app has used: calls, from 00:00 UTC+8 on. WeChat's figures, which may lag behind and are
/// not made to add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Calls that the app may make a day.
    pub daily_limit: u64,
    /// Calls that it made today.
    pub used: u64,
    /// Calls that it may still make today.
    pub remain: u64,
}

impl Quota {
    /// Whole numbers as JSON has them, all three: a text of digits is none of WeChat's.
    pub(super) fn read(quota: &serde_json::Value) -> Option<Self> {
        let number = |name| quota.get(name)?.as_u64();
        Some(Self { daily_limit: number("daily_limit")?, used: number("used")?, remain: number("remain")? })
    }
}

/// Why the quota is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// WeChat answered with a code. The token's codes mean here what they mean for a send, see
    /// [`crate::wechat::answer`], and so do those of a busy WeChat. 48001 (not permitted), 76021 (a path that is not
    /// known) and 76022 (not for this kind of account) say that the quota is not told here at all.
    #[error("WeChat does not tell the quota (errcode {errcode})")]
    Refused {
        /// WeChat's code, never 0.
        errcode: i32,
        /// What WeChat's support asks for; empty when there is none.
        rid: String,
    },
    /// There is no answer to use. A gateway that does not know the path most often answers with an HTTP status.
    #[error(transparent)]
    Unanswered(#[from] Cause),
}

/// A msgid, which WeChat writes as a number; as a text of digits it is one too. 0 is none.
pub(super) fn msgid(value: &serde_json::Value) -> Option<MsgId> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
    (number > 0).then_some(MsgId(number))
}

/// Groups of hex digits, as in `5f9a8b1d-1d6f1e9a-2c5d6f7b`. A rid goes into logs, traces and errors, and a gateway may
/// write anything in its place: a form id or a secret is one long group, an openid or a token is no hex.
fn is_rid(text: &str) -> bool {
    let mut groups = text.split('-');
    text.len() <= MAX_RID
        && text.contains('-')
        && groups
            .all(|group| (1..=MAX_GROUP).contains(&group.len()) && group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Splits an errmsg into WeChat's words and the rid, which stands at the end as `rid: 5f...-...`.
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
    fn a_quota_is_three_whole_numbers() {
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
    fn a_msgid_may_need_all_of_its_64_bits() {
        let read = |text: &str| msgid(&serde_json::from_str(text).unwrap());
        assert_eq!(read("9007199254740993"), Some(MsgId(9_007_199_254_740_993)));
        assert_eq!(read("\"18446744073709551615\""), Some(MsgId(u64::MAX)));
        for none in ["null", "0", "\"\"", "1.5", "-1", "\"x\"", "{}"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn the_rid_is_told_from_the_words() {
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
