//! How a send ends: the answer to its caller, and the record kept under its request id.

use std::net::IpAddr;
use std::time::Duration;

use domain::Kind;
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};
use server::rpc::reason::Reason;
use server::rpc::status::Failure;
use store::delivery_failures::MsgId;

use crate::wechat::errcode::{Meaning, row_of};
use crate::wechat::error::{TokenError, seen};

/// WeChat's answer to a message, as far as there was one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WechatAnswer {
    /// The errcode of the last answer; `None` if there was no answer.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub errcode: Option<i32>,
    /// WeChat's id of the call (rid); empty if it gave none.
    #[serde(rename = "r", default, skip_serializing_if = "String::is_empty")]
    pub rid: String,
    /// The data key whose value WeChat rejected.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// WeChat's id of an accepted subscription message.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub msgid: Option<MsgId>,
    /// The dispatcher's address as WeChat saw it, if it refuses this address. It is not stored: such an answer ends no
    /// message.
    #[serde(skip)]
    pub address: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// WeChat accepted it, once.
    #[serde(rename = "d")]
    Delivered,
    /// Unknown: it was delivered once or not at all.
    #[serde(rename = "u")]
    Unknown,
    #[serde(rename = "r")]
    Refused,
}

impl End {
    pub fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Unknown => "unknown",
            Self::Refused => "refused",
        }
    }
}

/// The record kept under a request id. It suffices to answer every later call with that id, and contains nothing about
/// the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    #[serde(rename = "o")]
    pub end: End,
    #[serde(flatten)]
    pub answer: WechatAnswer,
    #[serde(rename = "a")]
    pub attempts: u32,
    /// Kind of the credential that was spent or tried; `None` if no longer known.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
}

impl Outcome {
    pub fn encode(&self) -> Vec<u8> {
        // A struct of numbers and strings always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, store::Error> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// Why a message was not sent, or why its outcome cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("no credential in stock for this user can be used for this message")]
    NoCredential,
    /// The credentials that can be used for the message rest. `until` is when the first rest ends, in seconds since 1970.
    #[error(
        "the credentials of this user for this message rest until {}, because WeChat refused them; nothing was spent",
        rfc3339(*.until)
    )]
    Resting { until: i64 },
    /// WeChat rejected each credential that was tried.
    #[error("WeChat refused every credential that was tried ({tried}); they are discarded")]
    CredentialsDead { tried: u32, answer: WechatAnswer },
    #[error("WeChat refused: {}", sentence(.0))]
    Refused(WechatAnswer),
    /// WeChat refuses the app, the template, or one of the app's sources of credentials, for some time.
    #[error("WeChat refuses this {} for now: {}", stopped(.answer), sentence(.answer))]
    Stopped { answer: WechatAnswer, lasts: Duration },
    #[error("request_id was used for another message to this user")]
    RequestReused,
    /// Another replica holds the lease of this request; it expires within this time.
    #[error("another replica is sending this request_id")]
    InProgress(Duration),
    /// WeChat takes one subscription message per user at a time, and another one is in flight; or, with an errcode,
    /// WeChat answers that the user gets messages too often.
    #[error("{}; nothing was spent", busy(.answer))]
    UserBusy { lasts: Duration, answer: WechatAnswer },
    /// WeChat did not answer. Repeating the request determines the outcome.
    #[error(
        "WeChat did not answer: repeat with the same request_id to learn the outcome; it will not be delivered twice"
    )]
    InDoubt(WechatAnswer),
    #[error("{}; nothing was spent", sentence(.0))]
    Busy(WechatAnswer),
    #[error("WeChat cannot be reached; nothing was spent")]
    Unreachable,
    #[error(transparent)]
    Token(TokenError),
    #[error(transparent)]
    Store(#[from] store::Error),
}

fn rfc3339(seconds: i64) -> String {
    Timestamp { seconds, nanos: 0 }.to_string()
}

fn sentence(answer: &WechatAnswer) -> String {
    let Some(errcode) = answer.errcode else { return "WeChat did not answer".into() };
    let place = answer.key.as_ref().map(|key| format!(", {}", field_of(key))).unwrap_or_default();
    format!("{} ({errcode}{place}){}", row_of(errcode).sentence, seen(answer.address))
}

fn stopped(answer: &WechatAnswer) -> &'static str {
    if answer.meaning() == Some(Meaning::TemplateBanned) { "template" } else { "app" }
}

fn busy(answer: &WechatAnswer) -> String {
    if answer.errcode.is_some() { sentence(answer) } else { "another message to this user is in flight".into() }
}

/// The field of a request that a data key stands for.
pub fn field_of(key: &str) -> String {
    format!("data.{key}.value")
}

