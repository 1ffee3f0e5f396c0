//! Everything that is kept in Redis.
//!
//! A hash per app and bucket holds everything of its users: field = openid, value = the user's credentials and the time
//! of the last message, packed. It is stock and roster at once. Beside it stand the leases (what is in flight), the
//! ledger (where everything went), and a record for each request id. All changes are made by Lua scripts, each in one
//! step on the keys of one bucket.
//!
//! - [`keys`]: the names of all keys; [`record`]: the packed format; `scripts`: the Lua files;
//! - [`credentials`]: collect, look up, void, erase; [`leases`]: lease, settle, reap; [`wanted`]: what may be leased;
//!   [`stock`]: sweep and count;
//! - [`broadcast`]: what is sent to many, and how far it is; [`late`]: what WeChat could not deliver after all;
//! - [`tokens`]: the shared access token; [`gates`]: what WeChat refuses of an app for now;
//! - `connections`: how commands travel; `reply`: how answers of scripts are read.
//!
//! Scripts take the time from Redis, so the clocks of the replicas do not matter.

pub mod broadcast;
mod connections;
pub mod credentials;
pub mod gates;
pub mod keys;
pub mod late;
pub mod leases;
pub mod record;
mod reply;
mod scripts;
pub mod stock;
pub mod tokens;
mod told;
pub mod wanted;

use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::{self, FromRedisValue as _, RedisError};
use tokio::sync::watch;
use tracing::warn;

use crate::credential::{AppId, OpenId};
use crate::metrics::redis::RedisMetrics;
use connections::Connections;
pub use connections::{BadUrl, RedisConfig, RedisUrl};
use keys::{Bucket, BucketKeys};
use reply::Reply;
use told::{Told, unexpected};

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis answered with an error, or not at all. Whether a write took place is not known.
    #[error("Redis: {}", Told(.0))]
    Redis(#[source] Box<RedisError>),
    /// There is no connection to Redis: nothing was written.
    #[error("Redis is not reachable: {0}")]
    Unavailable(String),
    /// What was read is not in the format of this release.
    #[error("stored data that this release cannot read: {0}")]
    Corrupt(String),
    /// This Redis was first used with another number of buckets.
    #[error(
        "this Redis holds {found} buckets an app, the setting says {wanted}: every user would be looked for in the wrong place"
    )]
    BucketCount {
        /// What Redis holds.
        found: u16,
        /// What the setting says.
        wanted: u16,
    },
}

impl From<record::Corrupt> for Error {
    fn from(corrupt: record::Corrupt) -> Self {
        Self::Corrupt(corrupt.to_string())
    }
}

/// What the store is told by settings.
#[derive(Clone)]
pub struct StoreConfig {
    /// How Redis is reached.
    pub redis: RedisConfig,
    /// How many parts each app's users are spread over; fixed for the life of a Redis.
    pub buckets: u16,
    /// The most credentials kept for one user.
    pub cap: u16,
}

/// The names that commands and scripts go by in metrics.
pub(crate) fn commands() -> impl Iterator<Item = &'static str> {
    connections::COMMANDS.split_whitespace().chain(scripts::all().map(|script| script.file))
}

/// A handle on Redis, cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    connections: Connections,
    /// This Redis was found usable: users are in the buckets where they are looked for.
    prepared: watch::Sender<bool>,
    buckets: u16,
    cap: u16,
}

impl Store {
    /// Prepares a store without talking to Redis; see [`Store::prepare`].
    pub fn new(config: &StoreConfig) -> Result<Self, Error> {
        Self::made(config, None)
    }

    /// The same, with what is asked of Redis counted.
    pub fn counted(config: &StoreConfig, metrics: RedisMetrics) -> Result<Self, Error> {
        Self::made(config, Some(metrics))
    }

    fn made(config: &StoreConfig, metrics: Option<RedisMetrics>) -> Result<Self, Error> {
        let connections = Connections::new(&config.redis, metrics)?;
        let (buckets, prepared) = (config.buckets.max(1), watch::Sender::new(false));
        Ok(Self { inner: Arc::new(Inner { connections, prepared, buckets, cap: config.cap }) })
    }

