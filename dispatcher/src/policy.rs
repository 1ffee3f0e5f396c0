//! What to do on each answer: the rules that make a message arrive once. Pure, so that every case can be tested.
//!
//! A form id works once, so it is its own idempotency key. When an answer was lost, the same message is sent again with
//! the same form id, never another: 0 then means delivered now, 41029 that it had been delivered, 41028 that it never
//! was. As long as a message is in doubt its form id stays with it. Prepay ids permit several messages, of grants WeChat
//! tells no balance, so neither can tell: there the use counts as spent, unless the caller would rather have the message
//! twice than not at all.

use std::time::Duration;

use shared::credential::Kind;

use crate::wechat::answer::Meaning;

/// A prepay id younger than this may not be known to WeChat's other machines yet: 41028 is no verdict then. Users report
/// about 10 seconds.
pub const YOUNG: Duration = Duration::from_secs(12);

/// What is known of a message and its credential when an answer comes in, or does not.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    /// Where the credential comes from.
    pub kind: Kind,
    /// An attempt of this message with this credential went unanswered: it may have been delivered.
    pub in_doubt: bool,
    /// Another message, now gone, may have used the credential.
    pub suspect: bool,
    /// How long ago the user handed it out.
    pub age: Duration,
    /// The caller allows a second message where nobody can tell.
    pub retry_unknown: bool,
}

/// What became of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// WeChat answered.
    Answered(Meaning),
    /// Nothing left this machine.
    NotSent,
    /// The request left, and no usable answer came.
    Unanswered,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is delivered; the use is spent.
    Delivered,
    /// Nobody can tell whether it was delivered; the use counts as spent.
    Unknown,
    /// Nobody can tell, and the credential is dead.
    UnknownAndDead,
    /// The credential is dead and the message was not delivered: discard, take the next.
    NextCredential,
    /// The credential is not spent; the message, or its user, is refused for good.
    Refused,
    /// The same, and the user's grants of the template are void.
    Voided,
    /// The credential is not spent; WeChat stops the app or a source of it.
    Stopped,
    /// Try again with the same credential; when no tries are left, [`Situation::exhausted`].
    Again(Pause),
}

/// Why to wait before the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// A moment, longer each time.
    Backoff,
    /// As long, and the app's other sends wait too.
    SlowDown,
    /// Until the prepay id is no longer young.
    Young,
    /// No wait: a new access token is the remedy.
    NewToken,
}

/// What to do when no tries are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The message was not delivered: the credential is not spent.
    NotDelivered,
    /// The message is in doubt, and its form id stays with it.
    InDoubt,
    /// Nobody can tell; the use counts as spent.
    Unknown,
}

impl Situation {
    /// The situation after an attempt.
    #[must_use]
    pub fn after(self, attempt: Attempt) -> Self {
        Self { in_doubt: self.in_doubt || attempt == Attempt::Unanswered, ..self }
    }

