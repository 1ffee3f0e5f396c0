//! The Lua scripts: each is a file in `scripts/`, with the heads it stands on put before it.

use std::sync::LazyLock;

use deadpool_redis::redis;

/// A script and the SHA-1 that Redis knows it by.
pub(super) struct Script {
    /// Its file, by which it is known in metrics.
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
            Script::new(file, concat!($(include_str!(concat!("scripts/", $file)), "\n"),+))
        });)+

        /// All of them, to be loaded at start.
        pub(super) fn all() -> impl Iterator<Item = &'static Script> {
            [$(&*$name),+].into_iter()
        }
    };
}

scripts! {
    /// Stores credentials.
    COLLECT = "head/records.lua", "head/stock.lua", "head/cap.lua", "head/grants.lua", "collect.lua";
    /// Voids the grants of a template.
    VOID = "head/records.lua", "head/void.lua", "void.lua";
    /// Leases a credential for a message.
    LEASE = "head/records.lua", "head/stock.lua", "head/leases.lua", "head/mark.lua", "head/take.lua", "lease.lua";
    /// Ends a lease.
    SETTLE = "head/records.lua", "head/stock.lua", "head/cap.lua", "head/touch.lua", "head/grants.lua",
        "head/void.lua", "head/leases.lua", "head/mark.lua", "head/take.lua", "head/release.lua", "settle.lua";
    /// Ends leases whose owner did not come back.
    REAP = "head/records.lua", "head/stock.lua", "head/cap.lua", "head/touch.lua", "head/grants.lua", "head/void.lua",
        "head/leases.lua", "head/mark.lua", "head/release.lua", "reap.lua";
    /// Deletes a user.
    ERASE = "head/records.lua", "head/leases.lua", "erase.lua";
    /// Counts a bucket and drops what has expired.
    SWEEP = "head/records.lua", "sweep.lua";
    /// Stores a broadcast.
    BROADCAST_CREATE = "broadcast/create.lua";
    /// Moves a broadcast to another state.
    BROADCAST_MOVE = "broadcast/move.lua";
    /// Lets a task of a broadcast go.
    BROADCAST_FINISH = "broadcast/finish.lua";
    /// Counts messages refused in a row.
    BROADCAST_STREAK = "broadcast/streak.lua";
    /// Permits messages of a broadcast.
    BROADCAST_PERMIT = "broadcast/permit.lua";
    /// Tells the permits of a bucket, or gives them back.
    BROADCAST_ACCOUNT = "head/permits.lua", "broadcast/account.lua";
    /// Sets the day's quota.
    BROADCAST_QUOTA = "broadcast/quota.lua";
    /// Counts messages that had no permit.
    BROADCAST_COUNT = "broadcast/count.lua";
    /// Notes a part of the list of a broadcast.
    BROADCAST_PART = "broadcast/part.lua";
    /// Adds users to the list of a broadcast.
    BROADCAST_RECIPIENTS = "broadcast/recipients.lua";
    /// Puts users of a bucket into the audience.
    BROADCAST_SNAPSHOT = "head/records.lua", "head/reach.lua", "head/table.lua", "broadcast/snapshot.lua";
    /// Tells whom a broadcast would reach.
    BROADCAST_PREVIEW = "head/records.lua", "head/stock.lua", "head/touch.lua", "head/leases.lua",
        "head/recent.lua", "head/reach.lua", "broadcast/preview.lua";
    /// Takes users out of the audience, with a lease each.
    BROADCAST_PAGE = "head/records.lua", "head/stock.lua", "head/touch.lua", "head/leases.lua", "head/recent.lua",
        "head/mark.lua", "head/take.lua", "head/broadcast.lua", "head/table.lua", "head/permits.lua", "broadcast/page.lua";
    /// Takes over messages in flight.
    BROADCAST_TAKEOVER = "head/records.lua", "head/stock.lua", "head/leases.lua", "head/mark.lua", "head/broadcast.lua",
        "broadcast/takeover.lua";
    /// Settles messages.
    BROADCAST_SETTLE = "head/records.lua", "head/totals.lua", "head/stock.lua", "head/cap.lua", "head/touch.lua",
        "head/grants.lua", "head/void.lua", "head/leases.lua", "head/mark.lua", "head/take.lua", "head/release.lua",
        "head/broadcast.lua", "broadcast/settle.lua";
    /// Counts a delivered message as failed later.
    BROADCAST_LATE = "head/records.lua", "head/touch.lua", "head/broadcast.lua", "broadcast/late.lua";
    /// Closes a bucket.
    BROADCAST_CLOSE = "broadcast/close.lua";
    /// Removes a user from a broadcast.
    BROADCAST_FORGET = "broadcast/forget.lua";
    /// Sets what is not there.
    SET_ONCE = "set_once.lua";
    /// Compare and delete.
    DROP_IF = "drop_if.lua";
}
