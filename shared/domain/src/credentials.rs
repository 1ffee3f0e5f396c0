//! Credentials, the rights to send that users grant.
//!
//! Their ids are valid by construction, and `Debug` does not show them, so that a log line cannot leak one by accident.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Malformed, TemplateId, given, visible};

/// How long WeChat accepts a form id or a prepay id, counted from the form submission or the payment.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// How far in the future a submission time may lie. The clocks of two machines differ.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// The maximum length of a credential id, in bytes. Ids from 13 digits to about 40 characters have been seen.
pub const MAX_ID: usize = 128;

/// The kind of a credential. The numbers and letters are part of the stored format; the number 3 is already used there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// From a submitted form: one message. WeChat answers a second use with 41029, which makes a resend safe.
    #[serde(rename = "f")]
    FormId = 0,
    /// From a payment: several messages. A resend cannot be distinguished from a second message.
    #[serde(rename = "p")]
    PrepayId = 1,
    /// From an accepted subscription request: messages of one template, without an expiry. WeChat does not report how
    /// many are left, so here too a resend cannot be distinguished from a second message.
    #[serde(rename = "g")]
    Grant = 2,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::FormId, Self::PrepayId, Self::Grant];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::FormId => "form_id",
            Self::PrepayId => "prepay_id",
            Self::Grant => "grant",
        }
    }
}

/// The id of a credential, as sent to WeChat. It is a right to send and never written to a log.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CredentialId(Box<str>);

/// What the payment API puts before a prepay id, in the `package` that it returns.
const PREPAY_PREFIX: &str = "prepay_id=";

/// Texts that WeChat's client library gives a mini program in place of a form id, and why each is refused.
const NO_FORM_IDS: [(&str, Refusal); 3] = [
    ("the formId is a mock one", Refusal::MockFormId),
    ("the formId is no longer available in develop or trial version", Refusal::DevelopVersion),
    ("requestFormId:fail", Refusal::RequestFailed),
];

impl CredentialId {
    /// Parses the id of a credential that a caller sends, and refuses the texts that WeChat, or a program, gives in
    /// place of one.
    ///
    /// The length is not fixed: 32 hex digits, 13 digits, 36 characters on iOS, and `wx` with 30 or more digits have
    /// all been seen.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Refusal> {
        let text = text.into();
        if let Some((_, refusal)) = NO_FORM_IDS.iter().find(|(start, _)| text.starts_with(start)) {
            return Err(*refusal);
        }
        match given(&text, MAX_ID) {
            Ok(()) => Ok(Self(text)),
            Err(Malformed::Empty) => Err(Refusal::EmptyId),
            Err(Malformed::TooLong(_)) => Err(Refusal::IdTooLong),
            Err(Malformed::NoValue(text)) => Err(Refusal::NoValue(text)),
            Err(Malformed::BadCharacters | Malformed::NotAnAppId) => Err(Refusal::BadCharacters),
        }
    }

    /// Parses a form id or prepay id. With the prefix of the payment API, which is taken off, it is a prepay id,
    /// whatever the caller took it for.
    pub fn parse_as(kind: Kind, text: impl Into<Box<str>>) -> Result<(Kind, Self), Refusal> {
        let text = text.into();
        if let Some(id) = text.strip_prefix(PREPAY_PREFIX) {
            return Ok((Kind::PrepayId, Self::parse(id)?));
        }
        Ok((kind, Self::parse(text)?))
    }

    /// Reads an id from Redis, where an older release may have stored one that [`CredentialId::parse`] refuses.
    pub fn existing(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        visible(&text, MAX_ID)?;
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<TemplateId> for CredentialId {
    /// A grant's id is its template id: WeChat identifies a grant by the template.
    fn from(template: TemplateId) -> Self {
        Self(template.as_str().into())
    }
}

impl fmt::Debug for CredentialId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("CredentialId(..)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub kind: Kind,
    pub id: CredentialId,
    /// How many more messages it permits.
    pub uses: u8,
    /// When WeChat stops accepting it, in seconds since 1970.
    pub expiry: u32,
}

/// How many messages a grant permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantUses {
    /// This many more, from 1 to [`MAX_GRANT`].
    Count(u16),
    /// Any number, until the user rejects the template (a long-term subscription).
    LongTerm,
}

/// The maximum number of messages that one grant can add.
pub const MAX_GRANT: u16 = 1000;

