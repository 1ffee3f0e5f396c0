//! The Lua scripts. Each is a file in `scripts/`; the heads that it depends on are put before it.

use std::sync::LazyLock;

use deadpool_redis::redis;

/// A script and the SHA-1 by which Redis identifies it.
pub(super) struct Script {
    /// The file name, which is the label in metrics.
    pub(super) file: &'static str,
    pub(super) source: &'static str,
    pub(super) sha: String,
}

impl Script {
    fn new(file: &'static str, source: &'static str) -> Self {
        Self { file, source, sha: redis::Script::new(source).get_hash().to_owned() }
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $($file:literal),+;)+) => {
        $($(#[$doc])*
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            // The script itself comes last, after its heads.
            let [.., file] = [$($file),+];
            Script::new(file, concat!($(include_str!(concat!("../lua/", $file)), "\n"),+))
        });)+

        /// All scripts, to be loaded at start.
        pub(super) fn all() -> impl Iterator<Item = &'static Script> {
            [$(&*$name),+].into_iter()
        }
    };
}

scripts! {
    /// Stores credentials.
    COLLECT = "head/records.lua", "head/stock.lua", "head/cap.lua", "head/grants.lua", "collect.lua";
    /// Revokes the grants of a template.
    VOID = "head/records.lua", "head/void.lua", "void.lua";
    /// Leases a credential for a message.
    LEASE = "head/records.lua", "head/stock.lua", "head/leases.lua", "head/mark.lua", "head/take.lua", "lease.lua";
    /// Settles a lease.
    SETTLE = "head/records.lua", "head/stock.lua", "head/cap.lua", "head/touch.lua", "head/grants.lua",
        "head/void.lua", "head/leases.lua", "head/mark.lua", "head/take.lua", "head/release.lua", "settle.lua";
    /// Ends leases whose owner did not settle them.
    REAP = "head/records.lua", "head/stock.lua", "head/cap.lua", "head/touch.lua", "head/grants.lua", "head/void.lua",
        "head/leases.lua", "head/mark.lua", "head/release.lua", "reap.lua";
    /// Deletes a user.
    ERASE = "head/records.lua", "head/leases.lua", "erase.lua";
    /// Counts a bucket and drops expired credentials.
    SWEEP = "head/records.lua", "sweep.lua";
    /// Stores a broadcast.
    BROADCAST_CREATE = "broadcast/create.lua";
    /// Moves a broadcast to another state.
    BROADCAST_MOVE = "broadcast/move.lua";
    /// Finishes or releases a task of a broadcast.
    BROADCAST_FINISH = "broadcast/finish.lua";
    /// Counts consecutive messages that were refused for their content.
    BROADCAST_STREAK = "broadcast/streak.lua";
    /// Grants permits for messages of a broadcast.
    BROADCAST_PERMIT = "broadcast/permit.lua";
    /// Reads the permits of a bucket, or gives the unused ones back.
    BROADCAST_ACCOUNT = "head/permits.lua", "broadcast/account.lua";
    /// Sets the quota of a day.
    BROADCAST_QUOTA = "broadcast/quota.lua";
    /// Counts messages that were sent without a permit.
    BROADCAST_COUNT = "broadcast/count.lua";
    /// Records that a bucket holds a part of the recipient list.
    BROADCAST_PART = "broadcast/part.lua";
    /// Adds users to the recipient list of a broadcast.
    BROADCAST_RECIPIENTS = "broadcast/recipients.lua";
    /// Adds users of a bucket to the audience.
    BROADCAST_SNAPSHOT = "head/records.lua", "head/reach.lua", "head/table.lua", "broadcast/snapshot.lua";
    /// Counts the users whom a broadcast would reach.
    BROADCAST_PREVIEW = "head/records.lua", "head/stock.lua", "head/touch.lua", "head/leases.lua",
        "head/recent.lua", "head/reach.lua", "broadcast/preview.lua";
    /// Takes users out of the audience and leases a credential for each.
    BROADCAST_PAGE = "head/records.lua", "head/stock.lua", "head/touch.lua", "head/leases.lua", "head/recent.lua",
        "head/mark.lua", "head/take.lua", "head/broadcast.lua", "head/table.lua", "head/permits.lua", "broadcast/page.lua";
    /// Takes over messages in flight.
    BROADCAST_TAKEOVER = "head/records.lua", "head/stock.lua", "head/leases.lua", "head/mark.lua", "head/broadcast.lua",
        "broadcast/takeover.lua";
    /// Settles messages of a broadcast.
    BROADCAST_SETTLE = "head/records.lua", "head/totals.lua", "head/stock.lua", "head/cap.lua", "head/touch.lua",
        "head/grants.lua", "head/void.lua", "head/leases.lua", "head/mark.lua", "head/take.lua", "head/release.lua",
        "head/broadcast.lua", "broadcast/settle.lua";
    /// Counts a delivered message as failed.
    BROADCAST_LATE = "head/records.lua", "head/touch.lua", "head/broadcast.lua", "broadcast/late.lua";
    /// Closes a bucket of a broadcast.
    BROADCAST_CLOSE = "broadcast/close.lua";
    /// Removes a user from a broadcast.
    BROADCAST_FORGET = "broadcast/forget.lua";
    /// Sets a key that does not exist.
    SET_ONCE = "set_once.lua";
    /// Deletes a key that holds the given value.
    DROP_IF = "drop_if.lua";
}
