//! Everything that is kept in Redis.
//!
//! A hash per app and bucket holds everything of its users: field = openid, value = the user's credentials and the time
//! of the last message, packed. It is stock and roster at once. Beside it stand the leases (what is in flight), the
//! ledger (where everything went), and a record for each request id. All changes are made by Lua scripts, each in one
//! step on the keys of one bucket.
//!
//! - [`keys`]: the names of all keys; [`kinds`]: what each holds; [`record`]: the packed format; `scripts`: the Lua files;
//! - [`credentials`]: collect, look up, void, erase; [`leases`]: lease, settle, reap; [`wanted`]: what may be leased;
//!   [`stock`]: sweep and count;
//! - [`broadcast`]: what is sent to many, and how far it is; [`late`]: what WeChat could not deliver after all;
//! - [`turns`]: who may ask every bucket of an app, which is much work;
//! - [`tokens`]: the shared access token; [`gates`]: what WeChat refuses of an app for now;
//! - `connections`: how commands travel; `reply`: how answers of scripts are read.
//!
//! Scripts take the time from Redis, so the clocks of the replicas do not matter.

pub mod broadcast;
mod connections;
pub mod credentials;
pub mod gates;
pub mod keys;
pub mod kinds;
pub mod late;
pub mod leases;
pub mod record;
mod reply;
mod scripts;
pub mod stock;
pub mod tokens;
mod told;
pub mod turns;
pub mod wanted;

use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::{self, ErrorKind, FromRedisValue as _, RedisError};
use tokio::sync::watch;
use tracing::warn;

use crate::credential::{AppId, OpenId};
use crate::metrics::redis::RedisMetrics;
use connections::Connections;
pub use connections::{BadUrl, RedisConfig, RedisUrl};
use keys::{Bucket, BucketKeys};
use kinds::KeyKind;
use reply::Reply;
use stock::{Ledger, Stock};
use told::{Told, unexpected};
use turns::{SingleFlight, Turns};

/// What can go wrong in the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Redis answered with an error, or not at all. Whether a write took place is not known.
    #[error("Redis: {}", Told(.0))]
    Redis(#[source] Box<RedisError>),
    /// There is no connection to Redis: nothing was written.
    #[error("Redis is not reachable: {0}")]
    Unavailable(String),
    /// A key holds another type of value than is stored there.
    #[error("{key} in Redis holds a {found}, and should hold a {}", .key.holds)]
    WrongType {
        /// Which kind of key, of which bucket or app.
        key: KeyKind,
        /// The type that Redis has there.
        found: String,
    },
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

impl Error {
    /// The code that Redis answered with, such as READONLY.
    pub fn code(&self) -> Option<&str> {
        let Self::Redis(error) = self else { return None };
        error.code().filter(|code| code.len() <= 20 && code.bytes().all(|byte| byte.is_ascii_uppercase()))
    }

    /// What kind of error it is, in few words for traces.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Redis(error) if error.is_timeout() => "timeout",
            Self::Redis(_) => "connection_lost",
            Self::Unavailable(_) => "no_connection",
            Self::WrongType { .. } => "wrong_type",
            Self::Corrupt(_) => "corrupt_data",
            Self::BucketCount { .. } => "bucket_count",
        }
    }

    /// Whether it stays until somebody repairs what is in Redis, or this program: to wait and try again is of no use.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Redis(error) => match error.kind() {
                ErrorKind::Parse | ErrorKind::UnexpectedReturnType => true,
                _ => error.code() == Some("ERR") || told::is_wrong_type(error),
            },
            Self::Unavailable(_) => false,
            Self::WrongType { .. } | Self::Corrupt(_) | Self::BucketCount { .. } => true,
        }
    }
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
    /// How long it is known that a grant or an event was told before: see [`credentials::KEEP_ONCE`].
    pub keep_once: Duration,
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

/// Counts in progress, by what is counted.
type Counts<K, T> = Arc<SingleFlight<K, Result<T, Error>>>;

struct Inner {
    connections: Connections,
    /// This Redis was found usable: users are in the buckets where they are looked for.
    prepared: watch::Sender<bool>,
    buckets: u16,
    cap: u16,
    keep_once: Duration,
    turns: Turns,
    /// Counts that are asked for: of the stock, by app and up to how many users it is counted on the spot.
    stocks: Counts<(AppId, u64), Arc<Stock>>,
    ledgers: Counts<AppId, Ledger>,
}

impl Inner {
    fn new(
        connections: Connections,
        prepared: watch::Sender<bool>,
        buckets: u16,
        &StoreConfig { cap, keep_once, .. }: &StoreConfig,
    ) -> Arc<Self> {
        let (turns, stocks, ledgers) = (Turns::default(), Arc::default(), Arc::default());
        Arc::new(Self { connections, prepared, buckets, cap, keep_once, turns, stocks, ledgers })
    }
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
        Ok(Self { inner: Inner::new(connections, prepared, buckets, config) })
    }

    /// The same store by connections of its own, for work that should not stand in line with other work. It is usable once
    /// the first one is.
    pub fn beside(&self, config: &StoreConfig) -> Result<Self, Error> {
        let Inner { connections, prepared, buckets, .. } = &*self.inner;
        let connections = connections.beside(&config.redis)?;
        Ok(Self { inner: Inner::new(connections, prepared.clone(), *buckets, config) })
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
