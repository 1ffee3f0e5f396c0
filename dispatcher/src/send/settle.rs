//! Writes the result of a message to Redis after its attempts.

use std::time::{Duration, Instant};

use domain::Kind;
use store::leases::{Lease, LeaseEnd, LeaseId, Settle, SettleReply};

use super::{AfterSettle, AttemptResult, Progress, SendRequest, Sent};
use crate::context::AppContext;
use crate::send::outcome::{End, Outcome, SendError};
use crate::spans;

/// Pause before a failed settle is retried.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

impl AppContext {
    /// Settles the lease, records the outcome under the request id, and leases the next credential if one is needed.
    pub(super) async fn settle(
        &self,
        order: &SendRequest,
        lease: Lease,
        result: AttemptResult,
        progress: &mut Progress,
    ) -> Result<AfterSettle, SendError> {
        let outcome =
            |end| Outcome { end, answer: progress.last.clone(), attempts: progress.attempts, kind: Some(lease.kind) };
        let dead = || SendError::CredentialsDead { tried: progress.credentials, answer: progress.last.clone() };
        // In this order: how the lease ends, the outcome recorded under the request id, what this call answers unless
        // there is a next credential, and whether a next credential is needed.
        let (lease_end, end, answer, needs_next) = match result {
            AttemptResult::End(End::Refused, lease_end) => {
                (lease_end, Some(outcome(End::Refused)), Err(SendError::Refused(progress.last.clone())), false)
            }
            AttemptResult::End(end, lease_end) => (lease_end, Some(outcome(end)), Ok(outcome(end)), false),
            AttemptResult::NextCredential(lease_end) => {
                (lease_end, None, Err(dead()), progress.credentials < self.limits.credentials)
            }
            AttemptResult::InDoubt(_) if order.request.is_some() => {
                (LeaseEnd::Hold, None, Err(SendError::InDoubt(progress.last.clone())), false)
            }
            // Without a request id nobody can repeat the message, so another message may use its form id. It is marked
            // as suspect because it may be used up. For the other kinds, this would not be found out: the use is spent.
            AttemptResult::InDoubt(_) if lease.kind == Kind::FormId => {
                (LeaseEnd::Suspect, None, Ok(outcome(End::Unknown)), false)
            }
            AttemptResult::InDoubt(_) => (LeaseEnd::Unknown, None, Ok(outcome(End::Unknown)), false),
            AttemptResult::NotSpent(error) => (LeaseEnd::Return, None, Err(error), false),
            AttemptResult::SourceStopped(error) => (LeaseEnd::Return, None, Err(error), true),
        };
        let next = match self.stops.usable(order.message.delivery.kinds(), &order.message.template_id) {
            Ok(kinds) if needs_next => Some((LeaseId::random(), order.message.eligibility(kinds))),
            _ => None,
        };
        let delivered = answer.as_ref().is_ok_and(|outcome| outcome.end == End::Delivered);
        let requested_at = Instant::now();
        let recorded = end.as_ref().map(Outcome::encode);
        let settle = Settle {
            id: lease.id,
            request: order.request.as_ref(),
            end: lease_end,
            outcome: recorded.as_deref(),
            next: next.as_ref().map(|(id, wanted)| (*id, wanted)),
        };
        let settled = self.settle_patiently(order, &settle, progress).await;
        let messages_left = match settled {
            Some(SettleReply::Next(lease)) => {
                progress.credentials += 1;
                progress.leased_at = requested_at;
                return Ok(AfterSettle::Credential(lease));
            }
            Some(SettleReply::NextRests(until)) => {
                return Ok(AfterSettle::Failed(SendError::Resting { until }));
            }
            Some(SettleReply::Done { messages_left }) => messages_left,
            // The lease expired: another replica has taken over the message and will know its outcome.
            Some(SettleReply::Stale) if order.request.is_some() && !delivered => {
                return Ok(AfterSettle::Failed(SendError::InProgress(SETTLE_PAUSE)));
            }
            Some(SettleReply::NoNext | SettleReply::Stale) => 0,
            // WeChat's answer is valid anyway. The reaper and a repeated request settle the rest.
            None => lease.messages_left,
        };
        Ok(match answer {
            Ok(outcome) => AfterSettle::Done(Sent { outcome, messages_left, repeated: false, late: None }),
            Err(error) => AfterSettle::Failed(error),
        })
    }

    /// Settles. While Redis does not answer, retries until the lease would have expired.
    async fn settle_patiently(
        &self,
        order: &SendRequest,
        settle: &Settle<'_>,
        progress: &Progress,
    ) -> Option<SettleReply> {
        let span = spans::settle(&self.app.id);
        let mut settling = self.metrics.loops.settles.operation();
        loop {
            let settled = self.store.settle(&self.app.id, &order.openid, settle, &self.limits.terms).await;
            settling.note(&settled);
            match settled {
                Ok(settled) => return Some(settled),
                Err(error) if !error.is_lasting() && progress.leased_at.elapsed() < self.limits.terms.duration => {
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
                // Giving up; the reaper will settle this message.
                Err(error) => {
                    store::spans::failed(&span, &error);
                    return None;
                }
            }
        }
    }
}
