//! The domain: apps, users, and the rights to send that users hand out.
//!
//! Values of these types are valid by construction: they are parsed once, at the edge, and trusted inside. Their
//! `Debug` shows neither openids nor credentials, so that a log line can not leak one by accident.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long WeChat honours a form id or a prepay id, from the submit or the payment.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// How far in the future a submit time may lie before it is refused: clocks of two machines differ.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// The longest id of a credential that is accepted, in bytes. Seen in the wild: 13 digits to about 40 characters.
pub const MAX_ID: usize = 128;

/// The longest openid, in bytes. WeChat's have 28.
pub const MAX_OPENID: usize = 64;

/// The longest app id, in bytes. WeChat's have 18.
pub const MAX_APP_ID: usize = 64;

/// The longest template id, in bytes. WeChat's have 43.
pub const MAX_TEMPLATE_ID: usize = 64;

/// The longest request id, in bytes.
pub const MAX_REQUEST_ID: usize = 128;

/// Why a string is none of the values of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The empty string.
    #[error("must not be empty")]
    Empty,
    /// More bytes than the given bound.
    #[error("must not be longer than {0} bytes")]
    TooLong(usize),
    /// A space, a control character, or something outside ASCII.
    #[error("must consist of visible ASCII characters, without spaces")]
    BadCharacters,
    /// An app id with something else than letters, digits, `_` and `-`.
    #[error("must consist of ASCII letters, digits, '_' and '-'")]
    NotAnAppId,
}

/// Whether a text is what every id of WeChat's is: visible ASCII, from one byte to a bound.
pub fn visible(text: &str, bound: usize) -> Result<(), Malformed> {
    match text {
        "" => Err(Malformed::Empty),
        _ if text.len() > bound => Err(Malformed::TooLong(bound)),
        _ if !text.bytes().all(|byte| byte.is_ascii_graphic()) => Err(Malformed::BadCharacters),
        _ => Ok(()),
    }
}

/// A mini program's app id. It becomes part of key names, hence the narrow alphabet.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(Box<str>);

impl AppId {
    /// Letters, digits, `_` and `-`, at most [`MAX_APP_ID`] bytes.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        visible(&text, MAX_APP_ID)?;
        if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
            Ok(Self(text))
        } else {
            Err(Malformed::NotAnAppId)
        }
    }

    /// The app id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A user of one app. Personal data: never written to a log.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpenId(Box<str>);

impl OpenId {
    /// Visible ASCII, at most [`MAX_OPENID`] bytes.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        visible(&text, MAX_OPENID)?;
        Ok(Self(text))
    }

    /// The openid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for OpenId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("OpenId(..)")
    }
}

/// A template of subscription messages, as the mini program's console shows it. No secret and not personal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct TemplateId(Box<str>);

impl TryFrom<String> for TemplateId {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        Self::parse(text)
    }
}

impl TemplateId {
    /// Visible ASCII, at most [`MAX_TEMPLATE_ID`] bytes.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        visible(&text, MAX_TEMPLATE_ID)?;
        Ok(Self(text))
    }

    /// The template id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A caller's name for one message, which makes the call safe to repeat.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Box<str>);

impl RequestId {
    /// Visible ASCII, at most [`MAX_REQUEST_ID`] bytes.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        visible(&text, MAX_REQUEST_ID)?;
        Ok(Self(text))
    }

    /// The request id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Where a right to send comes from. The numbers and letters are part of the stored format, where 3 is taken too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// A submitted form: one message. Used twice, WeChat answers 41029, which is what makes a resend safe.
    #[serde(rename = "f")]
    FormId = 0,
    /// A payment: several messages, so a resend can not be told from a second message.
    #[serde(rename = "p")]
    PrepayId = 1,
    /// An accepted subscription request: messages of one template, without an expiry. WeChat does not tell what is left of
    /// them, so a resend can not be told from a second message either.
    #[serde(rename = "g")]
    Grant = 2,
}

impl Kind {
    /// Every kind there is.
    pub const ALL: [Self; 3] = [Self::FormId, Self::PrepayId, Self::Grant];

    /// What it is called in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::FormId => "form_id",
            Self::PrepayId => "prepay_id",
            Self::Grant => "grant",
        }
    }
}

/// The id of a credential: what is handed to WeChat. A right to send, so never written to a log.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CredentialId(Box<str>);

/// What WeChat's client library hands to a mini program in place of a form id, and why it is none.
const NO_FORM_IDS: [(&str, Refusal); 3] = [
    ("the formId is a mock one", Refusal::MockFormId),
    ("the formId is no longer available in develop or trial version", Refusal::DevelopVersion),
    ("requestFormId:fail", Refusal::RequestFailed),
];

impl CredentialId {
    /// Accepts what may be an id, and names what is known to be none.
    ///
    /// The length is not fixed: 32 hex digits, 13 digits, 36 characters on iOS and `wx` with 30 or more have all been seen.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Refusal> {
        let text = text.into();
        if let Some((_, refusal)) = NO_FORM_IDS.iter().find(|(start, _)| text.starts_with(start)) {
            return Err(*refusal);
        }
        match visible(&text, MAX_ID) {
            Ok(()) => Ok(Self(text)),
            Err(Malformed::Empty) => Err(Refusal::EmptyId),
            Err(Malformed::TooLong(_)) => Err(Refusal::IdTooLong),
            Err(Malformed::BadCharacters | Malformed::NotAnAppId) => Err(Refusal::BadCharacters),
        }
    }

    /// The id as text, for the request to WeChat.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<TemplateId> for CredentialId {
    /// What WeChat knows a grant by.
    fn from(template: TemplateId) -> Self {
        Self(template.0)
    }
}

