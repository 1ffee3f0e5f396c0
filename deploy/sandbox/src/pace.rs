//! Rate limit and daily quota of an app.

use crate::answer::{No, code};
use crate::clock::{SECOND, quota_day};
use crate::settings::Limits;

/// Counts the calls of an app at one sending endpoint in the current second and on the current day. Calls that are
/// refused here do not count.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    second: u64,
    in_second: u64,
    day: u64,
    in_day: u64,
}

impl Pace {
    pub(crate) fn step(&mut self, now_ms: u64, limits: &Limits) -> Result<(), No> {
        let (second, day) = (now_ms / SECOND, quota_day(now_ms));
        if second != self.second {
            (self.second, self.in_second) = (second, 0);
        }
        if day != self.day {
            (self.day, self.in_day) = (day, 0);
        }
        if limits.daily_quota > 0 && self.in_day >= limits.daily_quota {
            return Err(No::code(code::QUOTA_REACHED));
        }
        if limits.per_second > 0 && self.in_second >= limits.per_second {
            return Err(No::code(code::TOO_FAST));
        }
        self.in_second += 1;
        self.in_day += 1;
        Ok(())
    }

    /// Number of calls on the day of `now_ms`, as the daily quota counts them.
    pub(crate) fn used(&self, now_ms: u64) -> u64 {
        if quota_day(now_ms) == self.day { self.in_day } else { 0 }
    }

    pub(crate) fn reset_day(&mut self) {
        self.in_day = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIXTEEN_UTC: u64 = 1_767_283_200 * SECOND;

    fn limits(per_second: u64, daily_quota: u64) -> Limits {
        Limits { answer: code::OK, per_second, daily_quota }
    }

    fn code_of(outcome: Result<(), No>) -> i32 {
        outcome.map_or_else(|no| no.code, |()| code::OK)
    }

    #[test]
    fn quota_lasts_until_midnight_in_china() {
        let limits = limits(0, 2);
        let mut pace = Pace::default();
        let codes: Vec<i32> = (0..3).map(|_| code_of(pace.step(SIXTEEN_UTC - 1, &limits))).collect();
        assert_eq!(codes, [code::OK, code::OK, code::QUOTA_REACHED]);
        assert_eq!((pace.used(SIXTEEN_UTC - 1), pace.used(SIXTEEN_UTC)), (2, 0));
        assert_eq!(code_of(pace.step(SIXTEEN_UTC, &limits)), code::OK);
        assert_eq!(pace.used(SIXTEEN_UTC), 1);
    }

    #[test]
    fn rate_counts_within_one_second_and_refused_calls_use_no_quota() {
        let limits = limits(1, 2);
        let mut pace = Pace::default();
        let codes: Vec<i32> = [0, 1, 999, 1000, 2000].map(|ms| code_of(pace.step(SIXTEEN_UTC + ms, &limits))).into();
        assert_eq!(codes, [code::OK, code::TOO_FAST, code::TOO_FAST, code::OK, code::QUOTA_REACHED]);
    }
}
