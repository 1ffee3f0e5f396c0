//! One message, start to end: lease a credential, call WeChat ([`attempt`]), settle by what it answered ([`settle`]).

mod attempt;
pub mod count;
mod settle;

use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::credential::{Kind, OpenId};
use shared::store::gates::Stop;
use shared::store::leases::{Kinds, Lease, LeaseId, LeaseTerms, Leased, Recorded, Request, Verdict as Fate};
use shared::store::{self, Store};

use self::count::Sends;
use crate::apps::App;
use crate::clock::Clock;
use crate::gates::Gates;
use crate::outcome::{End, Outcome, SendError, Verdict};
use crate::wechat::client::Client;
use crate::wechat::message::Message;
use crate::wechat::token::Tokens;

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
    /// A sender for `app`.
    pub fn new(
        app: Arc<App>,
        store: Store,
        client: Client,
        tokens: Tokens,
        gates: Arc<Gates>,
        clock: Clock,
        limits: Limits,
    ) -> Self {
        Self { app, store, client, tokens, gates, clock, limits, sends: Sends::default() }
    }

    /// Reports what was sent to the other replicas, for ever.
    pub async fn report_forever(&self) {
        self.sends.report_forever(&self.store, &self.app.id, &self.clock).await;
    }

    /// Sends one message. Must run to its end once it has begun: dropped between lease and settle, it leaves the message
    /// in doubt until the lease is over.
    pub async fn send(&self, order: &Order) -> Result<Sent, SendError> {
        let kinds = match self.ready(Kind::ALL.into_iter().collect()).await {
            Ok(kinds) => kinds,
            Err(obstacle) => return self.recall(order, obstacle).await,
        };
        let asked = Instant::now();
        let mut lease = match self.lease(order, kinds).await? {
            Leased::Lease(lease) => lease,
            Leased::None => return Err(SendError::NoCredential),
            Leased::Finished(outcome) => return self.repeat(order, &outcome).await,
            Leased::UnderWay(lasts) => return Err(SendError::UnderWay(lasts)),
            Leased::Reused => return Err(SendError::RequestReused),
            Leased::Lost => return Ok(lost()),
        };
        let mut tally = Tally::new(asked);
        loop {
            let conclusion = self.try_credential(order, &lease, &mut tally).await;
            match self.settle(order, lease, conclusion, &mut tally).await? {
                Next::Done(sent) => {
                    self.sends.note();
                    return Ok(sent);
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
            verdict: Verdict { errcode: Some(stop.errcode), rid: stop.rid, key: None },
            lasts: Duration::from_millis(stop.until_ms.saturating_sub(self.clock.now_ms())),
        }
    }

    /// The answer while nothing can be sent: what is known of the request, or what is in the way.
    async fn recall(&self, order: &Order, obstacle: SendError) -> Result<Sent, SendError> {
        let Some(request) = &order.request else { return Err(obstacle) };
        match self.store.recorded(&self.app.id, &order.openid, request).await? {
            Recorded::Nothing => Err(obstacle),
            Recorded::Finished(outcome) => self.repeat(order, &outcome).await,
            Recorded::UnderWay => Err(SendError::InDoubt(Verdict::default())),
            Recorded::Reused => Err(SendError::RequestReused),
        }
    }

    async fn lease(&self, order: &Order, kinds: Kinds) -> Result<Leased, store::Error> {
        let id = LeaseId::random();
        let ask =
            || self.store.lease(&self.app.id, &order.openid, id, &self.limits.terms, kinds, order.request.as_ref());
        match ask().await {
            // The reply may be all that was lost; asking again with the same id gets the same lease.
            Err(store::Error::Redis(_)) => ask().await,
            result => result,
        }
    }

    async fn repeat(&self, order: &Order, outcome: &[u8]) -> Result<Sent, SendError> {
        let outcome = Outcome::decode(outcome)?;
        if outcome.end == End::Refused {
            return Err(SendError::Refused(outcome.verdict));
        }
        let now = (self.clock.now_ms() / 1000) as i64;
        let inventory = self.store.inventory(&self.app.id, &order.openid, now).await?;
        let messages_left = inventory.values().map(|available| available.messages).sum();
        Ok(Sent { outcome, messages_left, repeated: true })
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

enum Next {
    Done(Sent),
    Failed(SendError),
    Credential(Lease),
}

/// A request that was under way when its user was erased: its credential is gone, and with it what it could tell.
fn lost() -> Sent {
    let outcome = Outcome { end: End::Unknown, verdict: Verdict::default(), attempts: 0, kind: None };
    Sent { outcome, messages_left: 0, repeated: true }
}
