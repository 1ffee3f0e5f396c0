//! Sends one message: lease a credential, call WeChat ([`attempt`]), settle according to the answer ([`settle`]).

mod attempt;
pub mod count;
pub mod in_flight;
pub mod outcome;
pub mod policy;
mod settle;

use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::OpenId;
use server::rpc::status::Failure;
use store::delivery_failures::LateFailure;
use store::eligibility::Eligibility;
use store::leases::{Lease, LeaseEnd, LeaseId, Leased, NewLease, Recorded, Request};
use tracing::Instrument as _;

use crate::context::AppContext;
use crate::send::outcome::{End, Outcome, SendError, WechatAnswer};
use crate::spans;
use crate::wechat::message::Message;

/// Shortest and longest pause while another message to the same user is in flight. A call to WeChat takes about 10 ms
/// to 100 ms.
const FIRST_BUSY_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_BUSY_PAUSE: Duration = Duration::from_millis(160);

#[derive(Debug, Clone)]
pub struct SendRequest {
    pub openid: OpenId,
    pub message: Arc<Message>,
    /// Request id and fingerprint; `None` if the call has no request id and so cannot be repeated.
    pub request: Option<Request>,
    /// If the outcome is unknown, send again: the caller prefers a duplicate over a lost message.
    pub retry_unknown: bool,
}

/// A message whose outcome is final.
#[derive(Debug, Clone)]
pub struct Sent {
    pub outcome: Outcome,
    /// Number of messages that can still be sent to the user.
    pub messages_left: u32,
    /// The outcome is from an earlier call with the same request id.
    pub repeated: bool,
    /// Delivery failure that WeChat reported later, if any.
    pub late: Option<LateFailure>,
}

/// Result of the attempts with one credential.
#[derive(Debug)]
pub enum AttemptResult {
    /// The outcome is final; the second field says how the lease ends.
    End(End, LeaseEnd),
    /// The credential is unusable, or unusable for now, and the message was not delivered. Contains how the lease ends.
    NextCredential(LeaseEnd),
    /// The outcome is unknown. Only another attempt with the same credential can determine it. Contains the reason why
    /// there was none.
    InDoubt(SendError),
    /// The credential was not spent. Contains the reason.
    NotSpent(SendError),
    /// The credential was not spent, because WeChat stopped its source. A credential from another source may work.
    SourceStopped(SendError),
}

impl AppContext {
    /// Sends one message. Once started, it must run to its end: if it is dropped between lease and settle, the outcome
    /// is unknown until the lease expires.
    pub async fn send(&self, order: &SendRequest) -> Result<Sent, Failure> {
        let span = spans::send(&self.app.id);
        let result = self.send_and_count(order).instrument(span.clone()).await;
        match &result {
            Ok(Sent { outcome, .. }) => spans::sent(&span, outcome.end.name(), outcome.attempts),
            Err(failure) => spans::not_sent(&span, failure.reason()),
        }
        result
    }

    async fn send_and_count(&self, order: &SendRequest) -> Result<Sent, Failure> {
        let delivery = order.message.delivery;
        match self.try_send(order).await {
            Ok(SendResult::Sent(sent)) => {
                self.metrics.sent(delivery, sent.outcome.end.name(), sent.outcome.answer.errcode);
                Ok(sent)
            }
            Ok(SendResult::Lost) => Ok(lost()),
            Ok(SendResult::Recorded(outcome)) => self.repeat(order, &outcome).await.map_err(Failure::from),
            Err(error) => {
                let failure = Failure::from(error);
                self.metrics.sent(delivery, failure.reason(), failure.errcode());
                Err(failure)
            }
        }
    }

    async fn try_send(&self, order: &SendRequest) -> Result<SendResult, SendError> {
        let kinds = match self.ready(order.message.delivery.kinds(), &order.message.template_id).await {
            Ok(kinds) => kinds,
            Err(obstacle) => return self.recall(order, obstacle).await,
        };
        let wanted = order.message.eligibility(kinds);
        let (requested_at, leased) = self.lease_when_free(order, &wanted).await?;
        let mut lease = match leased {
            Leased::Lease(lease) => lease,
            Leased::None => return Err(SendError::NoCredential),
            Leased::Resting(until) => return Err(SendError::Resting { until }),
            Leased::Finished(outcome) => return Ok(SendResult::Recorded(outcome)),
            Leased::UnderWay(lasts) => return Err(SendError::InProgress(lasts)),
            Leased::Reused => return Err(SendError::RequestReused),
            Leased::Lost => return Ok(SendResult::Lost),
            Leased::Busy(lasts) => return Err(SendError::UserBusy { lasts, answer: WechatAnswer::default() }),
        };
        let mut progress = Progress::new(requested_at);
        loop {
            let before = progress.attempts;
            let result = self.try_credential(order, &lease, &mut progress).await;
            self.metrics.attempted(order.message.delivery, progress.attempts - before);
            match self.settle(order, lease, result, &mut progress).await? {
                AfterSettle::Done(sent) => {
                    self.counts.add(order.message.delivery, 1);
                    return Ok(SendResult::Sent(sent));
                }
                AfterSettle::Failed(error) => return Err(error),
                AfterSettle::Credential(next) => lease = next,
            }
        }
    }

