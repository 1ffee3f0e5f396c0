//! Which key it is that holds another type of value than is stored there. Redis does not say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool_redis::redis::{self, Arg, Cmd, RedisError};
use futures_util::future::BoxFuture;
use tracing::error;

use super::Connections;
use crate::store::Error;
use crate::store::kinds::KeyKind;

/// How long a key that was found is remembered: until then it is not looked for and not logged again.
const REMEMBER: Duration = Duration::from_secs(600);

/// How many are remembered.
const MOST: usize = 1000;

/// Keys that were found to hold a wrong type, and when. They are named by their kind: what else is in their names is not
/// for the log.
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
    /// The error of a command that met a key of another type: the key is looked for, and logged once for a while.
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

/// The keys that a command names.
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
    fn the_keys_of_every_form_of_command_are_found() {
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
