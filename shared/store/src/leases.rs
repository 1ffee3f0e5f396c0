//! Leases: a lease holds a credential for one message until the message is settled.

use std::borrow::Cow;
use std::time::Duration;

use deadpool_redis::redis::{self, Cmd, Value};

use super::eligibility::Eligibility;
use super::keys::{Bucket, BucketKeys, request_name};
use super::{Error, Reply, Store, scripts, unexpected};
use domain::{AppId, CredentialId, Kind, OpenId, RequestId};

/// The position of the message fingerprint in a packed lease, see head/leases.lua.
const FINGERPRINT: std::ops::Range<usize> = 38..54;

/// Identifies a lease and its owner. The caller chooses it at random. A repeated call with the same id returns the same
/// lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub [u8; 16]);

impl LeaseId {
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// The request that a message belongs to, for calls that may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub id: RequestId,
    /// A digest of the message. Reusing a request id for another message is an error.
    pub fingerprint: [u8; 16],
}

#[derive(Debug, Clone, Copy)]
pub struct LeaseTerms {
    /// How long the owner has the lease exclusively.
    pub duration: Duration,
    /// A credential with a shorter remaining lifetime is not leased.
    pub margin: Duration,
    /// How long a request id and its outcome are kept.
    pub keep: Duration,
}

/// One use of one credential, held for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub id: LeaseId,
    /// The credential to send to WeChat; for a grant, its template.
    pub credential: CredentialId,
    pub kind: Kind,
    /// When the credential expires, in seconds since 1970 by Redis' clock.
    pub expiry: u32,
    /// When the lease was made, by the same clock.
    pub now: i64,
    /// The credential was leased before for another message, which ended with its outcome unknown and may have used it.
    pub suspect: bool,
    /// This message was in flight before with this credential, and its outcome is unknown.
    pub taken_over: bool,
    /// Number of messages that can still be sent to the user after this one.
    pub messages_left: u32,
}

#[derive(Debug, Clone, Copy)]
pub struct NewLease<'a> {
    pub id: LeaseId,
    /// The request of the message, if the call may be repeated.
    pub request: Option<&'a Request>,
    pub wanted: &'a Eligibility,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leased {
    Lease(Lease),
    /// The user has no credential of an allowed kind.
    None,
    /// The user has such credentials, but they rest. The first rest ends then, in seconds since 1970 by Redis' clock.
    Resting(i64),
    /// The request is finished. Contains its recorded outcome.
    Finished(Vec<u8>),
    /// Another owner holds the lease of this request; it expires within this time.
    UnderWay(Duration),
    /// The request id belongs to another message.
    Reused,
    /// The request was in flight when its user was erased.
    Lost,
    /// Another subscription message to the user is in flight, for at most this time. WeChat accepts one at a time.
    Busy(Duration),
}

/// The known state of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// Nothing is recorded: the request never got a lease, or its record has expired.
    Nothing,
    /// Its recorded outcome.
    Finished(Vec<u8>),
    /// It has a lease: it is in flight, or its outcome is unknown.
    UnderWay,
    /// The request id belongs to another message.
    Reused,
}

/// How the end of a lease affects its credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEnd {
    /// The message was delivered: the use is spent, and the time of the last message is set.
    Consume,
    /// Like `Consume`, for a message whose outcome is unknown. Such uses are also counted separately.
    Unknown,
    /// Like `Unknown`, and WeChat rejected the credential as invalid: it is deleted with its remaining uses.
    UnknownDiscard,
    /// Like `Unknown`, and the user refuses the template: all other grants of that template are deleted.
    UnknownVoid,
    /// The use was not spent: it returns to stock.
    Return,
    /// The message ended with its outcome unknown and may have used the credential. The credential returns to stock,
    /// marked as suspect, and the time of the last message is set.
    Suspect,
    /// WeChat rejected the credential as invalid: it is deleted with all remaining uses.
    Discard,
    /// The user refuses the template: the grant is deleted with all others of that template.
    Void,
    /// WeChat refused the credential and may accept it later: the use returns to stock. A prepay id then rests for so
    /// many seconds: it is not leased. A grant rests with all others of its template. If they have rested before, they
    /// are deleted; while they rest, nothing changes.
    Rest(u32),
    /// Like `Unknown` for the use, and like `Rest` for the others.
    UnknownRest(u32),
    /// The outcome is unknown: the credential stays reserved for its message, which the caller may repeat immediately.
    /// Requires a request id.
    Hold,
}

