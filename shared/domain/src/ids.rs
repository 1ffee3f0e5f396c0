//! Apps, users, templates and requests.
//!
//! Values of these types are valid by construction: requests are parsed once, at the rpc edge, and the code behind it
//! relies on that. `Debug` shows no openid, so that a log line cannot leak one by accident.
//!
//! The door has the stricter rule: `parse` also refuses what programs write for a missing value. An older release may
//! have stored such a text, so what Redis returns, and a user who is looked up or erased, is read by `existing`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The maximum length of an openid, in bytes. WeChat's openids have 28.
pub const MAX_OPENID: usize = 64;

/// The maximum length of an app id, in bytes. WeChat's app ids have 18.
pub const MAX_APP_ID: usize = 64;

/// The maximum length of a template id, in bytes. WeChat's template ids have 43.
pub const MAX_TEMPLATE_ID: usize = 64;

/// The maximum length of a request id, in bytes.
pub const MAX_REQUEST_ID: usize = 128;

/// Texts that programs write in place of a missing value, and send as if they were an id.
const NO_VALUES: [&str; 4] = ["undefined", "null", "NaN", "[object Object]"];

/// Why a string is not a valid id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("must not be empty")]
    Empty,
    #[error("must not be longer than {0} bytes")]
    TooLong(usize),
    #[error("must consist of visible ASCII characters, without spaces")]
    BadCharacters,
    #[error("must consist of ASCII letters, digits, '_' and '-'")]
    NotAnAppId,
    #[error("must not be {0:?}, which programs write for a missing value")]
    NoValue(&'static str),
}

/// Checks the rule that all of WeChat's ids follow: visible ASCII, from one byte to `bound` bytes.
pub fn visible(text: &str, bound: usize) -> Result<(), Malformed> {
    match text {
        "" => Err(Malformed::Empty),
        _ if text.len() > bound => Err(Malformed::TooLong(bound)),
        _ if !text.bytes().all(|byte| byte.is_ascii_graphic()) => Err(Malformed::BadCharacters),
        _ => Ok(()),
    }
}

/// Checks an id that a caller sends: [`visible`], and not a text that programs write for a missing value.
pub fn given(text: &str, bound: usize) -> Result<(), Malformed> {
    match NO_VALUES.iter().find(|no_value| **no_value == text) {
        Some(no_value) => Err(Malformed::NoValue(no_value)),
        None => visible(text, bound),
    }
}

/// The app id of a mini program. It becomes part of Redis key names, so only few characters are allowed.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(Box<str>);

impl AppId {
    /// Parses an app id: letters, digits, `_` and `-`, at most [`MAX_APP_ID`] bytes.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        visible(&text, MAX_APP_ID)?;
        if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
            Ok(Self(text))
        } else {
            Err(Malformed::NotAnAppId)
        }
    }

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

/// The openid of a user of one app. It is personal data and never written to a log.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpenId(Box<str>);

impl OpenId {
    /// Parses an openid that a caller sends: visible ASCII, at most [`MAX_OPENID`] bytes, no [`Malformed::NoValue`].
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        given(&text, MAX_OPENID)?;
        Ok(Self(text))
    }

    /// Reads an openid that may be in Redis, where an older release may have stored a [`Malformed::NoValue`].
    pub fn existing(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        visible(&text, MAX_OPENID)?;
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for OpenId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("OpenId(..)")
    }
}

/// The template id of a subscription message, as WeChat's console shows it. It is neither secret nor personal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct TemplateId(Box<str>);

impl TryFrom<String> for TemplateId {
    type Error = Malformed;

    /// Reads the template of a stored broadcast.
    fn try_from(text: String) -> Result<Self, Malformed> {
        Self::existing(text)
    }
}

impl TemplateId {
    /// Parses a template id that a caller sends: visible ASCII, at most [`MAX_TEMPLATE_ID`] bytes, no
    /// [`Malformed::NoValue`].
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        given(&text, MAX_TEMPLATE_ID)?;
        Ok(Self(text))
    }

    /// Reads a template id that may be in Redis, where an older release may have stored a [`Malformed::NoValue`].
    pub fn existing(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        visible(&text, MAX_TEMPLATE_ID)?;
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id that a caller gives a message. It makes the call safe to repeat.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Box<str>);

impl RequestId {
    /// Parses a request id: visible ASCII, at most [`MAX_REQUEST_ID`] bytes.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        visible(&text, MAX_REQUEST_ID)?;
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_hides_openids() {
        assert_eq!(format!("{:?}", OpenId::parse("oABC").unwrap()), "OpenId(..)");
    }

    #[test]
    fn text_for_a_missing_value_is_refused_at_the_door_and_read_back() {
        for text in ["undefined", "null", "NaN"] {
            let refused = Malformed::NoValue(text);
            assert_eq!(OpenId::parse(text), Err(refused));
            assert_eq!(TemplateId::parse(text), Err(refused));
            assert_eq!(OpenId::existing(text).unwrap().as_str(), text);
            assert_eq!(TemplateId::existing(text).unwrap().as_str(), text);
        }
        let sentence = OpenId::parse("[object Object]").unwrap_err().to_string();
        assert_eq!(sentence, "must not be \"[object Object]\", which programs write for a missing value");
        assert_eq!(OpenId::existing("[object Object]"), Err(Malformed::BadCharacters), "no release stored a space");
        for text in ["Undefined", "nullable", "oNaN", "null0"] {
            assert!(OpenId::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn app_id_cannot_have_characters_special_in_key_names() {
        for text in ["a:b", "{a}", "a b", "", "é"] {
            assert!(AppId::parse(text).is_err(), "{text:?}");
        }
        assert!(AppId::parse("wx0123456789abcdef").is_ok());
    }
}
