//! Collects credentials, looks up a user, erases a user.

use std::collections::BTreeMap;

use deadpool_redis::redis;

pub use super::ids::OnceKey;
use super::keys::{Bucket, BucketKeys};
use super::record::{self, Known, Record};
use super::retention::KEEP_REQUESTS;
use super::{Error, Store, scripts};
use domain::{AppId, Credential, Grant, GrantUses, Kind, OpenId, TemplateId};

/// Maximum number of credentials in one call of the collect script. It is large enough to share the fixed cost of a
/// call, and small enough to keep Redis free for others (well under a millisecond).
pub const MAX_COLLECT: usize = 128;

/// The source of the collect script, for benchmarks that run it alone.
pub fn collect_script() -> &'static str {
    &scripts::COLLECT.source
}

/// A credential ready to be stored.
#[derive(Debug, Clone)]
pub struct Packed {
    pub openid: OpenId,
    pub kind: Kind,
    record: Box<[u8]>,
    once: Option<OnceKey>,
    /// The template of an acceptance that WeChat reported, which counts only if no later rejection is known.
    accepted: Option<TemplateId>,
}

impl Packed {
    pub fn record(&self) -> &[u8] {
        &self.record
    }

    pub fn new(openid: OpenId, credential: &Credential) -> Self {
        let mut record = Vec::new();
        record::pack(credential, &mut record);
        Self { openid, kind: credential.kind, record: record.into(), once: None, accepted: None }
    }

    /// Packs a grant for a user. With a dedup key, the grant counts once. Without a key, each packed grant counts, but
    /// only once each: the same call may reach Redis twice.
    pub fn grant(openid: OpenId, grant: &Grant, once: Option<OnceKey>) -> Self {
        let (known, once) = match (once, grant.uses) {
            (Some(key), _) => (Known::Key, Some(key)),
            (None, GrantUses::Count(_)) => (Known::Call, Some(OnceKey(rand::random()))),
            (None, GrantUses::LongTerm) => (Known::Itself, None),
        };
        Self { openid, kind: Kind::Grant, record: record::pack_grant(grant, known).into(), once, accepted: None }
    }

    /// Packs one use of a template that the user accepted at this time, in seconds since 1970. It counts once, and not
    /// if a later rejection is known ([`Store::void`]).
    pub fn accept(openid: OpenId, template: TemplateId, once: OnceKey, at: u32) -> Self {
        let record = record::pack_accept(&template, at).into();
        Self { openid, kind: Kind::Grant, record, once: Some(once), accepted: Some(template) }
    }
}

/// The unit of a user's counts: a kind, and for grants each template separately.
pub type StockKey = (Kind, Option<TemplateId>);

/// The messages available to one user under one [`StockKey`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Available {
    pub credentials: u32,
    /// Number of messages they permit. A long-term subscription counts as one.
    pub messages: u32,
    /// When the first of them expires, in seconds since 1970. For grants, [`record::NEVER`].
    pub soonest_expiry: u32,
    pub latest_expiry: u32,
    pub long_term: bool,
    /// Number of messages that can be sent only after a rest. They and their credentials are not in the numbers above.
    pub resting: u32,
    /// When the last rest ends, in seconds since 1970; 0 if nothing rests.
    pub resting_until: u32,
}

impl Store {
    /// Stores credentials of users of one bucket, at most [`MAX_COLLECT`]. Returns the indexes of those that were
    /// stored already. Repeating the call with the same credentials changes nothing.
    pub async fn collect(&self, app: &AppId, bucket: Bucket, credentials: &[Packed]) -> Result<Vec<usize>, Error> {
        if credentials.is_empty() {
            return Ok(Vec::new());
        }
        debug_assert!(credentials.len() <= MAX_COLLECT);
        let keys = BucketKeys::new(app, bucket);
        let (users, ledger) = (keys.users(), keys.ledger());
        let mut dedup = Vec::new();
        for credential in credentials {
            dedup.extend(credential.once.map(|key| keys.once(key)));
            dedup.extend(credential.accepted.as_ref().map(|template| keys.decided(&credential.openid, template)));
        }
        self.redis()?
            .invoke(&scripts::COLLECT, |command| {
                command.arg(2 + dedup.len()).arg(&users).arg(&ledger).arg(&dedup);
                command.arg(self.inner.cap).arg(self.inner.keep_once.as_secs());
                for credential in credentials {
                    command.arg(credential.openid.as_str()).arg(&*credential.record);
                }
            })
            .await
    }

    /// The stored credentials of a user, soonest expiry first. They include leased credentials (no uses left) and
    /// expired ones that were not swept yet.
    pub async fn records(&self, app: &AppId, openid: &OpenId) -> Result<Vec<Record>, Error> {
        Ok(record::unpack(&self.field(app, openid).await?).collect::<Result<_, _>>()?)
    }