impl LeaseEnd {
    pub(super) fn name(self) -> Cow<'static, str> {
        match self {
            Self::Consume => "consume".into(),
            Self::Unknown => "unknown".into(),
            Self::UnknownDiscard => "unknown_discard".into(),
            Self::UnknownVoid => "unknown_void".into(),
            Self::Return => "return".into(),
            Self::Suspect => "suspect".into(),
            Self::Discard => "discard".into(),
            Self::Void => "void".into(),
            Self::Hold => "hold".into(),
            Self::Rest(seconds) => format!("rest {seconds}").into(),
            Self::UnknownRest(seconds) => format!("unknown_rest {seconds}").into(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Settle<'a> {
    pub id: LeaseId,
    /// The request of the message, if the call may be repeated.
    pub request: Option<&'a Request>,
    pub end: LeaseEnd,
    /// The outcome to store under the request id. If `None`, the request is forgotten and may be retried.
    pub outcome: Option<&'a [u8]>,
    /// A lease of the next credential for the same message, made in the same step.
    pub next: Option<(LeaseId, &'a Eligibility)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettleReply {
    Done {
        messages_left: u32,
    },
    /// The lease was gone: taken over, reaped or erased. Nothing changed.
    Stale,
    /// The lease was settled, and the next credential was leased as requested.
    Next(Lease),
    /// The lease was settled, and there is no next credential. Either the user has none, or the next is a grant and
    /// another message to the user is in flight.
    NoNext,
    /// The lease was settled, and the next credentials rest: see [`Leased::Resting`].
    NextRests(i64),
}

/// Result of the reaper in one bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Leases that stay reserved for their message, which the caller may repeat.
    pub pinned: u32,
    /// Form ids returned to stock, marked as suspect.
    pub suspect: u32,
    /// Uses counted as spent, because the outcome of their messages is unknown.
    pub spent: u32,
}

impl Store {
    /// Leases one use of the user's credential that expires soonest, or returns what is known about the request.
    pub async fn lease(
        &self,
        app: &AppId,
        openid: &OpenId,
        new: &NewLease<'_>,
        terms: &LeaseTerms,
    ) -> Result<Leased, Error> {
        let keys = self.keys(app, openid);
        let reply: Vec<Value> = self
            .redis()?
            .invoke(&scripts::LEASE, |command| {
                lease_keys(command, &keys, openid, new.request);
                command.arg(openid.as_str());
                lease_names(command, openid, new.id, new.request);
                lease_terms(command, terms, new.wanted);
            })
            .await?;
        let mut reply = Reply::new(reply);
        match reply.next::<String>()?.as_str() {
            "leased" => reply.lease(new.id).map(Leased::Lease),
            "none" => Ok(reply.rest()?.map_or(Leased::None, Leased::Resting)),
            "finished" => Ok(Leased::Finished(reply.next()?)),
            "under_way" => Ok(Leased::UnderWay(Duration::from_millis(reply.next()?))),
            "reused" => Ok(Leased::Reused),
            "lost" => Ok(Leased::Lost),
            "busy" => Ok(Leased::Busy(Duration::from_millis(reply.next()?))),
            other => Err(unexpected(other)),
        }
    }

    /// Reads what is known about a request. Changes nothing.
    pub async fn recorded(&self, app: &AppId, openid: &OpenId, request: &Request) -> Result<Recorded, Error> {
        let keys = self.keys(app, openid);
        let redis = self.redis()?;
        let outcome: Option<Vec<u8>> = redis.run(redis::cmd("GET").arg(keys.request(openid, &request.id))).await?;
        if let Some(outcome) = outcome {
            let (fingerprint, outcome) =
                outcome.split_at_checked(16).ok_or_else(|| unexpected("a truncated outcome"))?;
            let mine = fingerprint == request.fingerprint;
            return Ok(if mine { Recorded::Finished(outcome.to_vec()) } else { Recorded::Reused });
        }
        let name = request_name(openid, &request.id);
        let lease: Option<Vec<u8>> = redis.run(redis::cmd("HGET").arg(keys.leases()).arg(name)).await?;
        Ok(match lease {
            None => Recorded::Nothing,
            Some(lease) if lease.get(FINGERPRINT) == Some(&request.fingerprint[..]) => Recorded::UnderWay,
            Some(_) => Recorded::Reused,
        })
    }

    /// Settles a lease. If `settle.next` is given, leases the next credential in the same step.
    pub async fn settle(
        &self,
        app: &AppId,
        openid: &OpenId,
        settle: &Settle<'_>,
        terms: &LeaseTerms,
    ) -> Result<SettleReply, Error> {
        let Settle { id, request, end, outcome, next } = *settle;
        let keys = self.keys(app, openid);
        let reply: Vec<Value> = self
            .redis()?
            .invoke(&scripts::SETTLE, |command| {
                lease_keys(command, &keys, openid, request);
                command.arg(openid.as_str());
                lease_names(command, openid, id, request);
                command.arg(self.inner.cap).arg(&*end.name());
                command.arg(outcome.unwrap_or_default()).arg(terms.keep.as_secs());
                if let Some((next, wanted)) = next {
                    lease_names(command, openid, next, request);
                    lease_terms(command, terms, wanted);
                }
            })
            .await?;
        let mut reply = Reply::new(reply);
        match (reply.next::<String>()?.as_str(), next) {
            ("settled", _) => Ok(SettleReply::Done { messages_left: reply.next()? }),
            ("stale", _) => Ok(SettleReply::Stale),
            ("leased", Some((next, _))) => reply.lease(next).map(SettleReply::Next),
            ("none", _) => {
                let _: u32 = reply.next()?;
                Ok(reply.rest()?.map_or(SettleReply::NoNext, SettleReply::NextRests))
            }
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Processes the leases of one bucket that are past their deadline, about `page` leases per call of the script.
    pub async fn reap(&self, app: &AppId, bucket: Bucket, terms: &LeaseTerms, page: u32) -> Result<Reaped, Error> {
        let keys = BucketKeys::new(app, bucket);
        let mut reaped = Reaped::default();
        let mut cursor = "0".to_owned();
        loop {
            let (next, pinned, suspect, spent): (String, u32, u32, u32) = self
                .redis()?
                .invoke(&scripts::REAP, |command| {
                    command.arg(3).arg(keys.users()).arg(keys.leases()).arg(keys.ledger());
                    command.arg(&cursor).arg(page).arg(terms.keep.as_secs()).arg(self.inner.cap);
                })
                .await?;
            reaped.pinned += pinned;
            reaped.suspect += suspect;
            reaped.spent += spent;
            if next == "0" {
                return Ok(reaped);
            }
            cursor = next;
        }
    }
}

fn lease_keys(command: &mut Cmd, keys: &BucketKeys, openid: &OpenId, request: Option<&Request>) {
    command.arg(if request.is_some() { 4 } else { 3 });
    command.arg(keys.users()).arg(keys.leases()).arg(keys.ledger());
    if let Some(request) = request {
        command.arg(keys.request(openid, &request.id));
    }
}

/// Appends the name of a lease within its bucket, and "who" as described in head/leases.lua.
fn lease_names(command: &mut Cmd, openid: &OpenId, id: LeaseId, request: Option<&Request>) {
    match request {
        Some(request) => command.arg(request_name(openid, &request.id)),
        None => command.arg(&id.0),
    };
    let request_id = request.map_or("", |request| request.id.as_str());
    let mut who = Vec::with_capacity(34 + openid.as_str().len() + request_id.len());
    who.extend_from_slice(&id.0);
    who.extend_from_slice(&request.map_or([0; 16], |request| request.fingerprint));
    for text in [openid.as_str(), request_id] {
        // Both are at most 128 bytes.
        who.push(text.len() as u8);
        who.extend_from_slice(text.as_bytes());
    }
    command.arg(who);
}

/// Appends the duration of a new lease, and the arguments of [`eligible`].
pub(super) fn lease_terms(command: &mut Cmd, terms: &LeaseTerms, wanted: &Eligibility) {
    command.arg(terms.duration.as_millis() as u64);
    eligible(command, terms, wanted);
}

/// Appends which credentials may be leased.
pub(super) fn eligible(command: &mut Cmd, terms: &LeaseTerms, wanted: &Eligibility) {
    command.arg(terms.margin.as_secs()).arg(wanted.kinds.bits()).arg(wanted.template());
}
