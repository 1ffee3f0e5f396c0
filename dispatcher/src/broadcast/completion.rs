//! Maps the result of a message's attempts to what happens to the message, its credential and its broadcast. Pure data,
//! so that every case can be tested.

use store::broadcast::pages::Next;
use store::broadcast::records::Pause;
use store::leases::{LeaseEnd, LeaseId};

use super::reason::{Ending, PauseReason};
use crate::send::outcome::{End, SendError, WechatAnswer};
use crate::send::{AttemptResult, Progress};
use crate::wechat::errcode::{Meaning, row_of};
use crate::wechat::error::TokenError;

/// How often a message is put back because WeChat is busy, before it counts as failed.
pub const BUSY_ROUNDS: u32 = 3;

/// The effect of a message's end on its broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    None,
    Delivered,
    Failed,
    /// The user refuses these messages, or WeChat claims so. Not a failure of the message.
    UserRefused(WechatAnswer),
    /// Failed because of the message's content; see the errcode.
    MessageRefused(WechatAnswer),
    /// WeChat cannot be reached: wait.
    OutOfReach,
    Stop(Pause),
}

/// The end of a message: its effect on the message, its credential and its broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disposition {
    pub lease_end: LeaseEnd,
    pub next: Next,
    pub signal: Signal,
}

/// Maps a result. `rounds` is how often the message was put back before, `credentials` how many credentials may be
/// tried for it, and `next_day_ms` when WeChat's next day begins.
pub fn of(result: AttemptResult, progress: &Progress, rounds: u32, credentials: u32, next_day_ms: u64) -> Disposition {
    let last = &progress.last;
    let end = |ending: Ending| Next::End(ending.with_errcode(last.errcode));
    let (lease_end, next, signal) = match result {
        AttemptResult::End(End::Delivered, lease_end) => {
            (lease_end, Next::End(Ending::Delivered.with_errcode(None)), Signal::Delivered)
        }
        // The message was taken over from a dispatcher that died. It says nothing about the broadcast.
        AttemptResult::End(End::Unknown, lease_end) if progress.attempts == 0 => {
            (lease_end, end(Ending::Unknown), Signal::None)
        }
        AttemptResult::End(End::Unknown, lease_end) => {
            // WeChat has accepted a message that it reviews.
            let reviewed = last.meaning() == Some(Meaning::InReview);
            (lease_end, end(Ending::Unknown), if reviewed { Signal::None } else { Signal::Failed })
        }
        AttemptResult::End(End::Refused, lease_end) => {
            let (ending, signal) = match last.meaning() {
                Some(Meaning::RefusedByUser) => (Ending::UserRefused, Signal::UserRefused(last.clone())),
                // The user's choice, not a failure.
                Some(Meaning::Unfollowed) => (Ending::UserRefused, Signal::None),
                Some(Meaning::UserWrong) => (Ending::UserRefused, Signal::Failed),
                _ => (Ending::MessageRefused, Signal::MessageRefused(last.clone())),
            };
            (lease_end, Next::End(ending.with_answer(last)), signal)
        }
        AttemptResult::NextCredential(lease_end) => {
            // What rests is not lost: the user has no credential for now.
            let rests = matches!(lease_end, LeaseEnd::Rest(_));
            let ending = if rests {
                Ending::NoCredential.name().into()
            } else {
                Ending::CredentialsDead.with_errcode(last.errcode)
            };
            if progress.credentials < credentials {
                (lease_end, Next::Credential(LeaseId::random(), ending), Signal::None)
            } else {
                (lease_end, Next::End(ending), if rests { Signal::None } else { Signal::Failed })
            }
        }
        AttemptResult::InDoubt(error) => {
            (LeaseEnd::Hold, Next::Hold, pause_of(&error, next_day_ms).map_or(Signal::OutOfReach, Signal::Stop))
        }
        AttemptResult::NotSpent(error) | AttemptResult::SourceStopped(error) => {
            let (next, signal) = match (pause_of(&error, next_day_ms), error) {
                (Some(pause), _) => (Next::Again, Signal::Stop(pause)),
                // A message is not put back forever.
                (None, SendError::Busy(answer)) if is_busy(&answer) && rounds >= BUSY_ROUNDS => {
                    (end(Ending::WechatBusy), Signal::Failed)
                }
                // It concerns only this user: no failure of the broadcast, and no reason to send less to others.
                (None, SendError::UserBusy { .. }) if rounds >= BUSY_ROUNDS => (end(Ending::WechatBusy), Signal::None),
                (None, SendError::UserBusy { .. }) => (Next::Again, Signal::None),
                _ => (Next::Again, Signal::OutOfReach),
            };
            (LeaseEnd::Return, next, signal)
        }
    };
    Disposition { lease_end, next, signal }
}

