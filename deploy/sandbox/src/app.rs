//! One mini program: its secret, and behind one lock everything that a send changes together.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::answer::{No, code};
use crate::book::Book;
use crate::clock::{SECOND, quota_day};
use crate::message::{Draft, Fingerprints};
use crate::rights::Rights;
use crate::{Books, Settings};

pub(crate) struct App {
    pub(crate) id: String,
    secret: Mutex<String>,
    ledger: Mutex<Ledger>,
}

/// Rights and book share one lock, so that no reader ever sees an id spent without its delivery, or the reverse.
/// It is held for microseconds and never across an await.
pub(crate) struct Ledger {
    pub(crate) rights: Rights,
    pub(crate) book: Book,
    pub(crate) pace: Pace,
}

/// A poisoned lock only means that another call panicked; the sums it guards are still the best there are.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    pub(crate) fn new(id: &str, secret: &str) -> Self {
        let ledger = Ledger { rights: Rights::default(), book: Book::new(Some(id.to_owned())), pace: Pace::default() };
        Self { id: id.to_owned(), secret: Mutex::new(secret.to_owned()), ledger: Mutex::new(ledger) }
    }

    pub(crate) fn has_secret(&self, secret: &str) -> bool {
        *lock(&self.secret) == secret
    }

    pub(crate) fn set_secret(&self, secret: &str) {
        secret.clone_into(&mut lock(&self.secret));
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    pub(crate) fn sums(&self) -> Books {
        let ledger = self.ledger();
        Books { ids: ledger.rights.ids, uses: ledger.rights.uses, ..ledger.book.sums() }
    }

    /// A send with a good token, decided and booked. The checks run in WeChat's order.
    pub(crate) fn send(
        &self,
        draft: Result<Draft, No>,
        prints: &Fingerprints,
        now_ms: u64,
        settings: &Settings,
    ) -> Result<(), No> {
        let outcome = self.decide(draft, prints, now_ms, settings);
        if let Err(no) = &outcome {
            self.ledger().book.answered(no.code);
        }
        outcome
    }

    fn decide(
        &self,
        draft: Result<Draft, No>,
        prints: &Fingerprints,
        now_ms: u64,
        settings: &Settings,
    ) -> Result<(), No> {
        let draft = {
            let mut ledger = self.ledger();
            if settings.answer != code::OK {
                return Err(No::code(settings.answer));
            }
            ledger.pace.step(now_ms, settings)?;
            let draft = draft?;
            if !draft.touser.as_deref().is_some_and(|openid| ledger.rights.knows(openid)) {
                return Err(No::code(code::OPENID_UNKNOWN));
            }
            draft
        };
        // Outside the lock: this is most of the work. A user once known stays known.
        let message = draft.check(settings)?;
        let fingerprint = prints.of(&message);

        let mut ledger = self.ledger();
        let kind = ledger.rights.spend(&message.form_id, &message.openid, now_ms, settings)?;
        ledger.book.deliver(&self.id, message, fingerprint, kind, now_ms, settings);
        Ok(())
    }
}

/// How much an app has called in this second and on this day. Calls that are refused here count for neither.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    second: u64,
    in_second: u64,
    day: u64,
    in_day: u64,
}

impl Pace {
    fn step(&mut self, now_ms: u64, settings: &Settings) -> Result<(), No> {
        let (second, day) = (now_ms / SECOND, quota_day(now_ms));
        if second != self.second {
            (self.second, self.in_second) = (second, 0);
        }
        if day != self.day {
            (self.day, self.in_day) = (day, 0);
        }
        if settings.daily_quota > 0 && self.in_day >= settings.daily_quota {
            return Err(No::code(code::QUOTA_REACHED));
        }
        if settings.per_second > 0 && self.in_second >= settings.per_second {
            return Err(No::code(code::TOO_FAST));
        }
        self.in_second += 1;
        self.in_day += 1;
        Ok(())
    }

    /// Calls so far on the day of this moment, as [`Settings::daily_quota`] counts them.
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

    fn code_of(outcome: Result<(), No>) -> i32 {
        outcome.map_or_else(|no| no.code, |()| code::OK)
    }

    #[test]
    fn a_quota_lasts_until_midnight_in_china() {
        let settings = Settings { daily_quota: 2, ..Settings::default() };
        let mut pace = Pace::default();
        let codes: Vec<i32> = (0..3).map(|_| code_of(pace.step(SIXTEEN_UTC - 1, &settings))).collect();
        assert_eq!(codes, [code::OK, code::OK, code::QUOTA_REACHED]);
        assert_eq!((pace.used(SIXTEEN_UTC - 1), pace.used(SIXTEEN_UTC)), (2, 0));
        assert_eq!(code_of(pace.step(SIXTEEN_UTC, &settings)), code::OK);
        assert_eq!(pace.used(SIXTEEN_UTC), 1);
    }

    #[test]
    fn a_rate_counts_within_one_second_and_what_it_refuses_costs_no_quota() {
        let settings = Settings { per_second: 1, daily_quota: 2, ..Settings::default() };
        let mut pace = Pace::default();
        let codes: Vec<i32> = [0, 1, 999, 1000, 2000].map(|ms| code_of(pace.step(SIXTEEN_UTC + ms, &settings))).into();
        assert_eq!(codes, [code::OK, code::TOO_FAST, code::TOO_FAST, code::OK, code::QUOTA_REACHED]);
    }
}
