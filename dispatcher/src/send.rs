//! One message, start to end: lease a credential, call WeChat, settle by what it answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::credential::{Kind, LIFETIME, OpenId};
use shared::store::gates::{Source, Stop};
use shared::store::leases::{Kinds, Lease, LeaseId, LeaseTerms, Leased, Recorded, Request, Settled, Verdict as Fate};
use shared::store::{self, Store};
use tracing::{error, info, warn};

use crate::apps::App;
use crate::clock::Clock;
use crate::gates::Gates;
use crate::outcome::{End, Outcome, SendError, Verdict};
use crate::policy::{Attempt, Exhausted, Pause, Situation, Step, YOUNG};
use crate::wechat::answer::{Meaning, row_of};
use crate::wechat::client::{Client, Reply};
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
    /// The pause before the second attempt; it doubles from there, up to [`LONGEST_PAUSE`].
    pub backoff: Duration,
    /// How long an app that WeChat stopped is left alone, where WeChat does not say.
    pub stop: Duration,
}

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// How often a fresh access token is tried for one message.
const NEW_TOKENS: u32 = 2;

/// How long to wait before Redis is told again what became of a message.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

/// One message to one user.
#[derive(Debug, Clone)]
pub struct Order {
    /// To whom.
    pub openid: OpenId,
    /// What.
    pub message: Message,
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
}

