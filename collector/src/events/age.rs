//! How old an event may be. A signature does not wear out by itself, and what is known of an event is known for a time
//! only: without a bound, one that is kept and sent again each day would grant again each day.

use std::time::Duration;

use shared::credential::CLOCK_TOLERANCE;
use shared::store::credentials::KEEP_ONCE;

use super::Fault;

/// How much longer an event is known than it is accepted: the clocks of WeChat, Redis and the replicas differ.
const SLACK: Duration = Duration::from_secs(600);

/// The ages at which events are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxAge(pub Duration);

impl MaxAge {
    /// Whether what was made at `created` is accepted at `now`; both are seconds since 1970.
    pub fn check(self, created: i64, now: i64) -> Result<(), Fault> {
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        match now.saturating_sub(created) {
            age if age > seconds(self.0) => Err(Fault::TooOld),
            age if age < -seconds(CLOCK_TOLERANCE) => Err(Fault::InTheFuture),
            _ => Ok(()),
        }
    }

    /// How long it has to be known that an event came before.
    pub fn keep(self) -> Duration {
        KEEP_ONCE.max(self.0 + SLACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_accepted_up_to_its_age_and_known_for_longer() {
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
        // The latest moment at which an event is accepted that came at the earliest one.
        assert!(age.keep() > age.0 + CLOCK_TOLERANCE * 2);
        assert_eq!(MaxAge(Duration::from_secs(60)).keep(), KEEP_ONCE, "a grant key is known for a day all the same");
    }
}