/// Returns true if WeChat answers that it is too busy for this message. Other codes do not count against the message:
/// the app sends too fast, or its token is invalid.
pub fn is_busy(answer: &WechatAnswer) -> bool {
    matches!(answer.meaning(), Some(Meaning::Busy | Meaning::OneAtATime | Meaning::UserBusy))
}

/// The pause that an error demands; `None` if waiting may help.
pub fn pause_of(error: &SendError, next_day_ms: u64) -> Option<Pause> {
    match error {
        SendError::Stopped { answer: WechatAnswer { errcode, rid, .. }, .. } => {
            let (reason, resume_ms) = match errcode.map(|errcode| row_of(errcode).meaning) {
                Some(Meaning::QuotaReached) => (PauseReason::Quota, Some(next_day_ms)),
                Some(Meaning::TemplateBanned) => (PauseReason::TemplateStopped, None),
                _ => (PauseReason::AppStopped, None),
            };
            Some(Pause { errcode: *errcode, rid: rid.clone(), resume_ms, ..reason.into() })
        }
        SendError::Token(TokenError::Refused { errcode, rid, .. }) => {
            Some(Pause { errcode: Some(*errcode), rid: rid.clone(), ..PauseReason::TokenRefused.into() })
        }
        _ => None,
    }
}

/// The end of a message that is not sent because its broadcast stops or its lease is too old. If it was in flight
/// before, it may have been delivered.
pub fn unsent(in_doubt: bool) -> (LeaseEnd, Next) {
    if in_doubt { (LeaseEnd::Hold, Next::Hold) } else { (LeaseEnd::Return, Next::Again) }
}

