//! Storage in Redis.
//!
//! Each app and bucket has one hash that holds everything about its users: field = openid, value = the user's
//! credentials and the time of the last message, packed. This hash is both the stock and the list of users. Beside it
//! are the leases (messages in flight), the ledger (counters of what became of every use), and one record for each
//! request id. Lua scripts change the users, the leases and the ledger. Each script is one atomic step on keys of one
//! slot.
//!
//! - [`keys`]: the names of all keys, made of `ids`; [`kinds`]: the Redis type of each key; [`retention`]: how long data
//!   is kept; [`record`]: the packed format; `scripts`: the Lua files;
//! - [`credentials`]: collect, look up, revoke, erase; [`leases`]: lease, settle, reap; [`eligibility`]: which credentials
//!   may be leased; [`stock`]: sweep and count;
//! - [`broadcast`]: broadcasts and their progress; [`delivery_failures`]: delivery failures that WeChat reports after it accepted
//!   the message;
//! - [`scans`]: limits for work that reads every bucket of an app;
//! - [`tokens`]: the shared access token; [`stops`]: app stops, which record what WeChat refuses for an app at present;
//! - `connections`: connections to Redis; `reply`: parsing of script replies.
//!
//! Scripts take the time from Redis, so the clocks of the replicas do not matter.

pub mod broadcast;
mod config;
mod connections;
pub mod credentials;
pub mod delivery_failures;
pub mod eligibility;
mod ids;
pub mod keys;
pub mod kinds;
pub mod leases;
pub mod record;
mod redact;
mod reply;
pub mod retention;
pub mod scans;
mod scripts;
pub mod spans;
pub mod stock;
pub mod stops;
pub mod tokens;

use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::{self, ErrorKind, FromRedisValue as _, RedisError};
use tokio::sync::watch;
use tracing::warn;

pub use config::{StoreArgs, StoreConfig};
use connections::Connections;
pub use connections::{BadUrl, RedisConfig, RedisUrl};
use domain::dependency::{CommandObserver, Dependency, Fault, FaultKind};
use domain::{AppId, OpenId};
use keys::{Bucket, BucketKeys};
use kinds::KeyKind;
use redact::{Redacted, unexpected};
use reply::Reply;
use scans::{ScanLimits, SingleFlight};
use stock::{Ledger, Stock};

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Redis answered with an error, or did not answer. It is unknown whether a write took place.
    #[error("Redis: {}", Redacted(.0))]
    Redis(#[source] Box<RedisError>),
    /// There is no connection to Redis. Nothing was written.
    #[error("Redis is not reachable: {0}")]
    Unavailable(String),
    #[error("{key} in Redis holds a {found}; expected a {}", .key.holds)]
    WrongType { key: KeyKind, found: String },
    #[error("Redis returned data that this release cannot read: {0}")]
    Corrupt(String),
    #[error(
        "this Redis has {found} buckets per app, but the setting is {wanted}: users would be looked up in the wrong bucket"
    )]
    BucketCount { found: u16, wanted: u16 },
}

impl Error {
    /// The error code that Redis answered with, such as READONLY.
    pub fn code(&self) -> Option<&str> {
        let Self::Redis(error) = self else { return None };
        error.code().filter(|code| code.len() <= 20 && code.bytes().all(|byte| byte.is_ascii_uppercase()))
    }

    /// The class of the error, as a short label for traces.
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

    /// Whether the error persists until the data in Redis or this program is repaired. Retries do not help then.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Redis(error) => match error.kind() {
                ErrorKind::Parse | ErrorKind::UnexpectedReturnType => true,
                _ => error.code() == Some("ERR") || redact::is_wrong_type(error),
            },
            Self::Unavailable(_) => false,
            Self::WrongType { .. } | Self::Corrupt(_) | Self::BucketCount { .. } => true,
        }
    }
}

impl Fault for Error {
    fn kind(&self) -> FaultKind {
        match self {
            // A script that fails is a bug; a retry does not help.
            Self::Redis(_) if self.is_lasting() => FaultKind::Lasting { log: Some("Redis rejected a command") },
            // The store logs it, once for each key.
            Self::WrongType { .. } => FaultKind::Lasting { log: None },
            // The store logs failures of Redis, one line for all calls.
            Self::Redis(_) | Self::Unavailable(_) => FaultKind::Unavailable,
            Self::Corrupt(_) => FaultKind::Lasting { log: Some("invalid data in Redis") },
            Self::BucketCount { .. } => FaultKind::Misconfigured,
        }
    }
}

impl From<record::Corrupt> for Error {
    fn from(corrupt: record::Corrupt) -> Self {
        Self::Corrupt(corrupt.to_string())
    }
}

/// The names of commands and scripts in metrics.
pub fn commands() -> impl Iterator<Item = &'static str> {
    connections::COMMANDS.split_whitespace().chain(scripts::all().map(|script| script.file))
}

/// A handle to Redis, cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// Counts in progress, by what is counted.
type Counts<K, T> = Arc<SingleFlight<K, Result<T, Error>>>;

