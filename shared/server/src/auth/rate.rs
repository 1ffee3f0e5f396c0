//! Rate limit of a caller: a token bucket that holds the calls of one second, but at least one call.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The token bucket of one caller on this replica.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    // The number of calls left, and the time of that number.
    left: Mutex<(f64, Instant)>,
}

impl Rate {
    /// Creates a full bucket. `per_second` must be greater than zero, and at least the minimum of the callers file.
    pub fn new(per_second: f64) -> Self {
        Self { per_second, left: Mutex::new((per_second.max(1.0), Instant::now())) }
    }

    pub fn per_second(&self) -> f64 {
        self.per_second
    }

    /// Takes one call. If the bucket is empty, returns how long to wait until a call is available. A failed attempt
    /// costs nothing.
    pub fn take(&self) -> Result<(), Duration> {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> Result<(), Duration> {
        // The two numbers are written together, so they are consistent also after a panic elsewhere.
        let mut bucket = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = *bucket;
        let earned = now.saturating_duration_since(since).as_secs_f64() * self.per_second;
        let left = (left + earned).min(self.per_second.max(1.0));
        if left >= 1.0 {
            *bucket = (left - 1.0, now.max(since));
            return Ok(());
        }
        *bucket = (left, now.max(since));
        // Rounded up, so that a caller that waited this long does not have to wait another nanosecond.
        let wait = Duration::try_from_secs_f64((1.0 - left) / self.per_second).unwrap_or(Duration::MAX);
        Err(wait.saturating_add(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_one_second_may_burst_and_then_spread_evenly() {
        let (rate, start) = (Rate::new(5.0), Instant::now());
        assert!((0..5).all(|_| rate.take_at(start).is_ok()));
        let wait = rate.take_at(start).unwrap_err();
        assert!((195..=201).contains(&wait.as_millis()), "{wait:?}");
        assert_eq!(rate.take_at(start + wait), Ok(()));
        assert!(rate.take_at(start + wait).is_err());
        let later = start + Duration::from_secs(60);
        let through = (0..10).filter(|_| rate.take_at(later).is_ok()).count();
        assert_eq!(through, 5, "the bucket holds at most the calls of one second");
    }

    #[test]
    fn tiny_rate_gives_a_long_wait_and_no_panic() {
        let (rate, start) = (Rate::new(f64::MIN_POSITIVE), Instant::now());
        assert_eq!(rate.take_at(start), Ok(()));
        assert_eq!(rate.take_at(start), Err(Duration::MAX));
    }

    #[test]
    fn rate_below_one_per_second_still_permits_a_call() {
        let (rate, start) = (Rate::new(0.1), Instant::now());
        assert_eq!(rate.take_at(start), Ok(()));
        assert!((9..=10).contains(&rate.take_at(start).unwrap_err().as_secs()));
        assert_eq!(rate.take_at(start + Duration::from_secs(11)), Ok(()));
    }
}
