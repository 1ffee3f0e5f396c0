//! Functions that single messages and broadcasts share: whether the app can send now, and the calls to WeChat with one
//! credential until there is a result.

use std::time::Duration;

use domain::{Kind, LIFETIME, TemplateId};
use store::eligibility::Kinds;
use store::leases::{Lease, LeaseEnd};
use store::stops::{Stop, StopScope};
use tracing::{debug, error, warn};

use super::{AttemptResult, Progress, SendRequest};
use crate::context::AppContext;
use crate::send::outcome::{End, SendError, WechatAnswer};
use crate::send::policy::{Attempt, Exhausted, Pause, Situation, Step, YOUNG, stop_scopes};
use crate::wechat::errcode::{Meaning, blamed_key, is_key, row_of, seen_address};
use crate::wechat::message::Message;
use crate::wechat::reply::Reply;

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// Maximum number of times that a new access token is obtained for one message with one credential.
const NEW_TOKENS: u32 = 2;

/// When another message may be tried for a user who gets messages too often. WeChat does not document how long it
/// refuses them.
const USER_BUSY: Duration = Duration::from_secs(60);

impl AppContext {
    /// Returns the kinds out of `wanted` that messages of the template may use now. Fails if there are none or if there
    /// is no access token: then a credential must not be taken out of stock.
    pub async fn ready(&self, wanted: Kinds, template: &TemplateId) -> Result<Kinds, SendError> {
        let usable = self.stops.usable(wanted, template).map_err(|stop| self.stopped_by(stop))?;
        self.tokens.get().await.map_err(SendError::Token)?;
        Ok(usable)
    }

    /// Fails if messages of the template may not use any kind of `wanted` now, or if there is no access token.
    pub async fn ready_with_all(&self, wanted: Kinds, template: &TemplateId) -> Result<(), SendError> {
        self.stops.check_all(wanted, template).map_err(|(_, stop)| self.stopped_by(stop))?;
        self.tokens.get().await.map(drop).map_err(SendError::Token)
    }

    fn stopped_by(&self, stop: Stop) -> SendError {
        SendError::Stopped {
            answer: WechatAnswer {
                errcode: Some(stop.errcode),
                rid: stop.rid,
                address: stop.address,
                ..WechatAnswer::default()
            },
            lasts: Duration::from_millis(stop.until_ms.saturating_sub(self.clock.now_ms())),
        }
    }

    /// Calls WeChat with the credential of `lease` until there is a result.
    pub async fn try_credential(&self, order: &SendRequest, lease: &Lease, progress: &mut Progress) -> AttemptResult {
        let mut situation = Situation {
            kind: lease.kind,
            in_doubt: lease.taken_over,
            suspect: lease.suspect,
            age: age(lease),
            retry_unknown: order.retry_unknown,
        };
        let at_most_once = lease.kind != Kind::FormId && !order.retry_unknown;
        // WeChat answers 41028 for an expired form id, used or not, so the answer would prove nothing.
        let expires = i64::from(lease.expiry) <= lease.now + self.limits.terms.duration.as_secs() as i64;
        if lease.taken_over && (at_most_once || expires) {
            return AttemptResult::End(End::Unknown, LeaseEnd::Unknown);
        }
        let body = order.message.body(&order.openid, &lease.credential);
        let (mut attempts, mut new_tokens) = (0, 0);
        loop {
            pause_for(self.stops.wait()).await;
            // The stop may be newer than the lease: of another message, or while the credential was held.
            let kinds = std::iter::once(lease.kind).collect();
            if let Err((scope, stop)) = self.stops.check_all(kinds, &order.message.template_id) {
                let error = self.stopped_by(stop);
                return match scope {
                    StopScope::Kind(_) if !situation.in_doubt => AttemptResult::SourceStopped(error),
                    _ => blocked(situation, error),
                };
            }
            let token = match self.tokens.get().await {
                Ok(token) => token,
                Err(error) => return blocked(situation, SendError::Token(error)),
            };
            progress.attempts += 1;
            attempts += 1;
            let reply = self.client.send(order.message.delivery, token.value(), body.clone()).await;
            let attempt = self.note(&reply, &order.message, progress);
            let step = situation.step(attempt);
            situation = situation.after(attempt);
            situation.age = age(lease) + progress.leased_at.elapsed();
            let pause = match step {
                Step::Delivered => return AttemptResult::End(End::Delivered, LeaseEnd::Consume),
                Step::Unknown => return AttemptResult::End(End::Unknown, LeaseEnd::Unknown),
                Step::UnknownAndDead => return AttemptResult::End(End::Unknown, LeaseEnd::UnknownDiscard),
                Step::NextCredential => return AttemptResult::NextCredential(LeaseEnd::Discard),
                Step::RestCredential => {
                    return AttemptResult::NextCredential(LeaseEnd::Rest(seconds(self.limits.prepay_rest)));
                }
                Step::Refused if situation.in_doubt => return stuck(situation, SendError::Busy(progress.last.clone())),
                Step::Refused => return AttemptResult::End(End::Refused, LeaseEnd::Return),
                Step::GrantRefused => return self.grant_refused(situation.in_doubt),
                Step::UserBusy => {
                    return stuck(situation, SendError::UserBusy { lasts: USER_BUSY, answer: progress.last.clone() });
                }
                Step::Stopped => return self.stopped(situation, &order.message, &progress.last).await,
                Step::Again(Pause::NewToken) => {
                    new_tokens += 1;
                    if new_tokens > NEW_TOKENS {
                        return blocked(situation, SendError::Busy(progress.last.clone()));
                    }
                    self.tokens.failed(&token).await;
                    // The token was the reason, so this attempt does not count.
                    attempts -= 1;
                    Duration::ZERO
                }
                Step::Again(Pause::Young) => {
                    attempts -= 1;
                    YOUNG.saturating_sub(situation.age).min(LONGEST_PAUSE).max(self.limits.backoff)
                }
                Step::Again(Pause::SlowDown) => {
                    let pause = self.backoff(attempts);
                    self.stops.slow_down(pause);
                    pause
                }
                Step::Again(Pause::Backoff) => self.backoff(attempts),
            };
            let no_time = progress.leased_at.elapsed() + pause + self.app.timeout >= self.limits.terms.duration;
            if attempts >= self.limits.attempts || no_time {
                let why = if attempt == Attempt::NotSent {
                    SendError::Unreachable
                } else {
                    SendError::Busy(progress.last.clone())
                };
                return stuck(situation, why);
            }
            pause_for(pause).await;
        }
    }