    /// The same store by connections of its own, for work that should not stand in line with other work. It is usable once
    /// the first one is.
    pub fn beside(&self, config: &StoreConfig) -> Result<Self, Error> {
        let Inner { connections, prepared, buckets, cap } = &*self.inner;
        let connections = Connections::new(&config.redis, connections.metrics().cloned())?;
        Ok(Self { inner: Arc::new(Inner { connections, prepared: prepared.clone(), buckets: *buckets, cap: *cap }) })
    }

    /// Makes Redis ready: loads the scripts, notes or checks the number of buckets, and warns of settings under which
    /// Redis may forget.
    pub async fn prepare(&self) -> Result<(), Error> {
        let prepared = self.make_ready().await;
        self.show_up(prepared.is_ok());
        prepared
    }

    async fn make_ready(&self) -> Result<(), Error> {
        let connections = &self.inner.connections;
        let wanted = self.inner.buckets;
        let _: bool = connections.run(redis::cmd("SETNX").arg(keys::BUCKETS).arg(wanted)).await?;
        let found: u16 = connections.run(redis::cmd("GET").arg(keys::BUCKETS)).await?;
        if found != wanted {
            return Err(Error::BucketCount { found, wanted });
        }
        for script in scripts::all() {
            connections.load(script).await?;
        }
        self.warn_of_forgetful_settings().await;
        self.inner.prepared.send_replace(true);
        Ok(())
    }

    /// Ends once [`Store::prepare`] has succeeded: until then nothing else does.
    pub async fn prepared(&self) {
        // The sender lives as long as this store does, so there is nothing to go wrong.
        let _ = self.inner.prepared.subscribe().wait_for(|prepared| *prepared).await;
    }

    /// Whether Redis takes commands; of a cluster, whether any of its masters does.
    pub async fn ping(&self) -> Result<(), Error> {
        let answer = self.inner.connections.ping().await;
        self.show_up(answer.is_ok());
        answer
    }

    fn show_up(&self, up: bool) {
        if let Some(metrics) = self.inner.connections.metrics() {
            metrics.is_up(up);
        }
    }

    async fn warn_of_forgetful_settings(&self) {
        let policies = self.setting("maxmemory-policy").await;
        if let Some(policy) = policies.iter().find(|policy| *policy != "noeviction") {
            warn!(maxmemory_policy = policy, "Redis may evict credentials: set maxmemory-policy to noeviction");
        }
        if self.setting("appendonly").await.iter().any(|value| value == "no") {
            warn!("Redis has no append-only file: a restart of Redis loses what came since its last snapshot");
        }
    }

    /// One of Redis' own settings, on each master; nothing where CONFIG is forbidden, as some hosted services do.
    async fn setting(&self, name: &str) -> Vec<String> {
        let masters = self.inner.connections.everywhere(redis::cmd("CONFIG").arg("GET").arg(name)).await;
        let value = |reply| Vec::<String>::from_redis_value(reply).ok()?.into_iter().nth(1);
        masters.unwrap_or_default().into_iter().filter_map(value).collect()
    }

    /// The connections, once this Redis was found usable.
    fn redis(&self) -> Result<&Connections, Error> {
        if *self.inner.prepared.borrow() {
            return Ok(&self.inner.connections);
        }
        Err(Error::Unavailable("it was not reached so far".into()))
    }

    /// Takes a key for `ttl` by a value chosen at random; false when another has it.
    async fn take(&self, key: &str, value: &str, ttl: Duration) -> Result<bool, Error> {
        self.redis()?
            .invoke(&scripts::SET_ONCE, |command| {
                command.arg(1).arg(key).arg(value).arg((ttl.as_millis() as u64).max(1));
            })
            .await
    }

    /// Takes a key for `ttl` that nobody gives back before; false when somebody has it.
    async fn take_turn(&self, key: &str, ttl: Duration) -> Result<bool, Error> {
        self.take(key, &format!("{:016x}", rand::random::<u64>()), ttl).await
    }

    /// The bucket a user lives in: what [`Store::collect`] wants its credentials grouped by.
    pub fn bucket_of(&self, openid: &OpenId) -> Bucket {
        Bucket::of(openid, self.inner.buckets)
    }

    fn keys(&self, app: &AppId, openid: &OpenId) -> BucketKeys {
        BucketKeys::new(app, self.bucket_of(openid))
    }

    /// How many buckets each app has.
    pub fn buckets(&self) -> impl ExactSizeIterator<Item = Bucket> + use<> {
        (0..self.inner.buckets).map(Bucket)
    }
}
