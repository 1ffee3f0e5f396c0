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

/// The calendar month of UTC+8, as a number that is another one in each month.
pub(crate) fn month(now_ms: u64) -> u64 {
    // Years that begin with March have the leap day at their end, so months begin at days that a formula gives. Day 0 is
    // 1970-01-01, which is day 719468 from 0000-03-01. A cycle of 400 years has 146097 days.
    let days = quota_day(now_ms).saturating_add(719_468);
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    (cycle * 400 + year) * 12 + (5 * in_year + 2) / 153
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn month_changes_on_the_first_day_in_china() {
        // 2026-01-01, 2026-02-01, 2026-03-01, 2028-02-29, 2028-03-01, all at 00:00 UTC+8
        for (midnight, changes) in [
            (1_767_196_800, true),
            (1_769_875_200, true),
            (1_772_294_400, true),
            (1_835_366_400, false),
            (1_835_452_800, true),
        ] {
            let midnight = midnight * SECOND;
            assert_eq!(month(midnight), month(midnight - 1) + u64::from(changes), "{midnight}");
        }
    }

    #[test]
    fn quota_day_changes_at_sixteen_hours_utc() {
        let sixteen_utc = 1_767_283_200 * SECOND; // 2026-01-01T16:00:00Z
        assert_eq!(quota_day(sixteen_utc - 1) + 1, quota_day(sixteen_utc));
    }
}