/// The right to send one user messages of one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub template: TemplateId,
    pub uses: GrantUses,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("openid {0}")]
    BadOpenId(Malformed),
    #[error("none of form_id, prepay_id and grant is given, or it is empty")]
    EmptyId,
    #[error("the id is longer than {MAX_ID} bytes")]
    IdTooLong,
    #[error("the id must consist of visible ASCII characters, without spaces")]
    BadCharacters,
    #[error("a mock form id: WeChat's developer tools give no real ones")]
    MockFormId,
    #[error("develop and trial versions of a mini program give no form ids")]
    DevelopVersion,
    #[error("requestFormId:fail is WeChat's error text, not a form id")]
    RequestFailed,
    #[error("the id must not be {0:?}, which programs write for a missing value")]
    NoValue(&'static str),
    #[error("obtained_at is not a valid timestamp")]
    BadTime,
    #[error("obtained_at lies in the future")]
    InTheFuture,
    #[error("obtained_at is so long ago that the credential can no longer be used")]
    TooOld,
    #[error("grant.template_id {0}")]
    BadTemplateId(Malformed),
    #[error("grant.count must be at most {MAX_GRANT}, and 0 beside unlimited")]
    BadCount,
    #[error("grant.grant_key {0}")]
    BadGrantKey(Malformed),
}

/// Returns when a credential that was obtained at `obtained` expires. All times are in seconds since 1970.
///
/// Refuses an `obtained` in the future (beyond [`CLOCK_TOLERANCE`]), and a credential that would have `margin` seconds
/// or less left.
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
    fn ids_of_every_length_that_was_seen_are_accepted() {
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
    fn invalid_form_ids_are_refused_with_their_reason() {
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
            ("undefined", Refusal::NoValue("undefined")),
            ("null", Refusal::NoValue("null")),
            ("NaN", Refusal::NoValue("NaN")),
            ("[object Object]", Refusal::NoValue("[object Object]")),
        ] {
            assert_eq!(CredentialId::parse(text).unwrap_err(), refusal, "{text:?}");
            for kind in [Kind::FormId, Kind::PrepayId] {
                assert_eq!(CredentialId::parse_as(kind, text).unwrap_err(), refusal, "{text:?}");
                let prefixed = format!("prepay_id={text}");
                assert_eq!(CredentialId::parse_as(kind, prefixed.as_str()).unwrap_err(), refusal, "{prefixed:?}");
            }
        }
    }

    #[test]
    fn prefix_of_the_payment_api_is_taken_off() {
        let id = "wx201410272009395522657a690389285100";
        for kind in [Kind::FormId, Kind::PrepayId] {
            let parsed =
                |text: &str| CredentialId::parse_as(kind, text).map(|(kind, id)| (kind, id.as_str().to_owned()));
            assert_eq!(parsed(id), Ok((kind, id.to_owned())));
            assert_eq!(parsed(&format!("prepay_id={id}")), Ok((Kind::PrepayId, id.to_owned())));
            assert_eq!(parsed(&format!("prepay_id={}", "x".repeat(MAX_ID))), Ok((Kind::PrepayId, "x".repeat(MAX_ID))));
        }
    }

    #[test]
    fn refused_id_that_an_older_release_stored_is_read_back() {
        for text in ["undefined", "null", "requestFormId:fail", "prepay_id=wx1"] {
            assert_eq!(CredentialId::existing(text).unwrap().as_str(), text);
        }
        assert_eq!(CredentialId::existing("a b").unwrap_err(), Malformed::BadCharacters);
    }

    #[test]
    fn lifetime_of_seven_days_starts_at_the_submission() {
        let now = 1_800_000_000;
        let week = LIFETIME.as_secs() as i64;
        assert_eq!(expiry(now, now, 60), Ok((now + week) as u32));
        assert_eq!(expiry(now - week + 61, now, 60), Ok((now + 61) as u32));
        assert_eq!(expiry(now - week + 60, now, 60), Err(Refusal::TooOld));
        assert_eq!(expiry(now + 60, now, 60), Ok((now + week) as u32), "a fast clock does not extend the lifetime");
        assert_eq!(expiry(now + 61, now, 60), Err(Refusal::InTheFuture));
        assert_eq!(expiry(i64::MIN, now, 60), Err(Refusal::TooOld));
        assert_eq!(expiry(i64::MAX, now, 60), Err(Refusal::InTheFuture));
    }

    #[test]
    fn debug_output_hides_credentials() {
        assert_eq!(format!("{:?}", CredentialId::parse("f1").unwrap()), "CredentialId(..)");
    }
}
