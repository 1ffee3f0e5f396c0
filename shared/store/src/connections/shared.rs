//! Connections to one Redis, opened by deadpool and shared by all tasks.
//!
//! A pool that lends a connection to one task at a time checks it with a PING each time, which doubles the round trips
//! of a send. The connections here are multiplexed. A few of them are taken from the pool once, and all tasks use them
//! at the same time. A broken connection is dropped, and the pool opens another. The same happens to a connection whose
//! server is no longer the master: with Sentinels, the next connection goes to the new master.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{Object, Pool};
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{Cmd, FromRedisValue, RedisError};

use super::RedisConfig;
use super::connector::Connector;
use crate::{Error, redact};

/// A few shared connections to one Redis.
pub(crate) struct SharedConnections {
    pool: Pool<Connector>,
    lanes: Box<[SharedConnection]>,
    next: AtomicUsize,
    timeout: Duration,
}

/// A slot for one connection. One task opens the connection; the others wait for it instead of taking another from the
/// pool.
#[derive(Default)]
struct SharedConnection {
    shared: Mutex<Option<Shared>>,
    filling: tokio::sync::Mutex<()>,
}

/// A connection taken from the pool; all clones share it. The number distinguishes it from its replacement.
struct Shared {
    loan: Object<Connector>,
    number: usize,
}

impl SharedConnections {
    /// Creates the slots without opening a connection.
    pub(super) fn new(config: &RedisConfig, opener: Connector) -> Result<Self, Error> {
        let lanes = config.connections.max(1);
        let pool = Pool::builder(opener)
            // One more than there are slots: a connection may be replaced while its last clone is still in use.
            .max_size(lanes + 1)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(config.timeout))
            .create_timeout(Some(config.timeout))
            .recycle_timeout(Some(config.timeout))
            .build()
            .map_err(|_| Error::Unavailable("no runtime for the connection pool".into()))?;
        let lanes = (0..lanes).map(|_| SharedConnection::default()).collect();
        Ok(Self { pool, lanes, next: AtomicUsize::new(0), timeout: config.timeout })
    }

    /// See [`super::Connections::run`].
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let lane = &self.lanes[number % self.lanes.len()];
        let (mut connection, number) = self.connection(lane, number).await?;
        let result = command.query_async(&mut connection).await;
        if let Err(error) = &result
            && is_lost(error)
        {
            let mut shared = lane.shared();
            if shared.as_ref().is_some_and(|shared| shared.number == number) {
                // Removed from the pool for good, because the pool would lend it again before it notices the failure.
                drop(shared.take().map(|shared| Object::take(shared.loan)));
            }
        }
        Ok(result?)
    }

    async fn connection(
        &self,
        lane: &SharedConnection,
        number: usize,
    ) -> Result<(MultiplexedConnection, usize), Error> {
        if let Some(there) = lane.connection() {
            return Ok(there);
        }
        let fill = async {
            let _filling = lane.filling.lock().await;
            if let Some(there) = lane.connection() {
                return Ok(there);
            }
            let loan = self.pool.get().await.map_err(|error| redact::no_connection(&error))?;
            let connection = (*loan).clone();
            *lane.shared() = Some(Shared { loan, number });
            Ok((connection, number))
        };
        match tokio::time::timeout(self.timeout, fill).await {
            Ok(filled) => filled,
            Err(_) => Err(Error::Unavailable("timed out waiting for a connection".into())),
        }
    }
}

impl SharedConnection {
    fn connection(&self) -> Option<(MultiplexedConnection, usize)> {
        self.shared().as_ref().map(|shared| ((*shared.loan).clone(), shared.number))
    }

    fn shared(&self) -> MutexGuard<'_, Option<Shared>> {
        // The value is replaced as a whole, so a panic of another thread cannot leave it half changed.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the next command needs another connection, because this one is broken or leads to a replica.
fn is_lost(error: &RedisError) -> bool {
    error.is_unrecoverable_error() || error.is_timeout() || matches!(error.code(), Some("READONLY" | "MASTERDOWN"))
}