    /// What to do after an attempt; `self` is the situation before it.
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
                Kind::PrepayId if self.in_doubt => Step::UnknownAndDead,
                _ => Step::NextCredential,
            },
            Meaning::CredentialUsed => match (self.in_doubt, self.kind, self.suspect) {
                (false, ..) => Step::NextCredential,
                (true, Kind::FormId, false) => Step::Delivered,
                // Used up, by this message or by the other one.
                (true, ..) => Step::UnknownAndDead,
            },
            Meaning::CredentialBlocked if self.in_doubt => Step::UnknownAndDead,
            Meaning::CredentialBlocked => Step::NextCredential,
            Meaning::RefusedByUser if self.kind == Kind::Grant => Step::Voided,
            Meaning::RefusedByUser | Meaning::UserWrong | Meaning::MessageWrong | Meaning::Unknown => Step::Refused,
            Meaning::SourceBarred(_)
            | Meaning::QuotaReached
            | Meaning::AppBlocked
            | Meaning::ApiForbidden
            | Meaning::AppForbidden
            | Meaning::Retired => Step::Stopped,
        }
    }

    /// What holds when it ends here: no tries or no time left, or a refusal of something else than the credential. An
    /// earlier attempt that went unanswered is not answered by that.
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
    use crate::wechat::answer::{TABLE, row_of};

    const FRESH: Situation = Situation {
        kind: Kind::FormId,
        in_doubt: false,
        suspect: false,
        age: Duration::from_secs(3600),
        retry_unknown: false,
    };
    const PREPAY: Situation = Situation { kind: Kind::PrepayId, ..FRESH };

    fn answered(situation: Situation, errcode: i32) -> Step {
        situation.step(Attempt::Answered(row_of(errcode).meaning))
    }

    #[test]
    fn every_row_of_the_table_has_its_step_for_a_fresh_form_id() {
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
    fn after_a_lost_answer_the_form_id_itself_tells_what_happened() {
        let doubt = FRESH.after(Attempt::Unanswered);
        assert_eq!(FRESH.step(Attempt::Unanswered), Step::Again(Pause::Backoff));
        assert_eq!(answered(doubt, 0), Step::Delivered);
        assert_eq!(answered(doubt, 41029), Step::Delivered);
        assert_eq!(answered(doubt, 41028), Step::NextCredential);
        assert_eq!(answered(doubt, 41031), Step::UnknownAndDead);
        assert_eq!(doubt.exhausted(), Exhausted::InDoubt);
    }

    #[test]
    fn a_suspect_form_id_that_is_used_up_proves_nothing() {
        let suspect = Situation { suspect: true, ..FRESH };
        assert_eq!(answered(suspect, 41029), Step::NextCredential);
        assert_eq!(answered(suspect.after(Attempt::Unanswered), 41029), Step::UnknownAndDead);
    }

    #[test]
    fn a_prepay_id_is_at_most_once_unless_the_caller_wants_otherwise() {
        assert_eq!(PREPAY.step(Attempt::Unanswered), Step::Unknown);
        let bold = Situation { retry_unknown: true, ..PREPAY };
        assert_eq!(bold.step(Attempt::Unanswered), Step::Again(Pause::Backoff));
        let doubt = bold.after(Attempt::Unanswered);
        assert_eq!(answered(doubt, 41029), Step::UnknownAndDead);
        assert_eq!(answered(doubt, 41028), Step::UnknownAndDead);
        assert_eq!(doubt.exhausted(), Exhausted::Unknown);
    }

    #[test]
    fn a_grant_is_at_most_once_too_and_void_when_the_user_refuses() {
        let grant = Situation { kind: Kind::Grant, age: Duration::ZERO, ..FRESH };
        assert_eq!(grant.step(Attempt::Unanswered), Step::Unknown);
        assert_eq!(answered(grant, 43101), Step::Voided);
        assert_eq!(answered(FRESH, 43101), Step::Refused);
        let bold = Situation { retry_unknown: true, ..grant }.after(Attempt::Unanswered);
        assert_eq!(bold.exhausted(), Exhausted::Unknown);
    }

    #[test]
    fn a_young_prepay_id_gets_time_before_it_is_given_up() {
        let young = Situation { age: Duration::from_secs(3), ..PREPAY };
        assert_eq!(answered(young, 41028), Step::Again(Pause::Young));
        assert_eq!(answered(PREPAY, 41028), Step::NextCredential);
        assert_eq!(answered(Situation { age: Duration::ZERO, ..FRESH }, 41028), Step::NextCredential);
    }

    #[test]
    fn what_did_not_leave_leaves_no_doubt() {
        let after = FRESH.after(Attempt::NotSent);
        assert_eq!(FRESH.step(Attempt::NotSent), Step::Again(Pause::Backoff));
        assert_eq!(after.exhausted(), Exhausted::NotDelivered);
        let doubt = FRESH.after(Attempt::Unanswered).after(Attempt::NotSent);
        assert_eq!(doubt.exhausted(), Exhausted::InDoubt);
    }
}
