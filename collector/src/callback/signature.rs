//! Verifies that a request to an app's callback came from WeChat.

use std::fmt;

use domain::{Malformed, visible};
use sha1_smol::Sha1;
use subtle::ConstantTimeEq as _;

/// The maximum length of a token in bytes. WeChat's console accepts 3 to 32 letters and digits.
pub const MAX_TOKEN: usize = 128;

/// The secret token that a team and WeChat share for an app's callback. `Debug` hides it, and there is no `Display`.
#[derive(Clone)]
pub struct CallbackToken(Box<str>);

impl CallbackToken {
    /// Parses a token: visible ASCII, at most [`MAX_TOKEN`] bytes.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, Malformed> {
        let text = text.into();
        visible(&text, MAX_TOKEN)?;
        Ok(Self(text))
    }

    /// Whether `signature` is WeChat's signature of `timestamp` and `nonce`: the lowercase hex SHA-1 of the token and
    /// the two, sorted and joined. All three are given as in the query of the request.
    ///
    /// A valid signature proves that its maker knew the token. It does not cover the body, and it can be used again: an
    /// attacker who records one request can send it again with another body. The path from WeChat to this service must
    /// therefore be private.
    pub fn signs(&self, timestamp: &str, nonce: &str, signature: &str) -> bool {
        let mut parts = [&*self.0, timestamp, nonce];
        parts.sort_unstable();
        let expected = Sha1::from(parts.concat()).digest().to_string();
        // Constant time: a timing difference would let an attacker guess the signature byte by byte.
        expected.as_bytes().ct_eq(signature.as_bytes()).into()
    }
}

impl fmt::Debug for CallbackToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("CallbackToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMESTAMP: &str = "1714036504";
    const NONCE: &str = "1514711492";
    const SIGNATURE: &str = "f464b24fc39322e44b38aa78f5edd27bd1441696";

    fn token(text: &str) -> CallbackToken {
        CallbackToken::parse(text).unwrap()
    }

    #[test]
    fn signature_of_wechat_is_accepted() {
        assert!(token("AAAAA").signs(TIMESTAMP, NONCE, SIGNATURE));
        assert!(
            token("AAAAA").signs(NONCE, TIMESTAMP, SIGNATURE),
            "the parts are sorted, so their order does not matter"
        );
    }

    #[test]
    fn any_other_signature_is_refused() {
        assert!(!token("AAAAB").signs(TIMESTAMP, NONCE, SIGNATURE));
        assert!(!token("AAAAA").signs("1714036505", NONCE, SIGNATURE));
        assert!(!token("AAAAA").signs(TIMESTAMP, "", SIGNATURE));
        let upper = SIGNATURE.to_uppercase();
        for signature in ["", "f464", &SIGNATURE[..39], &format!("{SIGNATURE}0"), &upper, "é"] {
            assert!(!token("AAAAA").signs(TIMESTAMP, NONCE, signature), "{signature:?}");
        }
        for place in 0..SIGNATURE.len() {
            let mut other = SIGNATURE.to_owned();
            other.replace_range(place..=place, if &other[place..=place] == "0" { "1" } else { "0" });
            assert!(!token("AAAAA").signs(TIMESTAMP, NONCE, &other), "{other}");
        }
    }

    #[test]
    fn token_is_bounded_visible_ascii_and_debug_hides_it() {
        for (text, malformed) in [
            ("", Malformed::Empty),
            ("a b", Malformed::BadCharacters),
            ("é", Malformed::BadCharacters),
            (&"x".repeat(MAX_TOKEN + 1), Malformed::TooLong(MAX_TOKEN)),
        ] {
            assert_eq!(CallbackToken::parse(text).unwrap_err(), malformed, "{text:?}");
        }
        assert_eq!(format!("{:?}", token(&"x".repeat(MAX_TOKEN))), "CallbackToken(..)");
    }
}
