//! The Lua scripts. Each is a file in `lua/`. A line `--- @include head/leases head/mark` names the parts that the file
//! depends on. They are put before the script, each once and after the parts that it depends on itself.

use std::sync::LazyLock;

use deadpool_redis::redis;

macro_rules! parts {
    ($($name:literal),+) => { [$(($name, include_str!(concat!("../lua/", $name, ".lua")))),+] };
}

/// The files that others include.
const PARTS: [(&str, &str); 19] = parts![
    "head/broadcast",
    "head/cap",
    "head/grants",
    "head/leases",
    "head/left",
    "head/mark",
    "head/permits",
    "head/reach",
    "head/recent",
    "head/records",
    "head/release",
    "head/rest",
    "head/stock",
    "head/table",
    "head/take",
    "head/totals",
    "head/touch",
    "head/touched",
    "head/void"
];

/// A script and the SHA-1 by which Redis identifies it.
pub(super) struct Script {
    /// The file name, which is the label in metrics.
    pub(super) file: &'static str,
    pub(super) source: String,
    pub(super) sha: String,
}

impl Script {
    fn new(file: &'static str, text: &str) -> Self {
        let mut source = String::new();
        append(&mut source, text);
        let sha = redis::Script::new(&source).get_hash().to_owned();
        Self { file, source, sha }
    }
}

/// Appends a text to a script, after those of its parts that the script does not have yet.
fn append(source: &mut String, text: &str) {
    let includes = text.lines().filter_map(|line| line.strip_prefix("--- @include ")).flat_map(str::split_whitespace);
    for include in includes {
        let part = PARTS.iter().find(|(name, _)| *name == include);
        let (_, part) = part.unwrap_or_else(|| panic!("there is no part {include}"));
        if !source.contains(part) {
            append(source, part);
        }
    }
    source.push_str(text);
    source.push('\n');
}

macro_rules! scripts {
    ($($name:ident = $file:literal;)+) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new($file, include_str!(concat!("../lua/", $file))));)+

        /// All scripts, to be loaded at start.
        pub(super) fn all() -> impl Iterator<Item = &'static Script> {
            [$(&*$name),+].into_iter()
        }
    };
}

scripts! {
    COLLECT = "collect.lua";
    VOID = "void.lua";
    LEASE = "lease.lua";
    SETTLE = "settle.lua";
    REAP = "reap.lua";
    ERASE = "erase.lua";
    SWEEP = "sweep.lua";
    BROADCAST_CREATE = "broadcast/create.lua";
    BROADCAST_MOVE = "broadcast/move.lua";
    BROADCAST_FINISH = "broadcast/finish.lua";
    BROADCAST_STREAK = "broadcast/streak.lua";
    BROADCAST_PERMIT = "broadcast/permit.lua";
    BROADCAST_ACCOUNT = "broadcast/account.lua";
    BROADCAST_QUOTA = "broadcast/quota.lua";
    BROADCAST_COUNT = "broadcast/count.lua";
    BROADCAST_PART = "broadcast/part.lua";
    BROADCAST_RECIPIENTS = "broadcast/recipients.lua";
    BROADCAST_SNAPSHOT = "broadcast/snapshot.lua";
    BROADCAST_PREVIEW = "broadcast/preview.lua";
    BROADCAST_PAGE = "broadcast/page.lua";
    BROADCAST_TAKEOVER = "broadcast/takeover.lua";
    BROADCAST_SETTLE = "broadcast/settle.lua";
    BROADCAST_LATE = "broadcast/late.lua";
    BROADCAST_CLOSE = "broadcast/close.lua";
    BROADCAST_FORGET = "broadcast/forget.lua";
    SET_ONCE = "set_once.lua";
    DROP_IF = "drop_if.lua";
}