impl fmt::Debug for CredentialId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("CredentialId(..)")
    }
}

/// One right to send of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Where it comes from.
    pub kind: Kind,
    /// What WeChat knows it by.
    pub id: CredentialId,
    /// How many messages it still permits.
    pub uses: u8,
    /// When WeChat stops honouring it, in seconds since 1970.
    pub expiry: u32,
}

/// How many messages a grant permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantUses {
    /// So many more, from 1 to [`MAX_GRANT`].
    Count(u16),
    /// Any number, until the user rejects the template: a long-term subscription.
    LongTerm,
}

/// The most messages that one grant can add.
pub const MAX_GRANT: u16 = 1000;

/// The right to send one user messages of one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Which template.
    pub template: TemplateId,
    /// How many messages.
    pub uses: GrantUses,
}

/// Why a credential is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The openid is not valid.
    #[error("openid {0}")]
    BadOpenId(Malformed),
    /// There is no id.
    #[error("none of form_id, prepay_id and grant is given, or it is empty")]
    EmptyId,
    /// The id is longer than [`MAX_ID`].
    #[error("the id is longer than {MAX_ID} bytes")]
    IdTooLong,
    /// The id has characters that no id has.
    #[error("the id must consist of visible ASCII characters, without spaces")]
    BadCharacters,
    /// From the developer tools.
    #[error("a mock form id: WeChat's developer tools give no real ones")]
    MockFormId,
    /// From a version that is not released.
    #[error("develop and trial versions of a mini program give no form ids")]
    DevelopVersion,
    /// WeChat's client failed to get one.
    #[error("requestFormId:fail is WeChat's error text, not a form id")]
    RequestFailed,
    /// The submit time is no time.
    #[error("obtained_at is not a valid timestamp")]
    BadTime,
    /// The submit time is still to come.
    #[error("obtained_at lies in the future")]
    InTheFuture,
    /// The credential can no longer be used.
    #[error("obtained_at is so long ago that the credential can no longer be used")]
    TooOld,
    /// The template of a grant is no template id.
    #[error("grant.template_id {0}")]
    BadTemplateId(Malformed),
    /// More messages than one grant may add, or a number beside `unlimited`.
    #[error("grant.count must be at most {MAX_GRANT}, and 0 beside unlimited")]
    BadCount,
    /// The grant key is none.
    #[error("grant.grant_key {0}")]
    BadGrantKey(Malformed),
}

/// When a credential obtained at `obtained` expires; both are seconds since 1970, as is `now`.
///
/// Refused when it lies in the future (beyond [`CLOCK_TOLERANCE`]) or when no more than `margin` seconds would be left.
pub fn expiry(obtained: i64, now: i64, margin: u32) -> Result<u32, Refusal> {
    let lifetime = LIFETIME.as_secs() as i64;
    if obtained > now.saturating_add(CLOCK_TOLERANCE.as_secs() as i64) {
        return Err(Refusal::InTheFuture);
    }
    let expiry = obtained.min(now).saturating_add(lifetime);
    if expiry <= now.saturating_add(i64::from(margin)) {
        return Err(Refusal::TooOld);
    }
    u32::try_from(expiry).map_err(|_| Refusal::BadTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_every_length_seen_in_the_wild_are_accepted() {
        for id in [
            "0123456789abcdef0123456789abcdef",
            "1519876543210",
            "123E4567-E89B-12D3-A456-426655440000",
            "wx201410272009395522657a690389285100",
        ] {
            assert_eq!(CredentialId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn what_is_no_form_id_is_refused_with_its_reason() {
        let too_long = "x".repeat(MAX_ID + 1);
        for (text, refusal) in [
            ("", Refusal::EmptyId),
            ("the formId is a mock one", Refusal::MockFormId),
            (
                "the formId is no longer available in develop or trial version of this mini program",
                Refusal::DevelopVersion,
            ),
            ("requestFormId:fail timeout", Refusal::RequestFailed),
            (too_long.as_str(), Refusal::IdTooLong),
            ("with space", Refusal::BadCharacters),
            ("bell\u{7}", Refusal::BadCharacters),
            ("é", Refusal::BadCharacters),
        ] {
            assert_eq!(CredentialId::parse(text).unwrap_err(), refusal, "{text:?}");
        }
    }

    #[test]
    fn seven_days_count_from_the_submit() {
        let now = 1_800_000_000;
        let week = LIFETIME.as_secs() as i64;
        assert_eq!(expiry(now, now, 60), Ok((now + week) as u32));
        assert_eq!(expiry(now - week + 61, now, 60), Ok((now + 61) as u32));
        assert_eq!(expiry(now - week + 60, now, 60), Err(Refusal::TooOld));
        assert_eq!(expiry(now + 60, now, 60), Ok((now + week) as u32), "a clock that runs ahead gains nothing");
        assert_eq!(expiry(now + 61, now, 60), Err(Refusal::InTheFuture));
        assert_eq!(expiry(i64::MIN, now, 60), Err(Refusal::TooOld));
        assert_eq!(expiry(i64::MAX, now, 60), Err(Refusal::InTheFuture));
    }

    #[test]
    fn neither_users_nor_credentials_show_in_debug_output() {
        let shown = format!("{:?} {:?}", OpenId::parse("oABC").unwrap(), CredentialId::parse("f1").unwrap());
        assert_eq!(shown, "OpenId(..) CredentialId(..)");
    }

    #[test]
    fn an_app_id_can_not_break_out_of_a_key_name() {
        for text in ["a:b", "{a}", "a b", "", "é"] {
            assert!(AppId::parse(text).is_err(), "{text:?}");
        }
        assert!(AppId::parse("wx0123456789abcdef").is_ok());
    }
}
