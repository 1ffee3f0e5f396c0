//! How many calls a second a caller may make: a bucket that holds one second's worth, one call at least.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The bucket of one caller, on this replica.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    // How many calls are left, and when that was so.
    left: Mutex<(f64, Instant)>,
}

impl Rate {
    /// A full bucket. `per_second` is more than zero, and no smaller than the callers file permits.
    pub fn new(per_second: f64) -> Self {
        Self { per_second, left: Mutex::new((per_second.max(1.0), Instant::now())) }
    }

    /// What it was made with.
    pub fn per_second(&self) -> f64 {
        self.per_second
    }

    /// Takes one call, or says how long until there is one. Who comes too early loses nothing by it.
    pub fn take(&self) -> Result<(), Duration> {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> Result<(), Duration> {
        // Two numbers that are written together: a panic elsewhere leaves them whole.
        let mut bucket = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = *bucket;
        let earned = now.saturating_duration_since(since).as_secs_f64() * self.per_second;
        let left = (left + earned).min(self.per_second.max(1.0));
        if left >= 1.0 {
            *bucket = (left - 1.0, now.max(since));
            return Ok(());
        }
        *bucket = (left, now.max(since));
        // Rounded up, so that who waits so long is not told to wait another nanosecond.
        let wait = Duration::try_from_secs_f64((1.0 - left) / self.per_second).unwrap_or(Duration::MAX);
        Err(wait.saturating_add(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_may_come_at_once_and_then_it_is_evenly_spread() {
        let (rate, start) = (Rate::new(5.0), Instant::now());
        assert!((0..5).all(|_| rate.take_at(start).is_ok()));
        let wait = rate.take_at(start).unwrap_err();
        assert!((195..=201).contains(&wait.as_millis()), "{wait:?}");
        assert_eq!(rate.take_at(start + wait), Ok(()));
        assert!(rate.take_at(start + wait).is_err());
        let later = start + Duration::from_secs(60);
        let through = (0..10).filter(|_| rate.take_at(later).is_ok()).count();
        assert_eq!(through, 5, "no more than a second's worth is saved up");
    }

    #[test]
    fn a_rate_of_next_to_nothing_is_a_long_wait_and_no_panic() {
        let (rate, start) = (Rate::new(f64::MIN_POSITIVE), Instant::now());
        assert_eq!(rate.take_at(start), Ok(()));
        assert_eq!(rate.take_at(start), Err(Duration::MAX));
    }

    #[test]
    fn less_than_one_a_second_still_lets_one_through() {
        let (rate, start) = (Rate::new(0.1), Instant::now());
        assert_eq!(rate.take_at(start), Ok(()));
        assert!((9..=10).contains(&rate.take_at(start).unwrap_err().as_secs()));
        assert_eq!(rate.take_at(start + Duration::from_secs(11)), Ok(()));
    }
}
