//! What is said of errors that have to do with Redis. Their own words may quote what was asked or answered, and that is
//! users, credentials and access tokens: so they are cut short, or replaced, before anything can print them.

use std::fmt;

use deadpool_redis::PoolError;
use deadpool_redis::redis::{ErrorKind, ParsingError, RedisError};

use super::Error;

/// From here on, Redis quotes what it was asked to do.
const QUOTES: &str = ", with args beginning with";

/// An answer that its reader made nothing of; the library's error has all of it.
const STRANGE: &str = "an answer of another kind than was expected";

/// The words of a Redis error that may be printed.
pub(super) struct Told<'a>(pub(super) &'a RedisError);

impl fmt::Display for Told<'_> {
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

/// Whether a command met a key with a value of another type. Before Redis 7 a script answers with a code of its own.
pub(super) fn is_wrong_type(error: &RedisError) -> bool {
    const CODE: &str = "WRONGTYPE";
    error.code() == Some(CODE)
        || (error.code() == Some("ERR") && error.detail().is_some_and(|words| words.contains(CODE)))
}

/// Why there is no connection.
pub(super) fn no_connection(error: &PoolError) -> Error {
    match error {
        PoolError::Backend(error) => not_open(error),
        other => Error::Unavailable(other.to_string()),
    }
}

/// The same where no pool is asked for one.
pub(super) fn not_open(error: &RedisError) -> Error {
    Error::Unavailable(Told(error).to_string())
}

impl From<ParsingError> for Error {
    fn from(_: ParsingError) -> Self {
        Self::Corrupt(STRANGE.into())
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Corrupt(format!("JSON of another kind ({:?}, at column {})", error.classify(), error.column()))
    }
}

/// A reply that no script of this release gives: one of its words, or what is wrong with it.
pub(super) fn unexpected(reply: &str) -> Error {
    let harmless = reply.len() <= 40 && reply.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b' ');
    Error::Corrupt(format!("a script answered {:?}", if harmless { reply } else { "something else" }))
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::{FromRedisValue as _, ServerErrorKind, Value, make_extension_error};

    use super::*;

    #[test]
    fn what_redis_was_asked_to_do_is_not_repeated() {
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
    fn what_was_read_is_not_repeated() {
        let value = || Value::Array(vec![Value::BulkString(b"oUser".to_vec())]);
        let parsing = u16::from_redis_value(value()).unwrap_err();
        assert!(parsing.to_string().contains("oUser"), "the library is discreet by now: {parsing}");
        let redis = RedisError::from(u16::from_redis_value(value()).unwrap_err());
        let json = serde_json::from_str::<u16>("\"oUser\"").unwrap_err();
        for error in [Error::from(parsing), Error::from(redis), Error::from(json), unexpected("oUser")] {
            assert!(!error.to_string().contains("oUser"), "{error}");
        }
        assert!(unexpected("a lease that is cut off").to_string().contains("cut off"));
    }
}