/// How the attempts with one credential ended.
enum Conclusion {
    End(End, Fate),
    NextCredential,
    InDoubt,
    NotSpent(SendError),
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
        Self { app, store, client, tokens, gates, clock, limits }
    }

    /// Sends one message. Must run to its end once it has begun: dropped between lease and settle, it leaves the message
    /// in doubt until the lease is over.
    pub async fn send(&self, order: &Order) -> Result<Sent, SendError> {
        let kinds = match self.ready().await {
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
        let mut tally = Tally { attempts: 0, credentials: 1, last: Verdict::default(), leased_at: asked };
        loop {
            let conclusion = self.try_credential(order, &lease, &mut tally).await;
            match self.settle(order, lease, conclusion, &mut tally).await? {
                Next::Done(sent) => return Ok(sent),
                Next::Failed(error) => return Err(error),
                Next::Credential(next) => lease = next,
            }
        }
    }

    /// What may be used now. Where nothing may, or there is no token, it is no use to take a credential out of stock.
    async fn ready(&self) -> Result<Kinds, SendError> {
        let kinds = self.gates.open().map_err(|stop| SendError::Stopped {
            verdict: Verdict { errcode: Some(stop.errcode), rid: stop.rid },
            lasts: Duration::from_millis(stop.until_ms.saturating_sub(self.clock.now_ms())),
        })?;
        self.tokens.get().await.map_err(SendError::Token)?;
        Ok(kinds)
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

    /// Calls WeChat with one credential until there is something to conclude.
    async fn try_credential(&self, order: &Order, lease: &Lease, tally: &mut Tally) -> Conclusion {
        let mut situation = Situation {
            kind: lease.kind,
            in_doubt: lease.taken_over,
            suspect: lease.suspect,
            age: age(lease),
            retry_unknown: order.retry_unknown,
        };
        if lease.taken_over && (lease.kind == Kind::PrepayId && !order.retry_unknown) {
            return Conclusion::End(End::Unknown, Fate::Consume);
        }
        if lease.taken_over && i64::from(lease.expiry) <= lease.now + self.limits.terms.duration.as_secs() as i64 {
            // WeChat answers 41028 for an expired form id, used or not: it may no longer tell anything.
            return Conclusion::End(End::Unknown, Fate::Return);
        }
        let body = order.message.body(&order.openid, &lease.credential);
        let (mut attempts, mut new_tokens) = (0, 0);
        loop {
            pause_for(self.gates.wait()).await;
            let token = match self.tokens.get().await {
                Ok(token) => token,
                Err(error) => return stuck(situation, SendError::Token(error)),
            };
            tally.attempts += 1;
            attempts += 1;
            let reply = self.client.send(token.value(), body.clone()).await;
            let attempt = self.note(&reply, tally);
            let step = situation.step(attempt);
            situation = situation.after(attempt);
            situation.age = age(lease) + tally.leased_at.elapsed();
            let pause = match step {
                Step::Delivered => return Conclusion::End(End::Delivered, Fate::Consume),
                Step::Unknown => return Conclusion::End(End::Unknown, Fate::Consume),
                Step::UnknownAndDead => return Conclusion::End(End::Unknown, Fate::Discard),
                Step::NextCredential => return Conclusion::NextCredential,
                Step::Refused if situation.in_doubt => return stuck(situation, SendError::Busy(tally.last.clone())),
                Step::Refused => return Conclusion::End(End::Refused, Fate::Return),
                Step::Stopped => return self.stopped(situation, &tally.last).await,
                Step::Again(Pause::NewToken) => {
                    new_tokens += 1;
                    if new_tokens > NEW_TOKENS {
                        return stuck(situation, SendError::Busy(tally.last.clone()));
                    }
                    self.tokens.failed(&token).await;
                    // Not the message's fault: it does not use up a try.
                    attempts -= 1;
                    Duration::ZERO
                }
                Step::Again(Pause::Young) => {
                    attempts -= 1;
                    YOUNG.saturating_sub(situation.age).min(LONGEST_PAUSE).max(self.limits.backoff)
                }
                Step::Again(Pause::SlowDown) => {
                    let pause = self.backoff(attempts);
                    self.gates.slow_down(pause);
                    pause
                }
                Step::Again(Pause::Backoff) => self.backoff(attempts),
            };
            let no_time = tally.leased_at.elapsed() + pause + self.app.timeout >= self.limits.terms.duration;
            if attempts >= self.limits.attempts || no_time {
                let why = if attempt == Attempt::NotSent {
                    SendError::Unreachable
                } else {
                    SendError::Busy(tally.last.clone())
                };
                return stuck(situation, why);
            }
            pause_for(pause).await;
        }
    }

    /// Notes what came back, for the log and for the caller.
    fn note(&self, reply: &Reply, tally: &mut Tally) -> Attempt {
        match reply {
            Reply::Answered { errcode, rid, .. } => {
                let meaning = row_of(*errcode).meaning;
                tally.last = Verdict { errcode: Some(*errcode), rid: rid.clone() };
                match meaning {
                    Meaning::Delivered => {}
                    Meaning::TokenMissing => {
                        error!(app = %self.app.id, errcode, rid, "a call left without its access token")
                    }
                    Meaning::Unknown => warn!(app = %self.app.id, errcode, rid, "a code that is not known here"),
                    Meaning::CredentialBlocked => warn!(app = %self.app.id, errcode, rid, "a blocked form id"),
                    _ => info!(app = %self.app.id, errcode, rid, "WeChat refused"),
                }
                Attempt::Answered(meaning)
            }
            Reply::NotSent(cause) => {
                warn!(app = %self.app.id, %cause, "WeChat cannot be reached");
                Attempt::NotSent
            }
            Reply::Unanswered(cause) => {
                warn!(app = %self.app.id, %cause, "WeChat did not answer");
                Attempt::Unanswered
            }
        }
    }

    /// WeChat stops the app, or a source of it: everybody is told, and the message waits or goes on with another source.
    async fn stopped(&self, situation: Situation, verdict: &Verdict) -> Conclusion {
        let errcode = verdict.errcode.unwrap_or_default();
        let meaning = row_of(errcode).meaning;
        let now = self.clock.now_ms();
        let until_ms = match meaning {
            Meaning::QuotaReached => self.clock.next_day_ms(),
            _ => now + self.limits.stop.as_millis() as u64,
        };
        let sources: &[Source] = match meaning {
            Meaning::SourceBarred(kind) => &[Source::Kind(kind)],
            Meaning::Retired => &[Source::Kind(Kind::FormId), Source::Kind(Kind::PrepayId)],
            _ => &[Source::App],
        };
        self.gates.stop(&self.store, sources, Stop { until_ms, errcode, rid: verdict.rid.clone() }).await;
        let error = SendError::Stopped { verdict: verdict.clone(), lasts: Duration::from_millis(until_ms - now) };
        match (situation.in_doubt, meaning) {
            (false, Meaning::SourceBarred(_)) => Conclusion::SourceStopped(error),
            _ => stuck(situation, error),
        }
    }

    /// Tells Redis what became of the credential and of the request, and gets the next credential where one is needed.
    async fn settle(
        &self,
        order: &Order,
        lease: Lease,
        conclusion: Conclusion,
        tally: &mut Tally,
    ) -> Result<Next, SendError> {
        let outcome =
            |end| Outcome { end, verdict: tally.last.clone(), attempts: tally.attempts, kind: lease.kind.into() };
        let dead = || SendError::CredentialsDead { tried: tally.credentials, verdict: tally.last.clone() };
        let (fate, end, failure, go_on) = match conclusion {
            Conclusion::End(End::Refused, fate) => {
                (fate, Some(outcome(End::Refused)), Some(SendError::Refused(tally.last.clone())), false)
            }
            Conclusion::End(end, fate) => (fate, Some(outcome(end)), None, false),
            Conclusion::NextCredential => {
                (Fate::Discard, None, Some(dead()), tally.credentials < self.limits.credentials)
            }
            Conclusion::InDoubt if order.request.is_some() => {
                (Fate::Hold, None, Some(SendError::InDoubt(tally.last.clone())), false)
            }
            // The message is gone with this call, so its form id may serve another; marked, because it may be used up.
            Conclusion::InDoubt => (Fate::Suspect, Some(outcome(End::Unknown)), None, false),
            Conclusion::NotSpent(error) => (Fate::Return, None, Some(error), false),
            Conclusion::SourceStopped(error) => (Fate::Return, None, Some(error), true),
        };
        let next = match self.gates.open() {
            Ok(kinds) if go_on => Some((LeaseId::random(), kinds)),
            _ => None,
        };
        let delivered = end.as_ref().is_some_and(|outcome| outcome.end == End::Delivered);
        let asked = Instant::now();
        let settled = self.settle_patiently(order, &lease, fate, end.as_ref(), next, tally).await;
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
        Ok(match (end, failure) {
            (_, Some(error)) => Next::Failed(error),
            (Some(outcome), None) => Next::Done(Sent { outcome, messages_left, repeated: false }),
            (None, None) => Next::Failed(SendError::NoCredential),
        })
    }

    /// Settles, again and again while Redis is away, until the lease would be over anyway.
    async fn settle_patiently(
        &self,
        order: &Order,
        lease: &Lease,
        fate: Fate,
        end: Option<&Outcome>,
        next: Option<(LeaseId, Kinds)>,
        tally: &Tally,
    ) -> Option<Settled> {
        let outcome = end.map(Outcome::encode);
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
                    next,
                )
                .await;
            match settled {
                Ok(settled) => return Some(settled),
                Err(error) if tally.leased_at.elapsed() < self.limits.terms.duration => {
                    warn!(app = %self.app.id, %error, "a message is not settled yet");
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
                Err(error) => {
                    error!(app = %self.app.id, %error, "a message is left to the reaper");
                    return None;
                }
            }
        }
    }

    fn backoff(&self, attempts: u32) -> Duration {
        let longest = self.limits.backoff.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
        // Half fixed, half at random, so that those who failed together do not come back together.
        longest.mul_f64(rand::random_range(0.5..=1.0))
    }
}

