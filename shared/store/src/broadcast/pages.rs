//! Sends to the users of a bucket: page by page from the audience into flight, and from there to their endings.

use std::time::Duration;

use deadpool_redis::redis::{self, Cmd, Value};

use super::Part;
use super::audience::Choice;
use super::permits::{Permits, read_permits};
use crate::ids::MsgId;
use crate::keys::{BucketKeys, PartKeys};
use crate::leases::{Lease, LeaseEnd, LeaseId, LeaseTerms, lease_terms};
use crate::retention::KEEP_OPEN;
use crate::{Error, Reply, scripts, unexpected};
use domain::OpenId;

/// Maximum number of users that one call of a script takes or settles. It is large enough to share the fixed cost of a
/// call, and small enough to keep Redis free for others.
pub const PAGE: usize = 64;

/// A message that is ready to be sent.
#[derive(Debug, Clone)]
pub struct Ready {
    pub openid: OpenId,
    pub lease: Lease,
    /// The user's own data for the message; empty if there is none.
    pub data: Vec<u8>,
}

/// Number of messages by ending for one call, with endings as in [`tallies`](super::tallies). If a call is repeated
/// because its reply was lost, the repetition does not report the endings that the first call recorded.
pub type Endings = Vec<(String, u64)>;

/// Result of taking users out of a bucket's audience.
#[derive(Debug, Default)]
pub struct Page {
    pub taken: usize,
    /// No user of the audience waits any more.
    pub through: bool,
    /// Number of the taken users who were put back into the audience, because another subscription message to them is
    /// in flight.
    pub busy: usize,
    /// The taken users whose messages ended without being sent.
    pub endings: Endings,
    /// The taken users with a leased credential.
    pub ready: Vec<Ready>,
    /// The permits of the bucket after the call.
    pub permits: Permits,
}

/// Messages that were in flight or had an unknown outcome.
#[derive(Debug, Default)]
pub struct TakenOver {
    /// Messages that were taken over and must be sent again. They may have been delivered.
    pub ready: Vec<Ready>,
    /// Time until the next of the others can be taken over; `None` if there are no others.
    pub wait: Option<Duration>,
    /// Messages whose outcome was unknown for too long.
    pub endings: Endings,
}

#[derive(Debug, Default)]
pub struct PageSettleReply {
    /// Messages that continue with their next credential.
    pub next: Vec<(OpenId, Lease)>,
    pub endings: Endings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It ends with this ending.
    End(String),
    /// Nothing was sent: its user returns to the audience.
    Again,
    /// The outcome is unknown: it stays in flight.
    Hold,
    /// The next credential is leased for this owner. If there is none, the message ends with this ending.
    Credential(LeaseId, String),
}

#[derive(Debug, Clone)]
pub struct Settlement {
    pub openid: OpenId,
    pub owner: LeaseId,
    pub verdict: LeaseEnd,
    pub next: Next,
    /// WeChat's id of the message, if WeChat returned one. A later delivery failure refers to the message by it, see
    /// [`delivery_failures`](crate::delivery_failures).
    pub msgid: Option<MsgId>,
}