struct Inner {
    connections: Connections,
    /// Whether [`Store::prepare`] has succeeded: the scripts are loaded and the number of buckets matches.
    prepared: watch::Sender<bool>,
    buckets: u16,
    cap: u16,
    keep_once: Duration,
    turns: ScanLimits,
    /// Stock counts in progress. The key is the app and the number of users up to which the stock is counted directly.
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
        let (turns, stocks, ledgers) = (ScanLimits::default(), Arc::default(), Arc::default());
        Arc::new(Self { connections, prepared, buckets, cap, keep_once, turns, stocks, ledgers })
    }
}

impl Store {
    /// Creates a store without connecting to Redis. See [`Store::prepare`].
    pub fn new(config: &StoreConfig) -> Result<Self, Error> {
        Self::made(config, None)
    }

    /// Like [`Store::new`], with metrics of the Redis commands.
    pub fn counted(config: &StoreConfig, observer: Arc<dyn CommandObserver>) -> Result<Self, Error> {
        Self::made(config, Some(observer))
    }

    fn made(config: &StoreConfig, observer: Option<Arc<dyn CommandObserver>>) -> Result<Self, Error> {
        let connections = Connections::new(&config.redis, observer)?;
        let (buckets, prepared) = (config.buckets.max(1), watch::Sender::new(false));
        Ok(Self { inner: Inner::new(connections, prepared, buckets, config) })
    }

    /// The same store with connections of its own, for work that should not queue with other work. It becomes usable
    /// when the first store does.
    pub fn beside(&self, config: &StoreConfig) -> Result<Self, Error> {
        let Inner { connections, prepared, buckets, .. } = &*self.inner;
        let connections = connections.beside(&config.redis)?;
        Ok(Self { inner: Inner::new(connections, prepared.clone(), *buckets, config) })
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

    /// Waits until [`Store::prepare`] has succeeded. All other calls fail before that.
    pub async fn prepared(&self) {
        // The sender lives as long as this store, so waiting cannot fail.
        let _ = self.inner.prepared.subscribe().wait_for(|prepared| *prepared).await;
    }

    fn show_up(&self, up: bool) {
        if let Some(observer) = self.inner.connections.observer() {
            observer.is_up(up);
        }
    }

    async fn warn_of_forgetful_settings(&self) {
        let policies = self.setting("maxmemory-policy").await;
        if let Some(policy) = policies.iter().find(|policy| *policy != "noeviction") {
            warn!(maxmemory_policy = policy, "Redis may evict credentials: set maxmemory-policy to noeviction");
        }
        if self.setting("appendonly").await.iter().any(|value| value == "no") {
            warn!("Redis has no append-only file: a restart of Redis loses all writes since its last snapshot");
        }
    }

    /// Reads one of Redis' own settings from each master. Empty if CONFIG is forbidden, as it is at some hosted
    /// services.
    async fn setting(&self, name: &str) -> Vec<String> {
        let masters = self.inner.connections.everywhere(redis::cmd("CONFIG").arg("GET").arg(name)).await;
        let value = |reply| Vec::<String>::from_redis_value(reply).ok()?.into_iter().nth(1);
        masters.unwrap_or_default().into_iter().filter_map(value).collect()
    }

    /// The connections, once [`Store::prepare`] has succeeded.
    fn redis(&self) -> Result<&Connections, Error> {
        if *self.inner.prepared.borrow() {
            return Ok(&self.inner.connections);
        }
        Err(Error::Unavailable("no connection has succeeded yet".into()))
    }

    /// Takes a key for `ttl` with a randomly chosen value. Returns false if the key holds another value.
    async fn take(&self, key: &str, value: &str, ttl: Duration) -> Result<bool, Error> {
        self.redis()?
            .invoke(&scripts::SET_ONCE, |command| {
                command.arg(1).arg(key).arg(value).arg((ttl.as_millis() as u64).max(1));
            })
            .await
    }

    /// Takes a key for `ttl` that is not given back earlier. Returns false if it is taken already.
    async fn take_turn(&self, key: &str, ttl: Duration) -> Result<bool, Error> {
        self.take(key, &format!("{:016x}", rand::random::<u64>()), ttl).await
    }

    /// The bucket of a user. [`Store::collect`] takes credentials of one bucket at a time.
    pub fn bucket_of(&self, openid: &OpenId) -> Bucket {
        Bucket::of(openid, self.inner.buckets)
    }

    fn keys(&self, app: &AppId, openid: &OpenId) -> BucketKeys {
        BucketKeys::new(app, self.bucket_of(openid))
    }

    pub fn buckets(&self) -> impl ExactSizeIterator<Item = Bucket> + use<> {
        (0..self.inner.buckets).map(Bucket)
    }
}

impl Dependency for Store {
    type Error = Error;

    /// Loads the scripts, stores or checks the number of buckets, and warns of Redis settings that can lose data.
    async fn prepare(&self) -> Result<(), Error> {
        let prepared = self.make_ready().await;
        self.show_up(prepared.is_ok());
        prepared
    }

    /// Checks that Redis accepts commands. For a cluster, one master that accepts them is enough.
    async fn ping(&self) -> Result<(), Error> {
        let answer = self.inner.connections.ping().await;
        self.show_up(answer.is_ok());
        answer
    }
}
