//! Sending to the users of a bucket: page by page out of the audience into flight, and from there to how they ended.

use std::time::Duration;

use deadpool_redis::redis::{self, Cmd, Value};

use super::audience::Choice;
use super::permits::{Permits, read_permits};
use super::{BroadcastId, KEEP_OPEN};
use crate::credential::{AppId, OpenId};
use crate::store::keys::{Bucket, BucketKeys};
use crate::store::late::MsgId;
use crate::store::leases::{Lease, LeaseId, LeaseTerms, Verdict};
use crate::store::{Error, Reply, Store, scripts, unexpected};

/// The most users one call of a script takes or settles: long enough to share its fixed cost, short enough to keep Redis
/// free for others.
pub const PAGE: usize = 64;

/// A message that is ready to be sent.
#[derive(Debug, Clone)]
pub struct Ready {
    /// To whom.
    pub openid: OpenId,
    /// With which credential.
    pub lease: Lease,
    /// What is of this user's own in it; empty if nothing is.
    pub data: Vec<u8>,
}

/// How many messages ended how, by one call: as [`tallies`](super::tallies) has it. A call that is repeated because its
/// reply was lost does not tell again what the first one put on record.
pub type Endings = Vec<(String, u64)>;

/// What was taken of a bucket's audience.
#[derive(Debug, Default)]
pub struct Page {
    /// How many users.
    pub taken: usize,
    /// No user of the audience waits any more.
    pub through: bool,
    /// Of these, back in the audience at once: another subscription message to them is under way.
    pub busy: usize,
    /// Those whose messages ended at once.
    pub endings: Endings,
    /// Those among them for whom there is a credential.
    pub ready: Vec<Ready>,
    /// The permits of the bucket after it.
    pub permits: Permits,
}

/// Messages that were in flight, or in doubt.
#[derive(Debug, Default)]
pub struct TakenOver {
    /// Whose turn it is to be asked again. They may have been delivered.
    pub ready: Vec<Ready>,
    /// When the next of the others can be taken over, if there are any.
    pub wait: Option<Duration>,
    /// Those that were in doubt for too long.
    pub endings: Endings,
}

/// What was settled.
#[derive(Debug, Default)]
pub struct Settled {
    /// Those that go on with their next credential.
    pub next: Vec<(OpenId, Lease)>,
    /// Those that ended.
    pub endings: Endings,
}

/// What is next for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It ended so.
    End(String),
    /// Nothing was sent: its user goes back to the audience.
    Again,
    /// It is in doubt and stays in flight.
    Hold,
    /// The next credential, under this owner; without one it ended so.
    Credential(LeaseId, String),
}

/// How the sending of a message ended.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// Whose message.
    pub openid: OpenId,
    /// The owner of its lease.
    pub owner: LeaseId,
    /// What became of the credential.
    pub verdict: Verdict,
    /// What is next.
    pub next: Next,
    /// WeChat's id of the message, where it gave one: by it a later failure finds the message, see
    /// [`late`](crate::store::late).
    pub msgid: Option<MsgId>,
}

impl Store {
    /// Takes up to `count` users out of the audience of a bucket, at most [`PAGE`] and as many as there are permits, and
    /// leases a credential for each under one owner. `granted` are the permits of the bucket in all. If the reply is lost the
    /// leases run out and are taken over.
    #[allow(clippy::too_many_arguments)]
    pub async fn take_page(
        &self,
        app: &AppId,
        id: &BroadcastId,
        bucket: Bucket,
        owner: LeaseId,
        count: usize,
        granted: u64,
        choice: &Choice,
        terms: &LeaseTerms,
    ) -> Result<Page, Error> {
        let keys = BucketKeys::new(app, bucket);
        let reply: Vec<Value> = self
            .redis()?
            .invoke(&scripts::BROADCAST_PAGE, |command| {
                command.arg(9);
                page_keys(command, &keys, id);
                command.arg(keys.broadcast(id).permits());
                command.arg(id.as_str()).arg(&owner.0).arg(count.min(PAGE)).arg(terms.duration.as_millis() as u64);
                command.arg(terms.margin.as_secs()).arg(choice.wanted.kinds.bits()).arg(choice.wanted.template());
                command.arg(choice.min_interval);
                command.arg(KEEP_OPEN.as_secs()).arg(granted);
            })
            .await?;
        let mut reply = Reply::new(reply);
        let (taken, through, busy, endings) = (reply.next()?, reply.next()?, reply.next()?, reply.next()?);
        let permits = read_permits(granted, &reply.next::<Vec<u64>>()?)?;
        Ok(Page { taken, through, busy, endings, permits, ready: ready(reply, owner)? })
    }

