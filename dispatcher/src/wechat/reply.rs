//! WeChat's answers. Nothing here quotes text from WeChat, or from a gateway in its place, except [`Reply::Answered`].

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use store::delivery_failures::MsgId;

use super::errcode::seen_address;
use super::error::{Cause, QuotaError, TokenError};
use super::token_codes::{self, Weight};

/// Maximum length of a rid. WeChat's rids have about 26 characters.
const MAX_RID: usize = 64;

const MAX_GROUP: usize = 12;

/// Upper limit for the lifetime of a token. WeChat gives two hours.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
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

impl Reply {
    pub(super) fn parse(body: Result<Vec<u8>, Cause>) -> Self {
        match body.and_then(|body| parse::<SendAnswer>(&body)) {
            Ok(SendAnswer { errcode, errmsg, msgid }) => {
                let (errmsg, rid) = split_errmsg(errmsg);
                Self::Answered { errcode, errmsg, rid, msgid: parse_msgid(&msgid) }
            }
            Err(cause) if cause.nothing_sent() => Self::NotSent(cause),
            Err(cause) => Self::Unanswered(cause),
        }
    }
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

#[derive(Clone, PartialEq, Eq)]
pub struct FetchedToken {
    pub token: String,
    pub life: Duration,
}

impl FetchedToken {
    pub(super) fn parse(body: &[u8]) -> Result<Self, TokenError> {
        let plausible = |token: &str| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        match parse(body)? {
            TokenAnswer { errcode: Some(errcode), errmsg, .. } if errcode != 0 => {
                let row = token_codes::row_of(errcode);
                let (errmsg, rid) = split_errmsg(errmsg);
                Err(match row.weight {
                    Weight::Transient => Cause::Refused(errcode).into(),
                    Weight::Final => {
                        let address = row.about_address.then(|| seen_address(&errmsg)).flatten();
                        TokenError::Refused { errcode, rid, sentence: row.sentence, address }
                    }
                })
            }
            TokenAnswer { access_token: Some(token), expires_in: Some(seconds @ 1..), .. } if plausible(&token) => {
                Ok(Self { token, life: Duration::from_secs(seconds).min(MAX_LIFE) })
            }
            _ => Err(Cause::NotJson.into()),
        }
    }
}

impl fmt::Debug for FetchedToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("FetchedToken").field("life", &self.life).finish_non_exhaustive()
    }
}

/// How many calls of an app's daily quota are used, from 00:00 UTC+8 on. These are WeChat's numbers. They may lag
/// behind, and may not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    pub daily_limit: u64,
    pub used: u64,
    pub remain: u64,
}

impl Quota {
    pub(super) fn parse(body: &[u8]) -> Result<Self, QuotaError> {
        let QuotaAnswer { errcode, errmsg, quota } = parse(body)?;
        match errcode {
            0 => Ok(Self::read(&quota).ok_or(Cause::NotJson)?),
            errcode => Err(QuotaError::Refused { errcode, rid: split_errmsg(errmsg).1 }),
        }
    }

    /// Reads all three as JSON integers. WeChat never sends them as strings.
    fn read(quota: &serde_json::Value) -> Option<Self> {
        let number = |name| quota.get(name)?.as_u64();
        Some(Self { daily_limit: number("daily_limit")?, used: number("used")?, remain: number("remain")? })
    }
}

#[derive(Deserialize)]
struct SendAnswer {
    errcode: i32,
    /// Only for people. Any JSON type is accepted, because only the code is used.
    #[serde(default)]
    errmsg: serde_json::Value,
    #[serde(default)]
    msgid: serde_json::Value,
}

#[derive(Deserialize)]
struct QuotaAnswer {
    errcode: i32,
    #[serde(default)]
    errmsg: serde_json::Value,
    /// Only read if errcode is 0.
    #[serde(default)]
    quota: serde_json::Value,
}

#[derive(Deserialize)]
struct TokenAnswer {
    errcode: Option<i32>,
    #[serde(default)]
    errmsg: serde_json::Value,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Parses a JSON object. Without the check, serde would also accept an array of the right length for a struct.
fn parse<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Cause> {
    let object = answer.trim_ascii_start().starts_with(b"{");
    let parsed = object.then(|| serde_json::from_slice(answer).ok());
    parsed.flatten().ok_or(Cause::NotJson)
}

/// Reads a msgid. WeChat sends it as a number; a string of digits is accepted too. 0 means none.
fn parse_msgid(value: &serde_json::Value) -> Option<MsgId> {
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
fn split_errmsg(errmsg: serde_json::Value) -> (String, String) {
    let serde_json::Value::String(mut errmsg) = errmsg else {
        return Default::default();
    };
    let Some((text, rid)) = errmsg.split_once("rid: ") else {
        return (errmsg, String::new());
    };
    let rid = rid.split_whitespace().next().unwrap_or_default();
    let (end, rid) =
        (text.trim_end_matches([' ', ',']).len(), if is_rid(rid) { rid.to_owned() } else { String::new() });
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
        let read = |text: &str| parse_msgid(&serde_json::from_str(text).unwrap());
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
            assert_eq!(split_errmsg(errmsg.into()), (expected.into(), rid.into()), "{errmsg}");
        }
        let long = format!("odd rid: {}", "a-".repeat(MAX_RID) + "a");
        assert_eq!(split_errmsg(long.into()).1, "");
    }
}
