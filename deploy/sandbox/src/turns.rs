//! One `subscribe/send` at a time for a user, from the moment the call arrives until it is processed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// The users with a call in progress.
#[derive(Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<HashSet<String>>>);

/// Whether a call may be processed.
pub(crate) enum Turn {
    /// The call needs no turn: a `template/send`, or a call without a known app or user.
    Free,
    /// The call is the only one for its user while this value is held.
    Mine(#[expect(dead_code, reason = "held only for its drop")] Held),
    /// Another call for the user was in progress when this one arrived.
    Taken,
}

/// A turn. Dropping it gives it back, however the call ends: a caller may also disconnect while it waits.
pub(crate) struct Held {
    turns: Turns,
    openid: String,
}

impl Turn {
    /// Takes the turn of a user of the app that `turns` belong to.
    pub(crate) fn of(turns: &Turns, openid: &str) -> Self {
        if lock(&turns.0).insert(openid.to_owned()) {
            Self::Mine(Held { turns: turns.clone(), openid: openid.to_owned() })
        } else {
            Self::Taken
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.turns.0).remove(&self.openid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_is_exclusive_for_a_user_of_an_app_until_given_back() {
        let (one, other) = (Turns::default(), Turns::default());
        let mine = Turn::of(&one, "u");
        assert!(matches!(mine, Turn::Mine(_)));
        assert!(matches!(Turn::of(&one, "u"), Turn::Taken));
        assert!(matches!(Turn::of(&one, "v"), Turn::Mine(_)));
        assert!(matches!(Turn::of(&other, "u"), Turn::Mine(_)));
        drop(mine);
        assert!(matches!(Turn::of(&one, "u"), Turn::Mine(_)));
    }
}
