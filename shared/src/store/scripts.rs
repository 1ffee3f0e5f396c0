//! The Lua scripts: each is a file in `scripts/`, with the heads it stands on put before it.

use std::sync::LazyLock;

use deadpool_redis::redis;

/// A script and the SHA-1 that Redis knows it by.
pub(super) struct Script {
    pub(super) source: &'static str,
    pub(super) sha: String,
}

impl Script {
    fn new(source: &'static str) -> Self {
        Self { source, sha: redis::Script::new(source).get_hash().to_owned() }
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $($file:literal),+;)+) => {
        $($(#[$doc])*
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!($(include_str!(concat!("scripts/", $file)), "\n"),+)));)+

        /// All of them, to be loaded at start.
        pub(super) fn all() -> impl Iterator<Item = &'static Script> {
            [$(&*$name),+].into_iter()
        }
    };
}

scripts! {
    /// Stores credentials.
    COLLECT = "head/records.lua", "head/stock.lua", "collect.lua";
    /// Leases a credential for a message.
    LEASE = "head/records.lua", "head/leases.lua", "head/take.lua", "lease.lua";
    /// Ends a lease.
    SETTLE = "head/records.lua", "head/stock.lua", "head/touch.lua", "head/leases.lua", "head/take.lua",
        "head/release.lua", "settle.lua";
    /// Ends leases whose owner did not come back.
    REAP = "head/records.lua", "head/stock.lua", "head/touch.lua", "head/leases.lua", "head/release.lua", "reap.lua";
    /// Deletes a user.
    ERASE = "head/records.lua", "head/leases.lua", "erase.lua";
    /// Counts a bucket and drops what has expired.
    SWEEP = "head/records.lua", "sweep.lua";
    /// Compare and delete.
    DROP_IF = "drop_if.lua";
}