/// What a send keeps count of.
struct Tally {
    attempts: u32,
    credentials: u32,
    last: Verdict,
    /// Just before the lease was asked for: it is over, at the earliest, one lease later.
    leased_at: Instant,
}

enum Next {
    Done(Sent),
    Failed(SendError),
    Credential(Lease),
}

/// The conclusion when nothing more can be done with the credential now.
fn stuck(situation: Situation, why: SendError) -> Conclusion {
    match situation.exhausted() {
        Exhausted::NotDelivered => Conclusion::NotSpent(why),
        Exhausted::InDoubt => Conclusion::InDoubt,
        Exhausted::Unknown => Conclusion::End(End::Unknown, Fate::Consume),
    }
}

/// A timer for no time would still wait for the timer's next tick.
async fn pause_for(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

/// How long ago the user handed the credential out.
fn age(lease: &Lease) -> Duration {
    Duration::from_secs(
        lease.now.saturating_add(LIFETIME.as_secs() as i64).saturating_sub(i64::from(lease.expiry)).max(0) as u64,
    )
}

/// A request that was under way when its user was erased: its credential is gone, and with it what it could tell.
fn lost() -> Sent {
    let outcome = Outcome { end: End::Unknown, verdict: Verdict::default(), attempts: 0, kind: Kind::FormId.into() };
    Sent { outcome, messages_left: 0, repeated: true }
}
