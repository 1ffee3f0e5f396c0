//! The users an app has met. Another app has other openids for the same people.

use std::collections::HashSet;
use std::sync::Arc;

#[derive(Default)]
pub(crate) struct Users(HashSet<Arc<str>>);

impl Users {
    /// Whether this user ever did anything in the app. What was met once stays known.
    pub(crate) fn know(&self, openid: &str) -> bool {
        self.0.contains(openid)
    }

    /// The one copy of this openid, for all that is kept of the user.
    pub(crate) fn meet(&mut self, openid: &str) -> Arc<str> {
        if let Some(known) = self.0.get(openid) {
            return Arc::clone(known);
        }
        let openid: Arc<str> = openid.into();
        self.0.insert(Arc::clone(&openid));
        openid
    }
}
