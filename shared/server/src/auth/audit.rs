//! Audit log: who did what. Events are logged at level info under the target `audit`, independently of the other log
//! filters. They contain no openid.

use tracing::info;

use super::Caller;
use domain::AppId;

/// Log target of the audit events.
pub const TARGET: &str = "audit";

/// Logs an operation on a broadcast. `audience` is the size of the audience, if it is known. `everyone` is true if the
/// broadcast goes to every reachable user of the app.
pub fn broadcast(did: &'static str, caller: &Caller, app: &AppId, id: &str, everyone: bool, audience: Option<u64>) {
    let (caller, app) = (caller.name(), app.as_str());
    info!(target: "audit", did, caller, app, broadcast = id, everyone, audience, "audit");
}

/// Logs that a stop of an app was lifted. `scope` is what it stopped, `errcode` WeChat's reason for it.
pub fn lifted(caller: &Caller, app: &AppId, scope: &str, errcode: i32) {
    info!(target: "audit", did = "LiftStop", caller = caller.name(), app = app.as_str(), scope, errcode, "audit");
}

/// Logs that all data of a user was erased, by EraseUser or by an event of WeChat. `messages` is how many messages the
/// erased credentials permitted.
pub fn erased(did: &'static str, caller: &Caller, app: &AppId, messages: u32) {
    info!(target: "audit", did, caller = caller.name(), app = app.as_str(), messages, "audit");
}
