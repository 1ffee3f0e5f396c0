//! One message, start to end: lease a credential, call WeChat ([`attempt`]), settle by what it answered ([`settle`]).

mod attempt;
pub mod count;
mod settle;

use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::credential::OpenId;
use shared::status::Failure;
use shared::store::gates::Stop;
use shared::store::late::LateFailure;
use shared::store::leases::{Lease, LeaseId, LeaseTerms, Leased, Recorded, Request, Verdict as Fate};
use shared::store::wanted::{Kinds, Wanted};
use shared::store::{self, Store};
use tracing::Instrument as _;

use self::count::Sends;
use crate::apps::App;
use crate::clock::Clock;
use crate::gates::Gates;
use crate::metrics::SendMetrics;
use crate::outcome::{End, Outcome, SendError, Verdict};
use crate::spans;
use crate::wechat::client::Client;
use crate::wechat::message::Message;
use crate::wechat::token::Tokens;

/// The pauses while another message to the same user is under way: a call takes some 10 ms to 100 ms.
const SHORTEST_TURN: Duration = Duration::from_millis(10);
const LONGEST_TURN: Duration = Duration::from_millis(160);

/// What bounds a send.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How leases are made.
    pub terms: LeaseTerms,
    /// The most calls to WeChat with one credential.
    pub attempts: u32,
    /// The most credentials tried for one message.
    pub credentials: u32,
    /// The pause before the second attempt; it doubles from there, up to 4 s.
    pub backoff: Duration,
    /// How long an app that WeChat stopped is left alone, where WeChat does not say.
    pub stop: Duration,
}

/// One message to one user.
#[derive(Debug, Clone)]
pub struct Order {
    /// To whom.
    pub openid: OpenId,
    /// What.
    pub message: Arc<Message>,
    /// Under which request, if the call may be repeated.
    pub request: Option<Request>,
    /// The caller prefers a second message over none where nobody can tell.
    pub retry_unknown: bool,
}

/// A message that reached its end.
#[derive(Debug, Clone)]
pub struct Sent {
    /// How it ended.
    pub outcome: Outcome,
    /// What can still be sent to the user.
    pub messages_left: u32,
    /// It had ended in an earlier call with the same request id.
    pub repeated: bool,
    /// WeChat reported later that it could not deliver the message after all.
    pub late: Option<LateFailure>,
}

/// Sends the messages of one app.
pub struct Sender {
    app: Arc<App>,
    store: Store,
    client: Client,
    tokens: Tokens,
    gates: Arc<Gates>,
    clock: Clock,
    limits: Limits,
    sends: Sends,
    metrics: SendMetrics,
}

/// How the attempts with one credential ended.
#[derive(Debug)]
pub(crate) enum Conclusion {
    /// The message ended so, and so did the credential.
    End(End, Fate),
    /// The credential is dead, and the message was not delivered.
    NextCredential,
    /// Nobody knows yet, and only the same credential can tell.
    InDoubt,
    /// Nothing was spent, for this reason.
    NotSpent(SendError),
    /// Nothing was spent; another source of credentials may do.
    SourceStopped(SendError),
}

impl Sender {
    /// A sender for the app of this client.
    pub fn new(
        store: Store,
        client: Client,
        tokens: Tokens,
        gates: Arc<Gates>,
        clock: Clock,
        limits: Limits,
        metrics: SendMetrics,
    ) -> Self {
        let app = Arc::clone(client.app());
        Self { app, store, client, tokens, gates, clock, limits, sends: Sends::default(), metrics }
    }

    /// Reports what was sent to the other replicas, for ever.
    pub async fn report_forever(&self) {
        let reporting = self.metrics.counts.operation();
        self.sends.report_forever(&self.store, &self.app.id, &self.clock, reporting).await;
    }

    /// Sends one message. Must run to its end once it has begun: dropped between lease and settle, it leaves the message
    /// in doubt until the lease is over.
    pub async fn send(&self, order: &Order) -> Result<Sent, Failure> {
        let span = spans::send(&self.app.id);
        let result = self.answer(order).instrument(span.clone()).await;
        spans::sent(&span, &result);
        result
    }

    /// What the caller gets to hear, counted.
    async fn answer(&self, order: &Order) -> Result<Sent, Failure> {
        let delivery = order.message.delivery;
        let answer = match self.carry_out(order).await {
            Ok(Answer::Sent(sent)) => {
                self.metrics.ended(delivery, &sent);
                return Ok(sent);
            }
            Ok(Answer::Lost) => return Ok(lost()),
            Ok(Answer::Recorded(outcome)) => return self.repeat(order, &outcome).await.map_err(Failure::from),
            Err(error) => Failure::from(error),
        };
        self.metrics.failed(delivery, &answer);
        Err(answer)
    }

    async fn carry_out(&self, order: &Order) -> Result<Answer, SendError> {
        let kinds = match self.ready(order.message.delivery.kinds()).await {
            Ok(kinds) => kinds,
            Err(obstacle) => return self.recall(order, obstacle).await,
        };
        let wanted = order.message.wanted(kinds);
        let (asked, leased) = self.lease_in_turn(order, &wanted).await?;
        let mut lease = match leased {
            Leased::Lease(lease) => lease,
            Leased::None => return Err(SendError::NoCredential),
            Leased::Finished(outcome) => return Ok(Answer::Recorded(outcome)),
            Leased::UnderWay(lasts) => return Err(SendError::UnderWay(lasts)),
            Leased::Reused => return Err(SendError::RequestReused),
            Leased::Lost => return Ok(Answer::Lost),
            Leased::Busy(lasts) => return Err(SendError::UserBusy(lasts)),
        };
        let mut tally = Tally::new(asked);
        loop {
            let before = tally.attempts;
            let conclusion = self.try_credential(order, &lease, &mut tally).await;
            self.metrics.attempted(order.message.delivery, tally.attempts - before);
            match self.settle(order, lease, conclusion, &mut tally).await? {
                Next::Done(sent) => {
                    self.sends.note(order.message.delivery.api());
                    return Ok(Answer::Sent(sent));
                }
                Next::Failed(error) => return Err(error),
                Next::Credential(next) => lease = next,
            }
        }
    }

