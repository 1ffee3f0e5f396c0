//! Finds the key that holds a value of the wrong type. Redis reports the error without the key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool_redis::redis::{self, Arg, Cmd, RedisError};
use futures_util::future::BoxFuture;
use tracing::error;

use super::Connections;
use crate::Error;
use crate::kinds::KeyKind;

/// How long a found key is remembered. Until then it is neither looked up nor logged again.
const REMEMBER: Duration = Duration::from_secs(600);

/// Maximum number of remembered keys.
const MOST: usize = 1000;

/// Keys that were found to hold a wrong type, with the type and the time. Only their kind is stored, since the rest of
/// a key's name must not be logged.
#[derive(Debug, Clone, Default)]
pub(super) struct WrongTypes(Arc<Mutex<HashMap<KeyKind, (String, Instant)>>>);

impl WrongTypes {
    fn known(&self, keys: &[(String, KeyKind)]) -> Option<Error> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().find_map(|(_, kind)| {
            let (holds, at) = found.get(kind)?;
            let fresh = at.elapsed() < REMEMBER;
            fresh.then(|| Error::WrongType { key: kind.clone(), found: holds.clone() })
        })
    }

    fn note(&self, kind: &KeyKind, holds: &str) {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= MOST {
            found.retain(|_, (_, at)| at.elapsed() < REMEMBER);
        }
        if found.len() < MOST && found.insert(kind.clone(), (holds.to_owned(), Instant::now())).is_none_or(old) {
            error!(key = %kind, holds, expected = kind.holds, "a key in Redis holds the wrong type: repair or delete it");
        }
    }
}

fn old((_, at): (String, Instant)) -> bool {
    at.elapsed() >= REMEMBER
}

impl Connections {
    /// Returns the error for a command that met a key of the wrong type. It looks up the key, and logs it once per
    /// [`REMEMBER`].
    pub(super) fn find_wrong_type(&self, command: &Cmd, error: Box<RedisError>) -> BoxFuture<'_, Error> {
        let keys: Vec<_> = keys_of(command).filter_map(|key| Some((key.to_owned(), KeyKind::of(key)?))).collect();
        Box::pin(async move {
            if let Some(known) = self.wrong_types.known(&keys) {
                return known;
            }
            for (key, kind) in keys {
                match self.send::<String>("TYPE", redis::cmd("TYPE").arg(&key)).await {
                    Ok(holds) if holds != "none" && holds != kind.holds => {
                        self.wrong_types.note(&kind, &holds);
                        return Error::WrongType { key: kind, found: holds };
                    }
                    _ => {}
                }
            }
            Error::Redis(error)
        })
    }
}

fn keys_of(command: &Cmd) -> impl Iterator<Item = &str> {
    let text = |argument| match argument {
        Arg::Simple(bytes) => str::from_utf8(bytes).unwrap_or_default(),
        _ => "",
    };
    let mut arguments = command.args_iter().map(text);
    let (before, count) = match arguments.next().unwrap_or_default() {
        "EVALSHA" | "EVAL" => (2, arguments.clone().nth(1).and_then(|count| count.parse().ok()).unwrap_or_default()),
        "XREADGROUP" => (arguments.clone().position(|argument| argument == "STREAMS").map_or(0, |at| at + 1), 1),
        _ => (0, 1),
    };
    arguments.skip(before).take(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_every_form_of_command() {
        let keys = |command: &mut Cmd| keys_of(command).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(keys(redis::cmd("HGET").arg("key").arg("field")), ["key"]);
        let script = |name| redis::cmd(name).arg("sha").arg(2).arg("one").arg("two").arg("argument").clone();
        assert_eq!(keys(&mut script("EVALSHA")), ["one", "two"]);
        assert_eq!(keys(&mut script("EVAL")), ["one", "two"]);
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg("g").arg("c").arg("COUNT").arg(7).arg("STREAMS").arg("key").arg(">");
        assert_eq!(keys(&mut read), ["key"]);
        assert!(keys(&mut redis::cmd("PING")).is_empty());
    }
}
