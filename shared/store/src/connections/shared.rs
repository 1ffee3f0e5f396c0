//! Connections opened by deadpool and shared by all tasks.
//!
//! A pool that lends a connection to one task at a time checks it with a PING each time, which doubles the round trips
//! of a send. The connections here are multiplexed. A few of them are taken from the pool once, and all tasks use them
//! at the same time. The library's `ConnectionManager` shares one too, but it keeps a connection whose commands time
//! out, and one that leads to a server that became a replica. Both are replaced here: with Sentinels, the next
//! connection goes to the new master.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{Manager, Object, Pool, Timeouts};
use deadpool_redis::redis::aio::ConnectionLike;
use deadpool_redis::redis::{Cmd, FromRedisValue, RedisError, RedisResult};
use tracing::debug;

use super::RedisConfig;
use crate::{Error, redact};

/// A few shared connections, opened by `M`.
pub(super) struct SharedConnections<M: Manager> {
    pool: Pool<M>,
    slots: Box<[Arc<Slot<M>>]>,
    next: AtomicUsize,
    timeout: Duration,
    keep_lost: bool,
}

/// A slot for one connection. One task opens the connection; the others wait for it instead of taking another from the
/// pool.
struct Slot<M: Manager> {
    shared: Mutex<Option<Shared<M>>>,
    opening: tokio::sync::Mutex<()>,
    /// Whether a replacement is being opened while the connection stays in use.
    replacing: AtomicBool,
}

/// A connection taken from the pool; all clones share it. The number distinguishes it from its replacement.
struct Shared<M: Manager> {
    loan: Object<M>,
    number: usize,
}

/// A clone of a shared connection.
pub(super) struct Lent<'a, M: Manager> {
    slot: &'a Arc<Slot<M>>,
    number: usize,
    pub(super) connection: M::Type,
}

impl<M> SharedConnections<M>
where
    M: Manager<Type: ConnectionLike + Clone, Error = RedisError> + 'static,
{
    /// Creates the slots without opening a connection. With `keep_lost`, a lost connection stays in use until its
    /// replacement is open.
    pub(super) fn new(config: &RedisConfig, manager: M, keep_lost: bool) -> Result<Self, Error> {
        let slots = config.connections.max(1);
        let pool = Pool::builder(manager)
            // Each slot may have a connection and its replacement.
            .max_size(2 * slots)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(config.timeout))
            .create_timeout(Some(config.timeout))
            .recycle_timeout(Some(config.timeout))
            .build()
            .map_err(|_| Error::Unavailable("no runtime for the connection pool".into()))?;
        let slots = (0..slots).map(|_| Arc::new(Slot::new())).collect();
        Ok(Self { pool, slots, next: AtomicUsize::new(0), timeout: config.timeout, keep_lost })
    }

    /// See [`super::Connections::run`].
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let mut lent = self.lend().await?;
        let result = command.query_async(&mut lent.connection).await;
        self.look_at(&result, &lent);
        Ok(result?)
    }

    /// A clone of the next connection in turn. Pass the result of using it to [`Self::look_at`].
    pub(super) async fn lend(&self) -> Result<Lent<'_, M>, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = &self.slots[number % self.slots.len()];
        match slot.lend() {
            Some(lent) => Ok(lent),
            // Boxed: the future is large and rarely needed.
            None => Box::pin(self.open(slot, number)).await,
        }
    }

    async fn open<'a>(&self, slot: &'a Arc<Slot<M>>, number: usize) -> Result<Lent<'a, M>, Error> {
        let opened = async {
            let _opening = slot.opening.lock().await;
            if let Some(lent) = slot.lend() {
                return Ok(lent);
            }
            let loan = self.pool.get().await.map_err(|error| redact::no_connection(&error))?;
            let connection = M::Type::clone(&loan);
            *slot.shared() = Some(Shared { loan, number });
            Ok(Lent { slot, number, connection })
        };
        match tokio::time::timeout(self.timeout, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(Error::Unavailable("timed out waiting for a connection".into())),
        }
    }

    /// Replaces the connection if the result shows that it is lost.
    pub(super) fn look_at<T>(&self, result: &RedisResult<T>, lent: &Lent<'_, M>) {
        if !result.as_ref().is_err_and(is_lost) {
            return;
        }
        let mut shared = lent.slot.shared();
        if shared.as_ref().is_none_or(|shared| shared.number != lent.number) {
            return;
        }
        if self.keep_lost {
            drop(shared);
            self.replace(lent.slot);
        } else {
            discard(shared.take());
        }
    }

    fn replace(&self, slot: &Arc<Slot<M>>) {
        if slot.replacing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (slot, pool, number) = (Arc::clone(slot), self.pool.clone(), self.next.fetch_add(1, Ordering::Relaxed));
        // No command waits for it, and it may have to skip servers that do not answer.
        let patience = Timeouts { create: Some(2 * self.timeout), ..pool.timeouts() };
        tokio::spawn(async move {
            match pool.timeout_get(&patience).await {
                Ok(loan) => discard(slot.shared().replace(Shared { loan, number })),
                Err(error) => debug!(error = %redact::no_connection(&error), "replacing a connection failed"),
            }
            slot.replacing.store(false, Ordering::Release);
        });
    }
}

impl<M: Manager<Type: Clone>> Slot<M> {
    fn new() -> Self {
        let (shared, opening, replacing) = Default::default();
        Self { shared, opening, replacing }
    }

    fn lend(self: &Arc<Self>) -> Option<Lent<'_, M>> {
        let shared = self.shared();
        let Shared { loan, number } = shared.as_ref()?;
        Some(Lent { slot: self, number: *number, connection: M::Type::clone(loan) })
    }

    fn shared(&self) -> MutexGuard<'_, Option<Shared<M>>> {
        // The value is replaced as a whole, so a panic of another thread cannot leave it half changed.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a lost connection from the pool permanently, because the pool would lend it again before it notices the
/// failure.
fn discard<M: Manager>(lost: Option<Shared<M>>) {
    drop(lost.map(|shared| Object::take(shared.loan)));
}

/// Whether the next command needs another connection, because this one is broken or leads to a replica, or to a master
/// without replicas, which may have been replaced.
fn is_lost(error: &RedisError) -> bool {
    let moved = matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "NOREPLICAS"));
    error.is_unrecoverable_error() || error.is_timeout() || moved
}