    /// Records the reply for the log and for the caller.
    fn note(&self, reply: &Reply, message: &Message, progress: &mut Progress) -> Attempt {
        match reply {
            Reply::Answered { errcode, errmsg, rid, msgid } => {
                let meaning = row_of(*errcode).meaning;
                // Errmsg is text from outside. It is passed on only where it is one of the message's own keys, looks
                // like a key that the message lacks, or is an address.
                let key = blamed_key(errmsg).filter(|key| message.data.contains_key(*key) || is_key(key));
                let address = (meaning == Meaning::AddressRefused).then(|| seen_address(errmsg)).flatten();
                progress.last = WechatAnswer {
                    errcode: Some(*errcode),
                    rid: rid.clone(),
                    key: key.map(str::to_owned),
                    msgid: *msgid,
                    address,
                };
                progress.congested |= meaning == Meaning::RateReached;
                match meaning {
                    Meaning::Delivered => {}
                    Meaning::TokenMissing => {
                        error!(app = %self.app.id, errcode, rid, "a call was sent without an access token")
                    }
                    Meaning::Unknown => {
                        self.metrics.unknown_errcodes.inc();
                        warn!(app = %self.app.id, errcode, rid, "WeChat answered with an unknown errcode")
                    }
                    Meaning::CredentialBlocked => warn!(app = %self.app.id, errcode, rid, "WeChat blocked a form id"),
                    _ => debug!(app = %self.app.id, errcode, rid, "WeChat refused"),
                }
                Attempt::Answered(meaning)
            }
            Reply::NotSent(_) => {
                progress.congested = true;
                Attempt::NotSent
            }
            Reply::Unanswered(_) => {
                progress.congested = true;
                Attempt::Unanswered
            }
        }
    }

    /// WeChat stopped the app, or a part of it. All replicas learn of it. The message ends, or continues with another
    /// source.
    async fn stopped(&self, situation: Situation, message: &Message, answer: &WechatAnswer) -> AttemptResult {
        let errcode = answer.errcode.unwrap_or_default();
        let meaning = row_of(errcode).meaning;
        let now = self.clock.now_ms();
        let until_ms = match meaning {
            Meaning::QuotaReached => self.clock.next_day_ms(),
            _ => now + self.limits.stop.as_millis() as u64,
        };
        let scopes = stop_scopes(meaning, situation.kind, &message.template_id);
        let stop = Stop { until_ms, errcode, rid: answer.rid.clone(), address: answer.address };
        self.stops.stop(&self.store, &scopes, stop).await;
        let error = SendError::Stopped { answer: answer.clone(), lasts: Duration::from_millis(until_ms - now) };
        match (situation.in_doubt, meaning) {
            (false, Meaning::SourceBarred(_)) => AttemptResult::SourceStopped(error),
            _ => blocked(situation, error),
        }
    }

    /// The answer says nothing about an earlier, unanswered attempt.
    fn grant_refused(&self, in_doubt: bool) -> AttemptResult {
        let (end, lease_end) = match (in_doubt, seconds(self.app.refused_rest)) {
            (false, 0) => (End::Refused, LeaseEnd::Void),
            (false, rest) => (End::Refused, LeaseEnd::Rest(rest)),
            (true, 0) => (End::Unknown, LeaseEnd::UnknownVoid),
            (true, rest) => (End::Unknown, LeaseEnd::UnknownRest(rest)),
        };
        AttemptResult::End(end, lease_end)
    }

    fn backoff(&self, attempts: u32) -> Duration {
        let longest = self.limits.backoff.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
        // Half fixed, half random, so that messages that failed together do not retry together.
        longest.mul_f64(rand::random_range(0.5..=1.0))
    }
}

/// The result when nothing more can be done with the credential now.
fn stuck(situation: Situation, why: SendError) -> AttemptResult {
    match situation.exhausted() {
        Exhausted::Unknown => AttemptResult::End(End::Unknown, LeaseEnd::Unknown),
        Exhausted::NotDelivered | Exhausted::InDoubt => blocked(situation, why),
    }
}

/// The result when something other than the message and its user prevents the next attempt. It does not end the
/// message: after an unanswered attempt, the message may be repeated with the same credential, whatever its kind.
fn blocked(situation: Situation, why: SendError) -> AttemptResult {
    if situation.in_doubt { AttemptResult::InDoubt(why) } else { AttemptResult::NotSpent(why) }
}

/// Skips the timer for a zero pause: even that would wait for the timer's next tick.
async fn pause_for(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

/// The duration of a rest in whole seconds, rounded up.
fn seconds(rest: Duration) -> u32 {
    u32::try_from(rest.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// Time since the user handed out the credential.
fn age(lease: &Lease) -> Duration {
    Duration::from_secs(
        lease.now.saturating_add(LIFETIME.as_secs() as i64).saturating_sub(i64::from(lease.expiry)).max(0) as u64,
    )
}