    /// What of `wanted` may be used now. Where nothing may, or there is no token, it is no use to take a credential out of
    /// stock.
    pub(crate) async fn ready(&self, wanted: Kinds) -> Result<Kinds, SendError> {
        let open = self.gates.open(wanted).map_err(|stop| self.stopped_by(stop))?;
        self.tokens.get().await.map_err(SendError::Token)?;
        Ok(open)
    }

    /// Fails where any of `wanted` may not be used now, or there is no token.
    pub(crate) async fn ready_with_all(&self, wanted: Kinds) -> Result<(), SendError> {
        self.gates.all_open(wanted).map_err(|stop| self.stopped_by(stop))?;
        self.tokens.get().await.map(drop).map_err(SendError::Token)
    }

    fn stopped_by(&self, stop: Stop) -> SendError {
        SendError::Stopped {
            verdict: Verdict { errcode: Some(stop.errcode), rid: stop.rid, ..Verdict::default() },
            lasts: Duration::from_millis(stop.until_ms.saturating_sub(self.clock.now_ms())),
        }
    }

    /// The answer while nothing can be sent: what is known of the request, or what is in the way.
    async fn recall(&self, order: &Order, obstacle: SendError) -> Result<Answer, SendError> {
        let Some(request) = &order.request else { return Err(obstacle) };
        match self.store.recorded(&self.app.id, &order.openid, request).await? {
            Recorded::Nothing => Err(obstacle),
            Recorded::Finished(outcome) => Ok(Answer::Recorded(outcome)),
            Recorded::UnderWay => Err(SendError::InDoubt(Verdict::default())),
            Recorded::Reused => Err(SendError::RequestReused),
        }
    }

    /// Leases, and waits where another subscription message to the user is under way: WeChat takes one at a time. As long
    /// as that one's call may take, and no longer.
    async fn lease_in_turn(&self, order: &Order, wanted: &Wanted) -> Result<(Instant, Leased), store::Error> {
        let (begun, mut pause) = (Instant::now(), SHORTEST_TURN);
        loop {
            let asked = Instant::now();
            let leased = self.lease(order, wanted).await?;
            if !matches!(leased, Leased::Busy(_)) || begun.elapsed() + pause >= self.app.timeout {
                return Ok((asked, leased));
            }
            // Half fixed, half at random, so that those who wait together do not come back together.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
            pause = (pause * 2).min(LONGEST_TURN);
        }
    }

    async fn lease(&self, order: &Order, wanted: &Wanted) -> Result<Leased, store::Error> {
        let (id, span) = (LeaseId::random(), spans::lease(&self.app.id));
        let ask =
            || self.store.lease(&self.app.id, &order.openid, id, &self.limits.terms, wanted, order.request.as_ref());
        let leased = match ask().await {
            // The reply may be all that was lost; asking again with the same id gets the same lease.
            Err(store::Error::Redis(_)) => ask().await,
            result => result,
        };
        spans::leased(&span, &leased);
        leased
    }

    async fn repeat(&self, order: &Order, outcome: &[u8]) -> Result<Sent, SendError> {
        let outcome = Outcome::decode(outcome)?;
        if outcome.end == End::Refused {
            return Err(SendError::Refused(outcome.verdict));
        }
        let now = (self.clock.now_ms() / 1000) as i64;
        let inventory = self.store.inventory(&self.app.id, &order.openid, now).await?;
        let messages_left = inventory.values().map(|available| available.messages).sum();
        let late = match outcome.verdict.msgid {
            Some(msgid) => self.store.late_failure(&self.app.id, &order.openid, msgid).await?,
            None => None,
        };
        Ok(Sent { outcome, messages_left, repeated: true, late })
    }
}

/// What a send keeps count of.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Calls to WeChat.
    pub(crate) attempts: u32,
    /// Credentials tried.
    pub(crate) credentials: u32,
    /// WeChat's last answer.
    pub(crate) last: Verdict,
    /// Just before the lease was asked for: it is over, at the earliest, one lease later.
    pub(crate) leased_at: Instant,
    /// WeChat asked to go slower, or did not answer in time, or could not be reached.
    pub(crate) congested: bool,
}

impl Tally {
    /// Of a message with its first lease.
    pub(crate) fn new(leased_at: Instant) -> Self {
        Self { attempts: 0, credentials: 1, last: Verdict::default(), leased_at, congested: false }
    }
}

/// What a call is answered with.
enum Answer {
    /// What became of the message now.
    Sent(Sent),
    /// What became of it in an earlier call, as it was kept.
    Recorded(Vec<u8>),
    /// An earlier call was under way when the user was erased.
    Lost,
}

enum Next {
    Done(Sent),
    Failed(SendError),
    Credential(Lease),
}

/// A request that was under way when its user was erased: its credential is gone, and with it what it could tell.
fn lost() -> Sent {
    let outcome = Outcome { end: End::Unknown, verdict: Verdict::default(), attempts: 0, kind: None };
    Sent { outcome, messages_left: 0, repeated: true, late: None }
}
