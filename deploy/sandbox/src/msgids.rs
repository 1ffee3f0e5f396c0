//! Message ids of subscription messages.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock;

/// Counter over all apps. It starts at the nanoseconds since 1970. So ids are as large as WeChat's own, a caller that
/// parses them as floating point loses digits here too, and they are greater than those of an earlier sandbox.
pub(crate) struct MsgIds(AtomicU64);

impl MsgIds {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(clock::real_ms().saturating_mul(1_000_000)))
    }

    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}
