//! The numbers of subscription messages.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock;

/// Counts up, over all apps. Begins at the nanoseconds since 1970: as large as WeChat's own, so that whoever reads them as
/// floating point loses digits here, too, and above all that an earlier sandbox gave out.
pub(crate) struct MsgIds(AtomicU64);

impl MsgIds {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(clock::real_ms().saturating_mul(1_000_000)))
    }

    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}
