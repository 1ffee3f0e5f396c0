//! Collecting credentials, looking a user up, erasing one.

use std::collections::BTreeMap;
use std::time::Duration;

use deadpool_redis::redis;

use super::keys::{Bucket, BucketKeys};
use super::leases::KEEP_REQUESTS;
use super::record::{self, Known, Record};
use super::{Error, Store, scripts};
use crate::credential::{AppId, Credential, Grant, GrantUses, Kind, OpenId, TemplateId};

/// The most credentials one call of the collect script takes: long enough to share its fixed cost, short enough to
/// keep Redis free for others (well under a millisecond).
pub const MAX_COLLECT: usize = 128;

/// The source of the collect script, for benchmarks that drive it without the rest.
pub fn collect_script() -> &'static str {
    scripts::COLLECT.source
}

/// Names what must count once however often it is told: see [`Packed::grant`] and [`Store::void`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnceKey(pub [u8; 16]);

/// How long a [`OnceKey`] is remembered, unless the store is set to longer.
pub const KEEP_ONCE: Duration = Duration::from_secs(24 * 3600);

/// A credential ready to be stored.
#[derive(Debug, Clone)]
pub struct Packed {
    /// Whose it is.
    pub openid: OpenId,
    /// What it is.
    pub kind: Kind,
    record: Box<[u8]>,
    once: Option<OnceKey>,
}

impl Packed {
    /// The bytes that are stored.
    pub fn record(&self) -> &[u8] {
        &self.record
    }

    /// Packs a credential of a user.
    pub fn new(openid: OpenId, credential: &Credential) -> Self {
        let mut record = Vec::new();
        record::pack(credential, &mut record);
        Self { openid, kind: credential.kind, record: record.into(), once: None }
    }

    /// Packs a grant for a user. With a key it counts once; without, each time one is packed, but once each: the same call
    /// may come to Redis twice.
    pub fn grant(openid: OpenId, grant: &Grant, once: Option<OnceKey>) -> Self {
        let (known, once) = match (once, grant.uses) {
            (Some(key), _) => (Known::Key, Some(key)),
            (None, GrantUses::Count(_)) => (Known::Call, Some(OnceKey(rand::random()))),
            (None, GrantUses::LongTerm) => (Known::Itself, None),
        };
        Self { openid, kind: Kind::Grant, record: record::pack_grant(grant, known).into(), once }
    }
}

/// What of a user's is counted together: a kind, and of grants each template by itself.
pub type Shelf = (Kind, Option<TemplateId>);

/// What is available on one shelf for one user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Available {
    /// How many credentials.
    pub credentials: u32,
    /// How many messages they permit; a long-term subscription counts as one.
    pub messages: u32,
    /// When the first of them expires, in seconds since 1970; of grants [`record::NEVER`].
    pub soonest_expiry: u32,
    /// When the last of them expires.
    pub latest_expiry: u32,
    /// There is a long-term subscription among them.
    pub long_term: bool,
}

impl Store {
    /// Stores credentials of users of one bucket, at most [`MAX_COLLECT`]; answers the places of those that were stored
    /// already. Repeating it with the same ones changes nothing.
    pub async fn collect(&self, app: &AppId, bucket: Bucket, credentials: &[Packed]) -> Result<Vec<usize>, Error> {
        if credentials.is_empty() {
            return Ok(Vec::new());
        }
        debug_assert!(credentials.len() <= MAX_COLLECT);
        let keys = BucketKeys::new(app, bucket);
        let (users, ledger) = (keys.users(), keys.ledger());
        let once: Vec<_> = credentials.iter().filter_map(|credential| credential.once).collect();
        self.redis()?
            .invoke(&scripts::COLLECT, |command| {
                command.arg(2 + once.len()).arg(&users).arg(&ledger);
                for key in &once {
                    command.arg(keys.once(*key));
                }
                command.arg(self.inner.cap).arg(self.inner.keep_once.as_secs());
                for credential in credentials {
                    command.arg(credential.openid.as_str()).arg(&*credential.record);
                }
            })
            .await
    }

    /// The credentials stored of a user, the soonest to expire first, including what is leased (no uses left) or has
    /// expired and was not swept yet.
    pub async fn records(&self, app: &AppId, openid: &OpenId) -> Result<Vec<Record>, Error> {
        Ok(record::unpack(&self.field(app, openid).await?).collect::<Result<_, _>>()?)
    }

    /// When a user was last sent a message that arrived or may have, in seconds since 1970. It is known for
    /// [`record::KEEP_TOUCH`], and on until the user is looked at or swept.
    pub async fn touched(&self, app: &AppId, openid: &OpenId) -> Result<Option<u32>, Error> {
        Ok(record::touched(&self.field(app, openid).await?)?)
    }

    /// All that is stored of a user at rest, packed.
    async fn field(&self, app: &AppId, openid: &OpenId) -> Result<Vec<u8>, Error> {
        let users = self.keys(app, openid).users();
        let field: Option<_> = self.redis()?.run(redis::cmd("HGET").arg(users).arg(openid.as_str())).await?;
        Ok(field.unwrap_or_default())
    }

    /// What is available for a user at `now` (seconds since 1970).
    pub async fn inventory(&self, app: &AppId, openid: &OpenId, now: i64) -> Result<BTreeMap<Shelf, Available>, Error> {
        let mut inventory = BTreeMap::<_, Available>::new();
        for Record { credential, long_term, .. } in self.records(app, openid).await? {
            if credential.uses == 0 || i64::from(credential.expiry) <= now {
                continue;
            }
            let template = match credential.kind {
                Kind::Grant => TemplateId::parse(credential.id.as_str()).ok(),
                Kind::FormId | Kind::PrepayId => None,
            };
            let available = inventory.entry((credential.kind, template)).or_default();
            available.long_term |= long_term;
            if available.credentials == 0 {
                available.soonest_expiry = credential.expiry;
            }
            available.latest_expiry = credential.expiry;
            available.credentials += 1;
            available.messages += u32::from(credential.uses);
        }
        Ok(inventory)
    }

    /// Voids the grants of a template, because the user rejected it; answers how many messages they permitted. What is leased
    /// of them at that moment ends as WeChat says. Nothing, and nothing changed, where the same was told before.
    pub async fn void(
        &self,
        app: &AppId,
        openid: &OpenId,
        template: &TemplateId,
        once: OnceKey,
    ) -> Result<Option<u32>, Error> {
        let keys = self.keys(app, openid);
        let voided: i64 = self
            .redis()?
            .invoke(&scripts::VOID, |command| {
                command.arg(3).arg(keys.users()).arg(keys.ledger()).arg(keys.once(once));
                command.arg(openid.as_str()).arg(template.as_str()).arg(self.inner.keep_once.as_secs());
            })
            .await?;
        Ok(u32::try_from(voided).ok())
    }

    /// Deletes all that is stored of a user; answers how many messages it permitted.
    pub async fn erase(&self, app: &AppId, openid: &OpenId) -> Result<u32, Error> {
        let keys = self.keys(app, openid);
        let uses = self
            .redis()?
            .invoke(&scripts::ERASE, |command| {
                command.arg(3).arg(keys.users()).arg(keys.leases()).arg(keys.ledger());
                command.arg(openid.as_str()).arg(KEEP_REQUESTS.as_secs());
            })
            .await?;
        // After the stock: a broadcast that comes to the bucket now does not find the user there.
        self.forget_in_broadcasts(app, openid).await?;
        Ok(uses)
    }
}
