//! The sandbox's clock, in unix milliseconds: the real time plus the offset from the settings.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::Settings;

pub(crate) const SECOND: u64 = 1000;

pub(crate) fn now_ms(settings: &Settings) -> u64 {
    real_ms().saturating_add(settings.clock_ahead_seconds.saturating_mul(SECOND))
}

pub(crate) fn real_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX / 2))
}

/// The day of the daily quotas. It begins at 00:00 UTC+8, as WeChat's does.
pub(crate) fn quota_day(now_ms: u64) -> u64 {
    now_ms.saturating_add(8 * 3600 * SECOND) / (24 * 3600 * SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_day_changes_at_sixteen_hours_utc() {
        let sixteen_utc = 1_767_283_200 * SECOND; // 2026-01-01T16:00:00Z
        assert_eq!(quota_day(sixteen_utc - 1) + 1, quota_day(sixteen_utc));
    }
}
