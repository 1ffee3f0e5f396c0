//! Connections to Redis: opened and checked by deadpool, shared by all tasks.
//!
//! A pool that lends a connection to one task at a time checks it with a PING each time it is lent, which doubles the
//! round trips of a send. The connections here are multiplexed, so a few of them are taken from the pool once and used
//! by every task at once; one that breaks is given up, and the pool opens another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{self, AsyncConnectionConfig, Cmd, FromRedisValue, RedisError};
use deadpool_redis::{Connection, Manager, Pool, Runtime};

use super::Error;
use super::scripts::Script;

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
    pub(super) fn new(config: &RedisConfig) -> Result<Self, Error> {
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
        Ok(Self { pool, lanes, next: AtomicUsize::new(0), timeout: config.timeout })
    }

    /// Runs one command. A reply that does not come in time is an error, and the command may have run.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let lane = &self.lanes[number % self.lanes.len()];
        let (mut connection, number) = self.connection(lane, number).await?;
        let result = command.query_async(&mut connection).await;
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
        match self.run(&command).await {
            Err(Error::Redis(error)) if error.code() == Some("NOSCRIPT") => {
                self.load(script).await?;
                self.run(&command).await
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
            let loan = self.pool.get().await.map_err(|error| Error::Unavailable(error.to_string()))?;
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