    /// Answers a request while nothing can be sent: with its recorded outcome if there is one, otherwise with
    /// `obstacle`.
    async fn recall(&self, order: &SendRequest, obstacle: SendError) -> Result<SendResult, SendError> {
        let Some(request) = &order.request else { return Err(obstacle) };
        match self.store.recorded(&self.app.id, &order.openid, request).await? {
            Recorded::Nothing => Err(obstacle),
            Recorded::Finished(outcome) => Ok(SendResult::Recorded(outcome)),
            Recorded::UnderWay => Err(SendError::InDoubt(WechatAnswer::default())),
            Recorded::Reused => Err(SendError::RequestReused),
        }
    }

    /// Leases a credential. WeChat takes one subscription message per user at a time, so this waits while another one
    /// is in flight, for at most the timeout of one call.
    async fn lease_when_free(
        &self,
        order: &SendRequest,
        wanted: &Eligibility,
    ) -> Result<(Instant, Leased), store::Error> {
        let (begun, mut pause) = (Instant::now(), FIRST_BUSY_PAUSE);
        loop {
            let requested_at = Instant::now();
            let leased = self.lease(order, wanted).await?;
            if !matches!(leased, Leased::Busy(_)) || begun.elapsed() + pause >= self.app.timeout {
                return Ok((requested_at, leased));
            }
            // Half fixed, half random, so that waiting sends do not retry at the same moment.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
            pause = (pause * 2).min(LONGEST_BUSY_PAUSE);
        }
    }

    async fn lease(&self, order: &SendRequest, wanted: &Eligibility) -> Result<Leased, store::Error> {
        let (id, span) = (LeaseId::random(), spans::lease(&self.app.id));
        let new = NewLease { id, request: order.request.as_ref(), wanted };
        let ask = || self.store.lease(&self.app.id, &order.openid, &new, &self.limits.terms);
        let leased = match ask().await {
            // Perhaps only the reply was lost. Asking again with the same id returns the same lease.
            Err(store::Error::Redis(_)) => ask().await,
            result => result,
        };
        spans::leased(&span, &leased);
        leased
    }

    async fn repeat(&self, order: &SendRequest, outcome: &[u8]) -> Result<Sent, SendError> {
        let outcome = Outcome::decode(outcome)?;
        if outcome.end == End::Refused {
            return Err(SendError::Refused(outcome.answer));
        }
        let AppContext { app, store, clock, .. } = self;
        let inventory = store.inventory(&app.id, &order.openid, (clock.now_ms() / 1000) as i64, 0).await?;
        let messages_left = inventory.values().map(|available| available.messages).sum();
        let late = match outcome.answer.msgid {
            Some(msgid) => store.late_failure(&app.id, &order.openid, msgid).await?,
            None => None,
        };
        Ok(Sent { outcome, messages_left, repeated: true, late })
    }
}

#[derive(Debug)]
pub struct Progress {
    pub attempts: u32,
    pub credentials: u32,
    pub last: WechatAnswer,
    /// Time just before the lease was requested. The lease does not expire earlier than one lease duration after it.
    pub leased_at: Instant,
    /// WeChat asked to slow down, did not answer in time, or could not be reached.
    pub congested: bool,
}

impl Progress {
    pub fn new(leased_at: Instant) -> Self {
        Self { attempts: 0, credentials: 1, last: WechatAnswer::default(), leased_at, congested: false }
    }
}

enum SendResult {
    Sent(Sent),
    /// The encoded outcome of an earlier call.
    Recorded(Vec<u8>),
    /// The user was erased while an earlier call was in flight.
    Lost,
}

enum AfterSettle {
    Done(Sent),
    Failed(SendError),
    Credential(Lease),
}

/// The answer for a request whose user was erased while it was in flight. Its credential is gone, so its outcome stays
/// unknown.
fn lost() -> Sent {
    let outcome = Outcome { end: End::Unknown, answer: WechatAnswer::default(), attempts: 0, kind: None };
    Sent { outcome, messages_left: 0, repeated: true, late: None }
}
