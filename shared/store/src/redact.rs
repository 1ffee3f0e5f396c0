//! Redacts the texts of errors from Redis. The library's texts may quote commands and replies, which contain users,
//! credentials and access tokens. They are therefore truncated or replaced before they are printed.

use std::fmt;

use deadpool_redis::PoolError;
use deadpool_redis::redis::{ErrorKind, ParsingError, RedisError};

use super::Error;

/// From here on, Redis quotes the command.
const QUOTES: &str = ", with args beginning with";

/// Replaces the library's text about a reply that could not be parsed, because that text quotes the whole reply.
const STRANGE: &str = "a reply of an unexpected type";

/// The part of a Redis error's text that may be printed.
pub(super) struct Redacted<'a>(pub(super) &'a RedisError);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => out.write_str(STRANGE),
            _ => {
                let words = self.0.to_string();
                out.write_str(words.split_once(QUOTES).map_or(words.as_str(), |(words, _)| words))
            }
        }
    }
}

/// Whether a command failed because a key holds a value of another type. Before Redis 7, a script reports this with
/// another error code.
pub(super) fn is_wrong_type(error: &RedisError) -> bool {
    const CODE: &str = "WRONGTYPE";
    error.code() == Some(CODE)
        || (error.code() == Some("ERR") && error.detail().is_some_and(|words| words.contains(CODE)))
}

pub(super) fn no_connection(error: &PoolError) -> Error {
    match error {
        PoolError::Backend(error) => Error::Unavailable(Redacted(error).to_string()),
        other => Error::Unavailable(other.to_string()),
    }
}

impl From<ParsingError> for Error {
    fn from(_: ParsingError) -> Self {
        Self::Corrupt(STRANGE.into())
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Corrupt(format!("invalid JSON ({:?} error at column {})", error.classify(), error.column()))
    }
}

/// The error for a reply that no script of this release gives. `reply` is a word of the reply, or describes the fault.
pub(super) fn unexpected(reply: &str) -> Error {
    let harmless = reply.len() <= 40 && reply.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b' ');
    Error::Corrupt(format!("unexpected script reply {:?}", if harmless { reply } else { "(redacted)" }))
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::{FromRedisValue as _, ServerErrorKind, Value, make_extension_error};

    use super::*;

    #[test]
    fn text_of_a_redis_error_omits_the_command_arguments() {
        let words = "unknown command 'EVALSHA', with args beginning with: 'cafe' '4' 'formid:oUser' ";
        for error in [
            RedisError::from((ErrorKind::Server(ServerErrorKind::ResponseError), "An error", words.to_owned())),
            make_extension_error("ERR".into(), Some(words.into())),
        ] {
            let error = Error::from(error).to_string();
            assert!(error.contains("unknown command 'EVALSHA'") && !error.contains("oUser"), "{error}");
        }
    }

    #[test]
    fn text_of_a_parse_error_omits_the_value() {
        let value = || Value::Array(vec![Value::BulkString(b"oUser".to_vec())]);
        let parsing = u16::from_redis_value(value()).unwrap_err();
        assert!(parsing.to_string().contains("oUser"), "the library no longer quotes the value: {parsing}");
        let redis = RedisError::from(u16::from_redis_value(value()).unwrap_err());
        let json = serde_json::from_str::<u16>("\"oUser\"").unwrap_err();
        for error in [Error::from(parsing), Error::from(redis), Error::from(json), unexpected("oUser")] {
            assert!(!error.to_string().contains("oUser"), "{error}");
        }
        assert!(unexpected("a truncated lease").to_string().contains("truncated"));
    }
}
