//! Decides the next step after each answer of WeChat, so that a message is delivered only once. All functions are pure,
//! so that every case can be tested.
//!
//! A form id works once, so it serves as its own idempotency key. If an answer is lost, the same message is sent again
//! with the same form id, never with another one. In that case errcode 0 means that the message is delivered now, 41029
//! that it was delivered before, and 41028 that it was never delivered. As long as the outcome is unknown, the form id
//! stays reserved for its message.
//!
//! A code whose scope is wider than the message (the template, the source, the generation, the app) never ends the
//! message: it says nothing about it.
//!
//! This does not work for the other kinds of credentials. A prepay id permits several messages, and WeChat does not
//! report the balance of a grant. If an answer is lost for one of these kinds, the use counts as spent, unless the
//! caller allows a duplicate with `retry_unknown`.

use std::time::Duration;

use domain::{Kind, TemplateId};
use store::stops::StopScope;

use crate::wechat::errcode::Meaning;
use crate::wechat::message::Delivery;

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
    /// The credential is not spent. The user gets messages too often for now.
    UserBusy,
    /// The credential is not spent. WeChat stopped the app, or a part of it: see [`stop_scopes`].
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
            Meaning::RefusedByUser | Meaning::Unfollowed | Meaning::UserWrong => Step::Refused,
            Meaning::UserBusy => Step::UserBusy,
            // WeChat has the message already: the unanswered attempt had arrived.
            Meaning::Duplicate if self.in_doubt => Step::Delivered,
            Meaning::Duplicate | Meaning::MessageWrong | Meaning::Unknown => Step::Refused,
            Meaning::InReview => Step::Unknown,
            Meaning::TemplateBanned
            | Meaning::SourceBarred(_)
            | Meaning::QuotaReached
            | Meaning::AppBlocked
            | Meaning::ApiForbidden
            | Meaning::AppForbidden
            | Meaning::AddressRefused
            | Meaning::Misconfigured
            | Meaning::Retired => Step::Stopped,
        }
    }

    /// Returns the result if the message ends without another attempt: no attempts or no time is left, or WeChat
    /// refused the message or its user. None of these reveals the outcome of an earlier, unanswered attempt.
    pub fn exhausted(self) -> Exhausted {
        match (self.in_doubt, self.kind) {
            (false, _) => Exhausted::NotDelivered,
            (true, Kind::FormId) => Exhausted::InDoubt,
            (true, Kind::PrepayId | Kind::Grant) => Exhausted::Unknown,
        }
    }
}

/// What a code with [`Step::Stopped`] stops, when it answers a message of `template` with a credential of `kind`.
pub fn stop_scopes(meaning: Meaning, kind: Kind, template: &TemplateId) -> Vec<StopScope> {
    match meaning {
        Meaning::TemplateBanned => vec![StopScope::Template(template.clone())],
        // WeChat may name another source than that of the message: then neither works.
        Meaning::SourceBarred(source) if source != kind => vec![StopScope::Kind(source), StopScope::Kind(kind)],
        Meaning::SourceBarred(source) => vec![StopScope::Kind(source)],
        // To WeChat, template and subscription messages are separate APIs with separate quotas.
        Meaning::Retired | Meaning::ApiForbidden | Meaning::QuotaReached => {
            Delivery::of(kind).kinds().iter().map(StopScope::Kind).collect()
        }
        _ => vec![StopScope::App],
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
                -1 | 20001 | 43108 | 61450 => Step::Again(Pause::Backoff),
                45011 => Step::Again(Pause::SlowDown),
                40001 | 40014 | 41001 | 42001 => Step::Again(Pause::NewToken),
                41028 | 41029 | 41031 => Step::NextCredential,
                40252 => Step::Unknown,
                43117 => Step::UserBusy,
                40003 | 43004 | 43005 | 43019 | 43101 | 48002 | 50005 => Step::Refused,
                40033 | 40035 | 40036 | 40037 | 40097 | 40241 | 40249 | 40250 => Step::Refused,
                41030 | 45002 | 45168 | 47001 | 47003 => Step::Refused,
                _ => Step::Stopped,
            };
            assert_eq!(answered(FRESH, row.errcode), expected, "{}", row.errcode);
        }
        assert_eq!(answered(FRESH, 12345), Step::Refused);
    }

    #[test]
    fn every_code_that_stops_has_its_scope() {
        let template = TemplateId::parse("order-ready").unwrap();
        let kinds = |kinds: &[Kind]| kinds.iter().map(|kind| StopScope::Kind(*kind)).collect::<Vec<_>>();
        let stops = TABLE.iter().filter(|row| answered(FRESH, row.errcode) == Step::Stopped);
        for (row, kind) in stops.flat_map(|row| [Kind::FormId, Kind::PrepayId, Kind::Grant].map(|kind| (row, kind))) {
            let expected = match row.errcode {
                43116 => vec![StopScope::Template(template.clone())],
                41032 | 41034 if kind == Kind::FormId => kinds(&[kind]),
                41032 | 41034 => kinds(&[Kind::FormId, kind]),
                41035 if kind == Kind::PrepayId => kinds(&[kind]),
                41035 => kinds(&[Kind::PrepayId, kind]),
                40251 | 41018 | 43104 | 43107 | 45009 | 45029 | 45103 | 48001 | 48004 | 50001 | 61003 | 61007
                | 61014 | 61016 => match kind {
                    Kind::Grant => kinds(&[Kind::Grant]),
                    Kind::FormId | Kind::PrepayId => kinds(&[Kind::FormId, Kind::PrepayId]),
                },
                40013 | 40066 | 40164 | 41002 | 43001 | 43002 | 43003 | 44002 | 45035 | 45102 | 45501 | 50002
                | 61004 => {
                    vec![StopScope::App]
                }
                other => panic!("{other} stops, and has no expected scope"),
            };
            assert_eq!(stop_scopes(row.meaning, kind, &template), expected, "{} {kind:?}", row.errcode);
        }
    }

    #[test]
    fn code_of_a_wider_scope_says_nothing_about_an_unanswered_attempt() {
        for row in TABLE {
            for situation in [FRESH, PREPAY, Situation { kind: Kind::Grant, ..FRESH }] {
                let doubt = Situation { retry_unknown: true, ..situation }.after(Attempt::Unanswered);
                let stops = answered(situation, row.errcode) == Step::Stopped;
                assert_eq!(
                    answered(doubt, row.errcode) == Step::Stopped,
                    stops,
                    "{} {:?}",
                    row.errcode,
                    situation.kind
                );
            }
        }
    }

    #[test]
    fn same_message_proves_the_delivery_only_after_an_unanswered_attempt() {
        for kind in [Kind::FormId, Kind::PrepayId, Kind::Grant] {
            let situation = Situation { kind, retry_unknown: true, ..FRESH };
            assert_eq!(answered(situation, 40241), Step::Refused);
            assert_eq!(answered(situation.after(Attempt::NotSent), 40241), Step::Refused);
            assert_eq!(answered(situation.after(Attempt::Unanswered), 40241), Step::Delivered);
        }
    }

    #[test]
    fn message_in_review_is_never_sent_again() {
        for kind in [Kind::FormId, Kind::PrepayId, Kind::Grant] {
            let situation = Situation { kind, retry_unknown: true, ..FRESH };
            assert_eq!(answered(situation, 40252), Step::Unknown);
            assert_eq!(answered(situation.after(Attempt::Unanswered), 40252), Step::Unknown);
        }
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
