//! Decides the next step after each answer of WeChat, so that a message is delivered only once. All functions are pure,
//! so that every case can be tested.
//!
//! A form id works once, so it serves as its own idempotency key. If an answer is lost, the same message is sent again
//! with the same form id, never with another one. In that case errcode 0 means that the message is delivered now, 41029
//! that it was delivered before, and 41028 that it was never delivered. As long as the outcome is unknown, the form id
//! stays reserved for its message.
//!
//! This does not work for the other kinds of credentials. A prepay id permits several messages, and WeChat does not
//! report the balance of a grant. If an answer is lost for one of these kinds, the use counts as spent, unless the
//! caller allows a duplicate with `retry_unknown`.

use std::time::Duration;

use domain::Kind;

use crate::wechat::errcode::Meaning;

/// Some of WeChat's servers may not know a prepay id that is younger than this, so 41028 does not prove that it is
/// wrong. Users report a delay of about 10 seconds.
pub const YOUNG: Duration = Duration::from_secs(12);

/// An order may be paid until this time after its prepay id was made. WeChat answers 41028 until then.
pub const UNPAID: Duration = Duration::from_secs(2 * 3600);

/// The state of a message and its credential before an attempt's result is known.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    pub kind: Kind,
    /// An earlier attempt of this message with this credential was not answered: it may have been delivered.
    pub in_doubt: bool,
    /// An earlier message may have used the credential, and ended with its outcome unknown.
    pub suspect: bool,
    /// Time since the user handed out the credential.
    pub age: Duration,
    /// The caller allows a duplicate if the outcome is unknown.
    pub retry_unknown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    Answered(Meaning),
    NotSent,
    Unanswered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Delivered; the use is spent.
    Delivered,
    /// The outcome is unknown; the use counts as spent.
    Unknown,
    /// The outcome is unknown, and the credential is unusable.
    UnknownAndDead,
    /// The credential is unusable and the message was not delivered: discard it and take the next.
    NextCredential,
    /// The credential is not spent. WeChat refuses the message or its user permanently.
    Refused,
    /// Like [`Step::Refused`], but perhaps only for now: the user's grants of the template rest, or are revoked if they
    /// have rested before.
    GrantRefused,
    /// WeChat does not know the prepay id, perhaps because the user has not paid yet: let it rest and take the next.
    RestCredential,
    /// The credential is not spent. WeChat stopped the app or one of its credential sources.
    Stopped,
    /// Try again with the same credential. When no attempts are left, see [`Situation::exhausted`].
    Again(Pause),
}

/// Reason for a pause before the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    Backoff,
    /// Exponential backoff, and the app's other sends wait too.
    SlowDown,
    /// Until the prepay id has reached the age [`YOUNG`].
    Young,
    /// No pause: a new access token is needed.
    NewToken,
}

/// What to do when no attempts are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The message was not delivered; the credential is not spent.
    NotDelivered,
    /// The outcome is unknown; the form id stays reserved for the message.
    InDoubt,
    /// The outcome is unknown; the use counts as spent.
    Unknown,
}

impl Situation {
    #[must_use]
    pub fn after(self, attempt: Attempt) -> Self {
        Self { in_doubt: self.in_doubt || attempt == Attempt::Unanswered, ..self }
    }

    /// Returns what to do after an attempt. `self` is the situation before it.
    pub fn step(self, attempt: Attempt) -> Step {
        let meaning = match attempt {
            Attempt::NotSent => return Step::Again(Pause::Backoff),
            Attempt::Unanswered => {
                return if self.kind == Kind::FormId || self.retry_unknown {
                    Step::Again(Pause::Backoff)
                } else {
                    Step::Unknown
                };
            }
            Attempt::Answered(meaning) => meaning,
        };
        match meaning {
            Meaning::Delivered => Step::Delivered,
            Meaning::Busy | Meaning::OneAtATime => Step::Again(Pause::Backoff),
            Meaning::RateReached => Step::Again(Pause::SlowDown),
            Meaning::TokenInvalid | Meaning::TokenMissing => Step::Again(Pause::NewToken),
            Meaning::CredentialWrong => match self.kind {
                Kind::PrepayId if self.age < YOUNG => Step::Again(Pause::Young),
                // The other uses stay in stock: the next message finds out whether the prepay id is valid.
                Kind::PrepayId if self.age < UNPAID && self.in_doubt => Step::Unknown,
                Kind::PrepayId if self.age < UNPAID => Step::RestCredential,
                Kind::PrepayId if self.in_doubt => Step::UnknownAndDead,
                _ => Step::NextCredential,
            },
            Meaning::CredentialUsed => match (self.in_doubt, self.kind, self.suspect) {
                (false, ..) => Step::NextCredential,
                (true, Kind::FormId, false) => Step::Delivered,
                // Used up by this message or by the earlier one.
                (true, ..) => Step::UnknownAndDead,
            },
            Meaning::CredentialBlocked if self.in_doubt => Step::UnknownAndDead,
            Meaning::CredentialBlocked => Step::NextCredential,
            Meaning::RefusedByUser if self.kind == Kind::Grant => Step::GrantRefused,
            Meaning::RefusedByUser | Meaning::UserWrong | Meaning::MessageWrong | Meaning::Unknown => Step::Refused,
            Meaning::SourceBarred(_)
            | Meaning::QuotaReached
            | Meaning::AppBlocked
            | Meaning::ApiForbidden
            | Meaning::AppForbidden
            | Meaning::Retired => Step::Stopped,
        }
    }

