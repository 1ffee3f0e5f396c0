//! The maximum age of an event. A signature never expires, and dedup keys of events are kept for a limited time only.
//! Without a maximum age, an attacker could record one event and replay it every day, and it would add a grant each
//! time.

use std::time::Duration;

use domain::CLOCK_TOLERANCE;
use store::retention::KEEP_ONCE;

use super::Fault;

/// How much longer the dedup key of an event is kept than the event is accepted, since the clocks of WeChat, Redis and
/// the replicas differ.
const SLACK: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxAge(pub Duration);

impl MaxAge {
    /// Checks whether an event that was created at `created` is accepted at `now`. Both are Unix times in seconds.
    pub fn check(self, created: i64, now: i64) -> Result<(), Fault> {
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        match now.saturating_sub(created) {
            age if age > seconds(self.0) => Err(Fault::TooOld),
            age if age < -seconds(CLOCK_TOLERANCE) => Err(Fault::InTheFuture),
            _ => Ok(()),
        }
    }

    /// How long the dedup key of an event must be kept.
    pub fn keep(self) -> Duration {
        KEEP_ONCE.max(self.0 + SLACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dedup_key_outlives_the_age_at_which_an_event_is_accepted() {
        let (age, now) = (MaxAge(Duration::from_secs(24 * 3600)), 1_800_000_000);
        for accepted in [now, now + 60, now - 24 * 3600] {
            assert_eq!(age.check(accepted, now), Ok(()), "{accepted}");
        }
        for (refused, fault) in [
            (now - 24 * 3600 - 1, Fault::TooOld),
            (0, Fault::TooOld),
            (i64::MIN, Fault::TooOld),
            (now + 61, Fault::InTheFuture),
            (i64::MAX, Fault::InTheFuture),
        ] {
            assert_eq!(age.check(refused, now), Err(fault), "{refused}");
        }
        // From the earliest to the latest moment at which the same event is accepted.
        assert!(age.keep() > age.0 + CLOCK_TOLERANCE * 2);
        assert_eq!(MaxAge(Duration::from_secs(60)).keep(), KEEP_ONCE, "a grant key is kept for at least a day");
    }
}
