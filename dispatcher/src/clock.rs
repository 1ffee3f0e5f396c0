//! The wall clock. A test can set it, since quotas end at midnight and no test can wait for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Midnight of UTC+8, when WeChat's day begins, in milliseconds after midnight of UTC.
const MIDNIGHT_MS: u64 = 16 * 3600 * 1000;

/// The wall clock; clones share their setting.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicI64>,
}

impl Clock {
    pub fn now_ms(&self) -> u64 {
        system_ms().saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed))
    }

    pub fn set_ahead(&self, ahead: Duration) {
        self.ahead_ms.store(ahead.as_millis() as i64, Ordering::Relaxed);
    }

    /// WeChat's current day, in days since 1970.
    pub fn day(&self) -> u64 {
        (self.now_ms() + DAY_MS - MIDNIGHT_MS) / DAY_MS
    }

    /// Start of WeChat's next day, in milliseconds since 1970.
    pub fn next_day_ms(&self) -> u64 {
        let now = self.now_ms();
        now + DAY_MS - (now + DAY_MS - MIDNIGHT_MS) % DAY_MS
    }
}

/// The system's clock, in milliseconds since 1970; 0 before that.
pub fn system_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_day_begins_at_16_00_utc() {
        let clock = Clock::default();
        let next = clock.next_day_ms();
        assert_eq!(next % DAY_MS, MIDNIGHT_MS);
        assert!(next > clock.now_ms() && next <= clock.now_ms() + DAY_MS);
        let day = clock.day();
        clock.set_ahead(Duration::from_millis(next - clock.now_ms() + 1000));
        assert_eq!(clock.day(), day + 1);
    }
}
