//! Connections to Redis: opened and checked by deadpool, shared by all tasks.
//!
//! A pool that lends a connection to one task at a time checks it with a PING each time it is lent, which doubles the
//! round trips of a send. The connections here are multiplexed, so a few of them are taken from the pool once and used
//! by every task at once; one that breaks is given up, and the pool opens another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{self, AsyncConnectionConfig, Cmd, FromRedisValue, RedisError};
use deadpool_redis::{Connection, Manager, Pool, Runtime};

use super::scripts::Script;
use super::{Error, told};
use crate::metrics::redis::RedisMetrics;

/// The plain commands that the store uses, by which they are known in metrics.
pub(super) const COMMANDS: &str = "CONFIG EXISTS EXPIRE GET HDEL HGET HGETALL HLEN HMGET HSET PING SCARD SCRIPT SET SETNX \
    SMEMBERS XAUTOCLAIM XCLAIM XPENDING XREADGROUP ZADD ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZREM ZREMRANGEBYSCORE ZREVRANGE \
    ZREVRANGEBYLEX";

/// How the store reaches Redis.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[user:password@]host[:port][/db]`, or `unix://path`.
    pub url: String,
    /// How many connections are shared by all tasks.
    pub connections: usize,
    /// How long a command, or opening a connection, may take.
    pub timeout: Duration,
}

impl RedisConfig {
    /// Whether a URL can be read; nothing is connected. The error does not quote it.
    pub fn check_url(url: &str) -> Result<(), Error> {
        Ok(redis::Client::open(url).map(drop)?)
    }
}

pub(super) struct Connections {
    pool: Pool,
    lanes: Box<[Lane]>,
    next: AtomicUsize,
    timeout: Duration,
    metrics: Option<RedisMetrics>,
}

/// A place for one connection. Filling it is one task's work; the others wait for that instead of asking the pool too.
#[derive(Default)]
struct Lane {
    shared: Mutex<Option<Shared>>,
    filling: tokio::sync::Mutex<()>,
}

/// A connection on loan from the pool; its clones share it. The number tells it from its replacement.
struct Shared {
    loan: Connection,
    number: usize,
}

impl Connections {
    pub(super) fn new(config: &RedisConfig, metrics: Option<RedisMetrics>) -> Result<Self, Error> {
        let connection = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.timeout))
            .set_response_timeout(Some(config.timeout));
        let manager = Manager::new_with_config(config.url.as_str(), connection)?;
        let lanes = config.connections.max(1);
        let pool = Pool::builder(manager)
            // One more than there are lanes: a lane may be replaced while its last clone is still in use.
            .max_size(lanes + 1)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(config.timeout))
            .create_timeout(Some(config.timeout))
            .recycle_timeout(Some(config.timeout))
            .build()
            .map_err(|_| Error::Unavailable("no runtime for the connection pool".into()))?;
        let lanes = (0..lanes).map(|_| Lane::default()).collect();
        Ok(Self { pool, lanes, next: AtomicUsize::new(0), timeout: config.timeout, metrics })
    }

    /// What is counted, if anything is.
    pub(super) fn metrics(&self) -> Option<&RedisMetrics> {
        self.metrics.as_ref()
    }

    /// Runs one command. A reply that does not come in time is an error, and the command may have run.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let name = match command.args_iter().next() {
            Some(redis::Arg::Simple(name)) => str::from_utf8(name).unwrap_or_default(),
            _ => "",
        };
        self.counted(name, command).await
    }

    /// Runs a command and counts it under this name.
    async fn counted<T: FromRedisValue>(&self, name: &str, command: &Cmd) -> Result<T, Error> {
        let result = self.tried(name, command).await;
        if let (Some(metrics), Err(error)) = (&self.metrics, &result)
            && !is_missing_script(error)
        {
            metrics.failed();
        }
        result
    }

    async fn tried<T: FromRedisValue>(&self, name: &str, command: &Cmd) -> Result<T, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let lane = &self.lanes[number % self.lanes.len()];
        let (mut connection, number) = self.connection(lane, number).await?;
        let begun = Instant::now();
        let result = command.query_async(&mut connection).await;
        if let Some(metrics) = &self.metrics {
            metrics.took(name, begun.elapsed());
        }
        if let Err(error) = &result
            && (error.is_unrecoverable_error() || error.is_timeout())
        {
            let mut shared = lane.shared();
            if shared.as_ref().is_some_and(|shared| shared.number == number) {
                // Taken out of the pool for good: the pool would lend it again before it notices.
                drop(shared.take().map(|shared| Connection::take(shared.loan)));
            }
        }
        Ok(result?)
    }

    /// Runs a script, loading it first where Redis does not know it (a new Redis, or its script cache flushed).
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        script: &Script,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<T, Error> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&script.sha);
        arguments(&mut command);
        match self.counted(script.file, &command).await {
            Err(error) if is_missing_script(&error) => {
                self.load(script).await?;
                self.counted(script.file, &command).await
            }
            result => result,
        }
    }

    pub(super) async fn load(&self, script: &Script) -> Result<(), Error> {
        self.run(redis::cmd("SCRIPT").arg("LOAD").arg(script.source)).await
    }

    async fn connection(&self, lane: &Lane, number: usize) -> Result<(MultiplexedConnection, usize), Error> {
        if let Some(there) = lane.connection() {
            return Ok(there);
        }
        let fill = async {
            let _filling = lane.filling.lock().await;
            if let Some(there) = lane.connection() {
                return Ok(there);
            }
            let loan = self.pool.get().await.map_err(|error| told::no_connection(&error))?;
            let connection = (*loan).clone();
            *lane.shared() = Some(Shared { loan, number });
            Ok((connection, number))
        };
        match tokio::time::timeout(self.timeout, fill).await {
            Ok(filled) => filled,
            Err(_) => Err(Error::Unavailable("no connection in time".into())),
        }
    }
}

/// Redis does not know a script, which is mended by loading it.
fn is_missing_script(error: &Error) -> bool {
    matches!(error, Error::Redis(error) if error.code() == Some("NOSCRIPT"))
}

impl Lane {
    fn connection(&self) -> Option<(MultiplexedConnection, usize)> {
        self.shared().as_ref().map(|shared| ((*shared.loan).clone(), shared.number))
    }

    fn shared(&self) -> MutexGuard<'_, Option<Shared>> {
        // What it guards is a whole value at any moment, so a panic elsewhere cannot have left it half changed.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        Self::Redis(Box::new(error))
    }
}