    /// Returns the result if the message ends without another attempt: no attempts or no time is left, or WeChat
    /// refused something other than the credential. None of these reveals the outcome of an earlier, unanswered
    /// attempt.
    pub fn exhausted(self) -> Exhausted {
        match (self.in_doubt, self.kind) {
            (false, _) => Exhausted::NotDelivered,
            (true, Kind::FormId) => Exhausted::InDoubt,
            (true, Kind::PrepayId | Kind::Grant) => Exhausted::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wechat::errcode::{TABLE, row_of};

    const FRESH: Situation = Situation {
        kind: Kind::FormId,
        in_doubt: false,
        suspect: false,
        age: Duration::from_secs(3600),
        retry_unknown: false,
    };
    const PREPAY: Situation = Situation { kind: Kind::PrepayId, age: UNPAID, ..FRESH };

    fn answered(situation: Situation, errcode: i32) -> Step {
        situation.step(Attempt::Answered(row_of(errcode).meaning))
    }

    #[test]
    fn every_errcode_has_its_step_for_a_fresh_form_id() {
        for row in TABLE {
            let expected = match row.errcode {
                0 => Step::Delivered,
                -1 | 43108 => Step::Again(Pause::Backoff),
                45011 => Step::Again(Pause::SlowDown),
                40001 | 40014 | 41001 | 42001 => Step::Again(Pause::NewToken),
                41028 | 41029 | 41031 => Step::NextCredential,
                40003 | 40037 | 41030 | 43101 | 45168 | 47001 | 47003 => Step::Refused,
                _ => Step::Stopped,
            };
            assert_eq!(answered(FRESH, row.errcode), expected, "{}", row.errcode);
        }
        assert_eq!(answered(FRESH, 12345), Step::Refused);
    }

    #[test]
    fn after_a_lost_answer_the_same_form_id_determines_the_outcome() {
        let doubt = FRESH.after(Attempt::Unanswered);
        assert_eq!(FRESH.step(Attempt::Unanswered), Step::Again(Pause::Backoff));
        assert_eq!(answered(doubt, 0), Step::Delivered);
        assert_eq!(answered(doubt, 41029), Step::Delivered);
        assert_eq!(answered(doubt, 41028), Step::NextCredential);
        assert_eq!(answered(doubt, 41031), Step::UnknownAndDead);
        assert_eq!(doubt.exhausted(), Exhausted::InDoubt);
    }

    #[test]
    fn used_up_code_of_a_suspect_form_id_proves_nothing() {
        let suspect = Situation { suspect: true, ..FRESH };
        assert_eq!(answered(suspect, 41029), Step::NextCredential);
        assert_eq!(answered(suspect.after(Attempt::Unanswered), 41029), Step::UnknownAndDead);
    }

    #[test]
    fn prepay_id_is_at_most_once_unless_retry_unknown_is_set() {
        assert_eq!(PREPAY.step(Attempt::Unanswered), Step::Unknown);
        let retrying = Situation { retry_unknown: true, ..PREPAY };
        assert_eq!(retrying.step(Attempt::Unanswered), Step::Again(Pause::Backoff));
        let doubt = retrying.after(Attempt::Unanswered);
        assert_eq!(answered(doubt, 41029), Step::UnknownAndDead);
        assert_eq!(answered(doubt, 41028), Step::UnknownAndDead);
        assert_eq!(doubt.exhausted(), Exhausted::Unknown);
    }

    #[test]
    fn grant_is_at_most_once_and_rests_when_the_user_refuses() {
        let grant = Situation { kind: Kind::Grant, age: Duration::ZERO, ..FRESH };
        assert_eq!(grant.step(Attempt::Unanswered), Step::Unknown);
        assert_eq!(answered(grant, 43101), Step::GrantRefused);
        assert_eq!(answered(FRESH, 43101), Step::Refused);
        let retrying = Situation { retry_unknown: true, ..grant }.after(Attempt::Unanswered);
        assert_eq!(retrying.exhausted(), Exhausted::Unknown);
    }

    #[test]
    fn young_prepay_id_is_retried_then_rests_and_later_is_discarded() {
        let aged = |age| Situation { age, ..PREPAY };
        assert_eq!(answered(aged(Duration::from_secs(3)), 41028), Step::Again(Pause::Young));
        for age in [YOUNG, UNPAID - Duration::from_secs(1)] {
            assert_eq!(answered(aged(age), 41028), Step::RestCredential);
            let doubt = Situation { retry_unknown: true, ..aged(age) }.after(Attempt::Unanswered);
            assert_eq!(answered(doubt, 41028), Step::Unknown);
            assert_eq!(answered(aged(age), 41029), Step::NextCredential);
        }
        assert_eq!(answered(PREPAY, 41028), Step::NextCredential);
        assert_eq!(answered(Situation { age: Duration::ZERO, ..FRESH }, 41028), Step::NextCredential);
    }

    #[test]
    fn unsent_attempt_does_not_make_the_outcome_unknown() {
        let after = FRESH.after(Attempt::NotSent);
        assert_eq!(FRESH.step(Attempt::NotSent), Step::Again(Pause::Backoff));
        assert_eq!(after.exhausted(), Exhausted::NotDelivered);
        let doubt = FRESH.after(Attempt::Unanswered).after(Attempt::NotSent);
        assert_eq!(doubt.exhausted(), Exhausted::InDoubt);
    }
}
