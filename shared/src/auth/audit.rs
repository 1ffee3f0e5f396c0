//! Who did what that others may ask about later: events at info under the target `audit`, which is logged whatever else
//! is filtered. No openid is in them.

use tracing::info;

use super::Caller;
use crate::credential::AppId;

/// The target of these events.
pub const TARGET: &str = "audit";

/// Something was done to a broadcast. `audience` is its size as far as it is known; `everyone` tells that it goes to all
/// who can be reached.
pub fn broadcast(did: &'static str, caller: &Caller, app: &AppId, id: &str, everyone: bool, audience: Option<u64>) {
    let (caller, app) = (caller.name(), app.as_str());
    info!(target: "audit", did, caller, app, broadcast = id, everyone, audience, "audit");
}

/// All that was stored of a user is gone; it would have permitted so many messages.
pub fn erased(caller: &Caller, app: &AppId, messages: u32) {
    info!(target: "audit", did = "EraseUser", caller = caller.name(), app = app.as_str(), messages, "audit");
}