    /// Users of a bucket whose messages are in flight or in doubt, whoever sends them. Few: what fits into flight at once.
    pub async fn in_flight(&self, app: &AppId, id: &BroadcastId, bucket: Bucket) -> Result<Vec<OpenId>, Error> {
        let key = BucketKeys::new(app, bucket).broadcast(id).flight();
        let openids: Vec<String> = self.redis()?.run(redis::cmd("SMEMBERS").arg(key)).await?;
        openids.into_iter().map(|openid| OpenId::parse(openid).map_err(|_| unexpected("no openid"))).collect()
    }

    /// Takes over the messages of these users whose leases are past their deadline, at most [`PAGE`] users. A grant to
    /// whose user another message is under way is waited for too.
    pub async fn take_over(
        &self,
        app: &AppId,
        id: &BroadcastId,
        bucket: Bucket,
        owner: LeaseId,
        openids: &[OpenId],
        terms: &LeaseTerms,
    ) -> Result<TakenOver, Error> {
        let keys = BucketKeys::new(app, bucket);
        let part = keys.broadcast(id);
        let reply: Vec<Value> = self
            .redis()?
            .invoke(&scripts::BROADCAST_TAKEOVER, |command| {
                command.arg(6).arg(keys.users()).arg(keys.leases()).arg(part.flight()).arg(part.tally());
                command.arg(part.data()).arg(part.undelivered());
                command.arg(id.as_str()).arg(&owner.0).arg(terms.duration.as_millis() as u64).arg(KEEP_OPEN.as_secs());
                for openid in openids {
                    command.arg(openid.as_str());
                }
            })
            .await?;
        let mut reply = Reply::new(reply);
        let wait: u64 = reply.next()?;
        let wait = (wait > 0).then(|| Duration::from_millis(wait));
        Ok(TakenOver { wait, endings: reply.next()?, ready: ready(reply, owner)? })
    }

    /// Settles messages of one bucket, at most [`PAGE`]. A delivered one that failed later by now is counted as such. Repeating it changes nothing.
    pub async fn settle_page(
        &self,
        app: &AppId,
        id: &BroadcastId,
        bucket: Bucket,
        settlements: &[Settlement],
        choice: &Choice,
        terms: &LeaseTerms,
    ) -> Result<Settled, Error> {
        let keys = BucketKeys::new(app, bucket);
        let msgids: Vec<_> = settlements.iter().filter_map(|settlement| settlement.msgid).collect();
        let reply: Vec<Value> = self
            .redis()?
            .invoke(&scripts::BROADCAST_SETTLE, |command| {
                command.arg(10 + msgids.len());
                page_keys(command, &keys, id);
                command.arg(keys.broadcast(id).sent()).arg(keys.broadcast(id).permits());
                for msgid in &msgids {
                    command.arg(keys.failed(*msgid));
                }
                command.arg(id.as_str()).arg(self.inner.cap).arg(terms.duration.as_millis() as u64);
                command.arg(terms.margin.as_secs()).arg(choice.wanted.kinds.bits()).arg(choice.wanted.template());
                command.arg(KEEP_OPEN.as_secs());
                for Settlement { openid, owner, verdict, next, msgid } in settlements {
                    command.arg(openid.as_str()).arg(&owner.0).arg(verdict.name());
                    match next {
                        Next::End(ending) => command.arg("end").arg("").arg(ending),
                        Next::Again => command.arg("again").arg("").arg(""),
                        Next::Hold => command.arg("hold").arg("").arg(""),
                        Next::Credential(owner, ending) => command.arg("next").arg(&owner.0).arg(ending),
                    };
                    match msgid {
                        Some(msgid) => command.arg(msgid.0),
                        None => command.arg(""),
                    };
                }
            })
            .await?;
        let mut reply = Reply::new(reply);
        let mut settled = Settled { endings: reply.next()?, next: Vec::new() };
        while !reply.is_empty() {
            let openid: String = reply.next()?;
            let settlement = settlements.iter().find(|settlement| settlement.openid.as_str() == openid);
            let Some(Settlement { openid, next: Next::Credential(owner, _), .. }) = settlement else {
                return Err(unexpected("a lease that nobody asked for"));
            };
            settled.next.push((openid.clone(), reply.lease(*owner)?));
        }
        Ok(settled)
    }
}

fn page_keys(command: &mut Cmd, keys: &BucketKeys, id: &BroadcastId) {
    let part = keys.broadcast(id);
    command.arg(keys.users()).arg(keys.leases()).arg(keys.ledger());
    command.arg(part.todo()).arg(part.flight()).arg(part.tally()).arg(part.data()).arg(part.undelivered());
}

fn ready(mut reply: Reply, owner: LeaseId) -> Result<Vec<Ready>, Error> {
    let mut found = Vec::new();
    while !reply.is_empty() {
        let openid = OpenId::parse(reply.next::<String>()?).map_err(|_| unexpected("no openid"))?;
        found.push(Ready { openid, lease: reply.lease(owner)?, data: reply.next()? });
    }
    Ok(found)
}
