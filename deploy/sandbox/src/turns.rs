//! One `subscribe/send` at a time for a user: whose turn it is, from the moment a call has come in until it is processed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use crate::app::{App, lock};

/// The users for whom a call is under way.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashSet<String>>);

/// Whether a call may be processed.
pub(crate) enum Turn {
    /// Nothing has to wait for anything: a `template/send`, or a call that names no app or no user.
    Free,
    /// It is the only one for its user, for as long as this is held.
    Mine(#[expect(dead_code, reason = "its end is what matters")] Held),
    /// Another call was being processed when it came.
    Taken,
}

/// A turn that is given back when this ends, however the call ends: a caller may also leave while it waits.
pub(crate) struct Held {
    app: Arc<App>,
    openid: String,
}

impl Turn {
    pub(crate) fn of(app: &Arc<App>, openid: &str) -> Self {
        if lock(&app.turns.0).insert(openid.to_owned()) {
            Self::Mine(Held { app: Arc::clone(app), openid: openid.to_owned() })
        } else {
            Self::Taken
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.app.turns.0).remove(&self.openid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_one_users_of_one_app_until_it_is_given_back() {
        let (one, other) = (Arc::new(App::new("one", "s")), Arc::new(App::new("other", "s")));
        let mine = Turn::of(&one, "u");
        assert!(matches!(mine, Turn::Mine(_)));
        assert!(matches!(Turn::of(&one, "u"), Turn::Taken));
        assert!(matches!(Turn::of(&one, "v"), Turn::Mine(_)));
        assert!(matches!(Turn::of(&other, "u"), Turn::Mine(_)));
        drop(mine);
        assert!(matches!(Turn::of(&one, "u"), Turn::Mine(_)));
    }
}