impl Part<'_> {
    /// Takes up to `count` users out of the audience of a bucket, at most [`PAGE`] and as many as there are permits,
    /// and leases a credential for each under one owner. `granted` is the total number of permits of the bucket. If the
    /// reply is lost, the leases expire and are taken over.
    pub async fn take_page(
        &self,
        owner: LeaseId,
        count: usize,
        granted: u64,
        choice: &Choice,
        terms: &LeaseTerms,
    ) -> Result<Page, Error> {
        let (keys, part) = self.keys();
        let reply: Vec<Value> = self
            .store
            .redis()?
            .invoke(&scripts::BROADCAST_PAGE, |command| {
                command.arg(9);
                page_keys(command, &keys, &part);
                command.arg(part.permits());
                command.arg(self.id.as_str()).arg(&owner.0).arg(count.min(PAGE));
                lease_terms(command, terms, &choice.wanted);
                command.arg(choice.min_interval).arg(KEEP_OPEN.as_secs()).arg(granted);
            })
            .await?;
        let mut reply = Reply::new(reply);
        let (taken, through, busy, endings) = (reply.next()?, reply.next()?, reply.next()?, reply.next()?);
        let permits = read_permits(granted, &reply.next::<Vec<u64>>()?)?;
        Ok(Page { taken, through, busy, endings, permits, ready: ready(reply, owner)? })
    }

    /// Users of a bucket whose messages are in flight or have an unknown outcome, under any owner. There are few: the
    /// number is bounded by what may be in flight at once.
    pub async fn in_flight(&self) -> Result<Vec<OpenId>, Error> {
        let (_, part) = self.keys();
        let openids: Vec<String> = self.store.redis()?.run(redis::cmd("SMEMBERS").arg(part.flight())).await?;
        openids
            .into_iter()
            .map(|openid| OpenId::existing(openid).map_err(|_| unexpected("an invalid openid")))
            .collect()
    }

    /// Takes over the messages of these users whose leases are past their deadline, at most [`PAGE`] users. If the
    /// credential is a grant and another message to the user is in flight, that message counts among those to wait for.
    pub async fn take_over(&self, owner: LeaseId, openids: &[OpenId], terms: &LeaseTerms) -> Result<TakenOver, Error> {
        let (keys, part) = self.keys();
        let reply: Vec<Value> = self
            .store
            .redis()?
            .invoke(&scripts::BROADCAST_TAKEOVER, |command| {
                command.arg(6).arg(keys.users()).arg(keys.leases()).arg(part.flight()).arg(part.tally());
                command.arg(part.data()).arg(part.undelivered());
                command.arg(self.id.as_str()).arg(&owner.0).arg(terms.duration.as_millis() as u64);
                command.arg(KEEP_OPEN.as_secs());
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

    /// Settles messages of one bucket, at most [`PAGE`]. A delivered message with a delivery failure that was reported
    /// already is counted as failed. Repeating the call changes nothing.
    pub async fn settle(
        &self,
        settlements: &[Settlement],
        choice: &Choice,
        terms: &LeaseTerms,
    ) -> Result<PageSettleReply, Error> {
        let (keys, part) = self.keys();
        let msgids: Vec<_> = settlements.iter().filter_map(|settlement| settlement.msgid).collect();
        let reply: Vec<Value> = self
            .store
            .redis()?
            .invoke(&scripts::BROADCAST_SETTLE, |command| {
                command.arg(10 + msgids.len());
                page_keys(command, &keys, &part);
                command.arg(part.sent()).arg(part.permits());
                for msgid in &msgids {
                    command.arg(keys.failed(*msgid));
                }
                command.arg(self.id.as_str()).arg(self.store.inner.cap);
                lease_terms(command, terms, &choice.wanted);
                command.arg(KEEP_OPEN.as_secs());
                for Settlement { openid, owner, verdict, next, msgid } in settlements {
                    command.arg(openid.as_str()).arg(&owner.0).arg(&*verdict.name());
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
        let mut settled = PageSettleReply { endings: reply.next()?, next: Vec::new() };
        while !reply.is_empty() {
            let openid: String = reply.next()?;
            let settlement = settlements.iter().find(|settlement| settlement.openid.as_str() == openid);
            let Some(Settlement { openid, next: Next::Credential(owner, _), .. }) = settlement else {
                return Err(unexpected("a lease that was not requested"));
            };
            settled.next.push((openid.clone(), reply.lease(*owner)?));
        }
        Ok(settled)
    }
}

fn page_keys(command: &mut Cmd, keys: &BucketKeys, part: &PartKeys) {
    command.arg(keys.users()).arg(keys.leases()).arg(keys.ledger());
    command.arg(part.todo()).arg(part.flight()).arg(part.tally()).arg(part.data()).arg(part.undelivered());
}

fn ready(mut reply: Reply, owner: LeaseId) -> Result<Vec<Ready>, Error> {
    let mut found = Vec::new();
    while !reply.is_empty() {
        let openid = OpenId::existing(reply.next::<String>()?).map_err(|_| unexpected("an invalid openid"))?;
        found.push(Ready { openid, lease: reply.lease(owner)?, data: reply.next()? });
    }
    Ok(found)
}