    /// When a user was last sent a message that was delivered or may have been, in seconds since 1970. The time is kept
    /// for [`KEEP_TOUCH`](super::retention::KEEP_TOUCH), and after that until the next read or sweep of the user.
    pub async fn touched(&self, app: &AppId, openid: &OpenId) -> Result<Option<u32>, Error> {
        Ok(record::touched(&self.field(app, openid).await?)?)
    }

    async fn field(&self, app: &AppId, openid: &OpenId) -> Result<Vec<u8>, Error> {
        let users = self.keys(app, openid).users();
        let field: Option<_> = self.redis()?.run(redis::cmd("HGET").arg(users).arg(openid.as_str())).await?;
        Ok(field.unwrap_or_default())
    }

    /// The messages available to a user at `now` (seconds since 1970), and those that rest then. Credentials that expire
    /// within `margin` seconds are left out.
    pub async fn inventory(
        &self,
        app: &AppId,
        openid: &OpenId,
        now: i64,
        margin: u32,
    ) -> Result<BTreeMap<StockKey, Available>, Error> {
        let mut inventory = BTreeMap::<_, Available>::new();
        for Record { credential, long_term, rest, .. } in self.records(app, openid).await? {
            if credential.uses == 0 || i64::from(credential.expiry) <= now + i64::from(margin) {
                continue;
            }
            let template = match credential.kind {
                Kind::Grant => TemplateId::existing(credential.id.as_str()).ok(),
                Kind::FormId | Kind::PrepayId => None,
            };
            let available = inventory.entry((credential.kind, template)).or_default();
            available.long_term |= long_term;
            if let Some(until) = rest.filter(|until| i64::from(*until) > now) {
                available.resting += u32::from(credential.uses);
                available.resting_until = available.resting_until.max(until);
                continue;
            }
            if available.credentials == 0 {
                available.soonest_expiry = credential.expiry;
            }
            available.latest_expiry = credential.expiry;
            available.credentials += 1;
            available.messages += u32::from(credential.uses);
        }
        Ok(inventory)
    }

    /// Revokes the grants of a template because the user rejected it at this time, in seconds since 1970. Returns how
    /// many messages they permitted. As many as the user is known to have accepted since then stay. A leased use ends
    /// by WeChat's answer to its message. Returns `None`, and changes nothing, if the same event was reported before.
    pub async fn void(
        &self,
        app: &AppId,
        openid: &OpenId,
        template: &TemplateId,
        once: OnceKey,
        at: u32,
    ) -> Result<Option<u32>, Error> {
        let keys = self.keys(app, openid);
        let voided: i64 = self
            .redis()?
            .invoke(&scripts::VOID, |command| {
                command.arg(4).arg(keys.users()).arg(keys.ledger()).arg(keys.once(once));
                command.arg(keys.decided(openid, template));
                command.arg(openid.as_str()).arg(template.as_str()).arg(self.inner.keep_once.as_secs()).arg(at);
            })
            .await?;
        Ok(u32::try_from(voided).ok())
    }

    /// Whether the user is known to have rejected the template after this time, in seconds since 1970.
    pub async fn rejected_after(
        &self,
        app: &AppId,
        openid: &OpenId,
        template: &TemplateId,
        at: u32,
    ) -> Result<bool, Error> {
        let key = self.keys(app, openid).decided(openid, template);
        let rejected: Option<f64> = self.redis()?.run(redis::cmd("ZSCORE").arg(key).arg("reject")).await?;
        Ok(rejected.is_some_and(|rejected| rejected > f64::from(at)))
    }

    /// Whether an event about the user was processed before ([`Store::set_processed`]).
    pub async fn is_processed(&self, app: &AppId, openid: &OpenId, once: OnceKey) -> Result<bool, Error> {
        self.redis()?.run(redis::cmd("EXISTS").arg(self.keys(app, openid).once(once))).await
    }

    /// Records that an event about the user was processed. For an event whose processing is safe to repeat until then.
    pub async fn set_processed(&self, app: &AppId, openid: &OpenId, once: OnceKey) -> Result<(), Error> {
        let mut command = redis::cmd("SET");
        command.arg(self.keys(app, openid).once(once)).arg(1).arg("EX").arg(self.inner.keep_once.as_secs());
        self.redis()?.run(&command).await
    }

    /// Deletes everything stored for a user. Returns how many messages it permitted.
    pub async fn erase(&self, app: &AppId, openid: &OpenId) -> Result<u32, Error> {
        let keys = self.keys(app, openid);
        let uses = self
            .redis()?
            .invoke(&scripts::ERASE, |command| {
                command.arg(3).arg(keys.users()).arg(keys.leases()).arg(keys.ledger());
                command.arg(openid.as_str()).arg(KEEP_REQUESTS.as_secs());
            })
            .await?;
        // After the stock is deleted, so that a broadcast that reaches the bucket now does not find the user there.
        self.forget_in_broadcasts(app, openid).await?;
        Ok(uses)
    }
}