/// The end of a message whose outcome is unknown when its broadcast is cancelled. WeChat is not called again, so the
/// credential counts as spent. If its form id were used for another message, that message could end as unknown too.
pub fn abandoned() -> (LeaseEnd, Next) {
    (LeaseEnd::Unknown, Next::End(Ending::Unknown.with_errcode(None)))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use domain::{Kind, TemplateId};

    use super::*;
    use crate::send::policy::{Attempt, Situation, Step, stop_scopes};
    use crate::wechat::errcode::TABLE;

    fn after(errcode: i32, credentials: u32) -> Progress {
        let last = WechatAnswer { errcode: Some(errcode), ..WechatAnswer::default() };
        Progress { last, credentials, ..Progress::new(Instant::now()) }
    }

    fn ended(result: AttemptResult, errcode: i32) -> Disposition {
        of(result, &after(errcode, 1), 0, 5, 99)
    }

    #[test]
    fn refusals_are_classified_by_user_and_message() {
        let refused = |errcode| {
            let disposition = ended(AttemptResult::End(End::Refused, LeaseEnd::Return), errcode);
            (
                disposition.next,
                matches!(disposition.signal, Signal::UserRefused(_)),
                matches!(disposition.signal, Signal::MessageRefused(_)),
            )
        };
        assert_eq!(refused(43101), (Next::End("USER_REFUSED 43101".into()), true, false));
        for errcode in [43004, 43005, 43019, 48002, 50005] {
            assert_eq!(refused(errcode), (Next::End(format!("USER_REFUSED {errcode}")), false, false));
            let refusal = AttemptResult::End(End::Refused, LeaseEnd::Return);
            assert_eq!(ended(refusal, errcode).signal, Signal::None);
        }
        assert_eq!(refused(40003), (Next::End("USER_REFUSED 40003".into()), false, false));
        assert_eq!(refused(40037), (Next::End("MESSAGE_REFUSED 40037".into()), false, true));
        assert_eq!(refused(99999), (Next::End("MESSAGE_REFUSED 99999".into()), false, true));
    }

    #[test]
    fn rejected_credentials_are_replaced_up_to_a_limit() {
        let rejected = || AttemptResult::NextCredential(LeaseEnd::Discard);
        assert!(matches!(ended(rejected(), 41028).next, Next::Credential(..)));
        let last = of(rejected(), &after(41028, 5), 0, 5, 99);
        assert_eq!((last.next, last.signal), (Next::End("CREDENTIALS_DEAD 41028".into()), Signal::Failed));
    }

    #[test]
    fn quota_pause_resumes_by_itself_and_a_ban_does_not() {
        let stop = |errcode| {
            let Disposition { lease_end: LeaseEnd::Return, next: Next::Again, signal: Signal::Stop(pause) } =
                ended(AttemptResult::NotSpent(stopped(errcode)), errcode)
            else {
                panic!("the broadcast is not stopped")
            };
            (pause.reason, pause.resume_ms)
        };
        assert_eq!(stop(45009), ("QUOTA".into(), Some(99)));
        assert_eq!(stop(48001), ("APP_STOPPED".into(), None));
        assert_eq!(stop(43116), ("TEMPLATE_STOPPED".into(), None));
    }

    fn stopped(errcode: i32) -> SendError {
        let answer = WechatAnswer { errcode: Some(errcode), ..WechatAnswer::default() };
        SendError::Stopped { answer, lasts: Duration::ZERO }
    }

    #[test]
    fn code_that_stops_ends_no_message_also_after_an_unanswered_attempt() {
        let template = TemplateId::parse("order-ready").unwrap();
        for row in TABLE {
            let situation = Situation {
                kind: Kind::FormId,
                in_doubt: false,
                suspect: false,
                age: Duration::ZERO,
                retry_unknown: false,
            };
            if situation.step(Attempt::Answered(row.meaning)) != Step::Stopped {
                continue;
            }
            assert!(!stop_scopes(row.meaning, situation.kind, &template).is_empty(), "{}", row.errcode);
            for in_doubt in [false, true] {
                let error = stopped(row.errcode);
                let result = if in_doubt { AttemptResult::InDoubt(error) } else { AttemptResult::NotSpent(error) };
                let disposition = ended(result, row.errcode);
                let expected = if in_doubt { Next::Hold } else { Next::Again };
                assert_eq!(disposition.next, expected, "{}", row.errcode);
                assert!(matches!(disposition.signal, Signal::Stop(pause) if pause.errcode == Some(row.errcode)));
            }
        }
    }

    #[test]
    fn user_who_gets_messages_too_often_affects_no_one_else() {
        let busy = |rounds| {
            let last = after(43117, 1);
            let error = SendError::UserBusy { lasts: Duration::ZERO, answer: last.last.clone() };
            let disposition = of(AttemptResult::NotSpent(error), &last, rounds, 5, 99);
            assert_eq!((disposition.lease_end, disposition.signal), (LeaseEnd::Return, Signal::None));
            disposition.next
        };
        assert!(is_busy(&after(43117, 1).last));
        assert_eq!((busy(0), busy(BUSY_ROUNDS)), (Next::Again, Next::End("WECHAT_BUSY 43117".into())));
    }

    #[test]
    fn message_in_review_ends_as_unknown_and_is_no_failure() {
        let disposition = ended(AttemptResult::End(End::Unknown, LeaseEnd::Unknown), 40252);
        assert_eq!(
            (disposition.lease_end, disposition.next, disposition.signal),
            (LeaseEnd::Unknown, Next::End("UNKNOWN 40252".into()), Signal::None)
        );
    }

    #[test]
    fn unsent_message_is_put_back_and_fails_only_if_wechat_stays_busy() {
        for error in [SendError::Unreachable, SendError::Busy(WechatAnswer::default())] {
            let disposition = of(AttemptResult::NotSpent(error), &after(0, 1), 100, 5, 99);
            assert_eq!(
                (disposition.lease_end, disposition.next, disposition.signal),
                (LeaseEnd::Return, Next::Again, Signal::OutOfReach)
            );
        }
        let busy = |errcode, rounds| {
            let answer = WechatAnswer { errcode: Some(errcode), ..WechatAnswer::default() };
            of(AttemptResult::NotSpent(SendError::Busy(answer)), &after(errcode, 1), rounds, 5, 99).next
        };
        assert_eq!(busy(-1, 0), Next::Again);
        assert_eq!(busy(-1, BUSY_ROUNDS), Next::End("WECHAT_BUSY -1".into()));
        for errcode in [45011, 40001] {
            assert_eq!(busy(errcode, BUSY_ROUNDS), Next::Again, "{errcode}");
        }
    }

    #[test]
    fn unknown_outcome_keeps_the_credential_with_the_message() {
        let disposition = ended(AttemptResult::InDoubt(SendError::Unreachable), 0);
        assert_eq!(
            (disposition.lease_end, disposition.next, disposition.signal),
            (LeaseEnd::Hold, Next::Hold, Signal::OutOfReach)
        );
        assert_eq!(unsent(true), (LeaseEnd::Hold, Next::Hold));
        assert_eq!(unsent(false), (LeaseEnd::Return, Next::Again));
        assert_eq!(abandoned(), (LeaseEnd::Unknown, Next::End("UNKNOWN".into())));
    }

    #[test]
    fn unknown_outcome_of_a_dead_replica_is_not_a_failure() {
        let unknown = || AttemptResult::End(End::Unknown, LeaseEnd::Unknown);
        let signal = |attempts| of(unknown(), &Progress { attempts, ..after(0, 1) }, 0, 5, 99).signal;
        assert_eq!((signal(0), signal(1)), (Signal::None, Signal::Failed));
    }
}