impl WechatAnswer {
    /// The meaning of the errcode; `None` if there was no answer.
    pub fn meaning(&self) -> Option<Meaning> {
        self.errcode.map(|errcode| row_of(errcode).meaning)
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        let message = error.to_string();
        match error {
            SendError::NoCredential => Self::new(Reason::NO_CREDENTIAL, message),
            SendError::Resting { until } => {
                Self::new(Reason::NO_CREDENTIAL, message).with("resting_until", rfc3339(until))
            }
            SendError::CredentialsDead { answer, .. } => {
                with_answer(Self::new(Reason::CREDENTIALS_DEAD, message), &answer)
            }
            SendError::Refused(answer) => {
                let reason = match answer.meaning() {
                    Some(Meaning::UserWrong | Meaning::RefusedByUser | Meaning::Unfollowed) => Reason::USER_REFUSED,
                    _ => Reason::MESSAGE_REFUSED,
                };
                with_answer(Self::new(reason, message), &answer)
            }
            SendError::Stopped { answer, lasts } => {
                let failure = match answer.meaning() {
                    Some(Meaning::TemplateBanned) => Self::new(Reason::TEMPLATE_STOPPED, message),
                    Some(Meaning::QuotaReached) => Self::new(Reason::QUOTA_REACHED, message)
                        .quota("WeChat's daily quota of the app", "used up until midnight of UTC+8"),
                    _ => Self::new(Reason::APP_STOPPED, message),
                };
                with_answer(failure, &answer).retry_after(lasts)
            }
            SendError::RequestReused => {
                Self::new(Reason::REQUEST_ID_REUSED, message.clone()).field("request_id", message)
            }
            SendError::InProgress(lasts) => Self::new(Reason::REQUEST_UNDER_WAY, message).retry_after(lasts),
            SendError::UserBusy { lasts, answer } => {
                with_answer(Self::new(Reason::USER_BUSY, message), &answer).retry_after(lasts)
            }
            SendError::InDoubt(answer) => with_answer(Self::new(Reason::IN_DOUBT, message), &answer),
            SendError::Busy(answer) => with_answer(Self::new(Reason::WECHAT_BUSY, message), &answer),
            SendError::Unreachable => Self::new(Reason::WECHAT_UNREACHABLE, message),
            SendError::Token(TokenError::Refused { errcode, rid, address, .. }) => {
                let answer = WechatAnswer { errcode: Some(errcode), rid, address, ..WechatAnswer::default() };
                with_answer(Self::new(Reason::TOKEN_REFUSED, message), &answer)
            }
            SendError::Token(_) => Self::new(Reason::TOKEN_UNAVAILABLE, message),
            SendError::Store(error) => error.into(),
        }
    }
}

fn with_answer(failure: Failure, answer: &WechatAnswer) -> Failure {
    let failure = match answer.errcode {
        Some(errcode) => failure.with("errcode", errcode),
        None => failure,
    };
    let failure = match &answer.key {
        Some(key) => failure.with("field", field_of(key)),
        None => failure,
    };
    let failure = match answer.address {
        Some(address) => failure.with("address", address),
        None => failure,
    };
    if answer.rid.is_empty() { failure } else { failure.with("rid", &answer.rid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_survives_encoding_and_decoding() {
        let msgid = Some(MsgId(u64::MAX));
        let key = Some("thing3".into());
        let answer = WechatAnswer { errcode: Some(41029), rid: "5f-1".into(), key, msgid, address: None };
        for end in [End::Delivered, End::Unknown, End::Refused] {
            let outcome = Outcome { end, answer: answer.clone(), attempts: 2, kind: Some(Kind::FormId) };
            assert_eq!(Outcome::decode(&outcome.encode()).unwrap(), outcome);
        }
        let unanswered = Outcome { end: End::Unknown, answer: WechatAnswer::default(), attempts: 1, kind: None };
        assert_eq!(Outcome::decode(&unanswered.encode()).unwrap(), unanswered);
    }

    #[test]
    fn error_names_the_value_that_wechat_refuses() {
        let answer = WechatAnswer { errcode: Some(47003), key: Some("thing3".into()), ..WechatAnswer::default() };
        let status = tonic::Status::from(Failure::from(SendError::Refused(answer)));
        assert!(status.message().ends_with("(47003, data.thing3.value)"), "{}", status.message());
    }

    #[test]
    fn rest_is_named_by_its_end() {
        let failure = Failure::from(SendError::Resting { until: 1_795_889_463 });
        assert_eq!(failure.reason(), "NO_CREDENTIAL");
        let status = tonic::Status::from(failure);
        assert!(status.message().contains(" rest until 2026-11-28T18:11:03Z, "), "{}", status.message());
    }

    #[test]
    fn refused_user_and_refused_message_have_different_reasons() {
        let reason = |errcode| {
            Failure::from(SendError::Refused(WechatAnswer { errcode: Some(errcode), ..WechatAnswer::default() }))
                .reason()
        };
        assert_eq!((reason(40003), reason(43004), reason(40037)), ("USER_REFUSED", "USER_REFUSED", "MESSAGE_REFUSED"));
    }

    #[test]
    fn stop_says_what_is_stopped_and_the_address_that_wechat_saw() {
        let stopped = |errcode| {
            let address = (errcode == 40164).then(|| [203, 0, 113, 7].into());
            let answer = WechatAnswer { errcode: Some(errcode), address, ..WechatAnswer::default() };
            let failure = Failure::from(SendError::Stopped { answer, lasts: Duration::from_secs(600) });
            (failure.reason(), tonic::Status::from(failure).message().to_owned())
        };
        let (reason, text) = stopped(43116);
        assert!(reason == "TEMPLATE_STOPPED" && text.contains("this template"), "{text}");
        let (reason, text) = stopped(40164);
        assert!(reason == "APP_STOPPED" && text.ends_with("(40164); WeChat saw 203.0.113.7"), "{text}");
        assert_eq!(
            (stopped(45009).0, stopped(45029).0, stopped(40066).0),
            ("QUOTA_REACHED", "QUOTA_REACHED", "APP_STOPPED")
        );
    }
}
