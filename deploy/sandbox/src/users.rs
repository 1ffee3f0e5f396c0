//! The known users of an app. The same person has another openid in another app.

use std::collections::HashSet;
use std::sync::Arc;

#[derive(Default)]
pub(crate) struct Users(HashSet<Arc<str>>);

impl Users {
    /// Whether the user has ever acted in the app. A known user stays known.
    pub(crate) fn know(&self, openid: &str) -> bool {
        self.0.contains(openid)
    }

    /// Makes the user known. Returns the shared copy of the openid, which all records of the user use.
    pub(crate) fn meet(&mut self, openid: &str) -> Arc<str> {
        if let Some(known) = self.0.get(openid) {
            return Arc::clone(known);
        }
        let openid: Arc<str> = openid.into();
        self.0.insert(Arc::clone(&openid));
        openid
    }
}
