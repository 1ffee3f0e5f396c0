//! What Redis is told of a message once its attempts are over.

use std::time::{Duration, Instant};

use shared::store::leases::{Lease, LeaseId, Settled, Verdict as Fate};
use shared::store::wanted::Wanted;

use super::{Conclusion, Next, Order, Sender, Sent, Tally};
use crate::outcome::{End, Outcome, SendError};
use crate::spans;

/// How long to wait before Redis is told again what became of a message.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

impl Sender {
    /// Tells Redis what became of the credential and of the request, and gets the next credential where one is needed.
    pub(super) async fn settle(
        &self,
        order: &Order,
        lease: Lease,
        conclusion: Conclusion,
        tally: &mut Tally,
    ) -> Result<Next, SendError> {
        let outcome =
            |end| Outcome { end, verdict: tally.last.clone(), attempts: tally.attempts, kind: Some(lease.kind) };
        let dead = || SendError::CredentialsDead { tried: tally.credentials, verdict: tally.last.clone() };
        // What becomes of the credential, what the request id answers from now on, what this call answers unless there
        // is a next credential, and whether one is wanted.
        let (fate, end, answer, go_on) = match conclusion {
            Conclusion::End(End::Refused, fate) => {
                (fate, Some(outcome(End::Refused)), Err(SendError::Refused(tally.last.clone())), false)
            }
            Conclusion::End(end, fate) => (fate, Some(outcome(end)), Ok(outcome(end)), false),
            Conclusion::NextCredential => {
                (Fate::Discard, None, Err(dead()), tally.credentials < self.limits.credentials)
            }
            Conclusion::InDoubt if order.request.is_some() => {
                (Fate::Hold, None, Err(SendError::InDoubt(tally.last.clone())), false)
            }
            // The message is gone with this call, so its form id may serve another; marked, because it may be used up.
            Conclusion::InDoubt => (Fate::Suspect, None, Ok(outcome(End::Unknown)), false),
            Conclusion::NotSpent(error) => (Fate::Return, None, Err(error), false),
            Conclusion::SourceStopped(error) => (Fate::Return, None, Err(error), true),
        };
        let next = match self.gates.open(order.message.delivery.kinds()) {
            Ok(kinds) if go_on => Some((LeaseId::random(), order.message.wanted(kinds))),
            _ => None,
        };
        let delivered = answer.as_ref().is_ok_and(|outcome| outcome.end == End::Delivered);
        let asked = Instant::now();
        let settled = self.settle_patiently(order, &lease, fate, end.as_ref(), next.as_ref(), tally).await;
        let messages_left = match settled {
            Some(Settled::Next(lease)) => {
                tally.credentials += 1;
                tally.leased_at = asked;
                return Ok(Next::Credential(lease));
            }
            Some(Settled::Done { messages_left }) => messages_left,
            // Too slow: another replica has the message by now, and will know how it ends.
            Some(Settled::Stale) if order.request.is_some() && !delivered => {
                return Ok(Next::Failed(SendError::UnderWay(SETTLE_PAUSE)));
            }
            Some(Settled::NoNext | Settled::Stale) => 0,
            // What WeChat said holds all the same; the reaper and a repeated request find the rest.
            None => lease.messages_left,
        };
        Ok(match answer {
            Ok(outcome) => Next::Done(Sent { outcome, messages_left, repeated: false, late: None }),
            Err(error) => Next::Failed(error),
        })
    }

    /// Settles, again and again while Redis is away, until the lease would be over anyway.
    async fn settle_patiently(
        &self,
        order: &Order,
        lease: &Lease,
        fate: Fate,
        end: Option<&Outcome>,
        next: Option<&(LeaseId, Wanted)>,
        tally: &Tally,
    ) -> Option<Settled> {
        let outcome = end.map(Outcome::encode);
        let span = spans::settle(&self.app.id);
        let mut settling = self.metrics.settles.operation();
        loop {
            let settled = self
                .store
                .settle(
                    &self.app.id,
                    &order.openid,
                    lease.id,
                    &self.limits.terms,
                    fate,
                    outcome.as_deref(),
                    order.request.as_ref(),
                    next.map(|(id, wanted)| (*id, wanted)),
                )
                .await;
            settling.note(&settled);
            match settled {
                Ok(settled) => return Some(settled),
                Err(error) if !error.is_lasting() && tally.leased_at.elapsed() < self.limits.terms.duration => {
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
                // Given up: the reaper will settle this message.
                Err(error) => {
                    spans::not_settled(&span, &error);
                    return None;
                }
            }
        }
    }
}
