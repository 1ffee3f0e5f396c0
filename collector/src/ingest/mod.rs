//! The hot path: gathers the credentials of all calls and stores them in Redis with a few large script calls.
//!
//! If one script call stores many credentials of a bucket, the cost for Redis per credential is a third of the cost of
//! storing them one by one. So one task, the batcher, receives the batches of all calls and splits them into queues,
//! one for each bucket of each app:
//!
//! - A queue has at most one script in flight. Credentials that arrive while it runs wait and are stored together by the
//!   next script. So groups grow with the load. There is no timer: an idle queue sends immediately.
//! - At most [`SCRIPTS_IN_FLIGHT`] scripts are in flight in total, enough to keep Redis busy. The queues take turns.
//! - A call is answered when Redis has answered for the last of its credentials.
//! - One script per queue also keeps the order: if a call has the same credential twice, the second is the duplicate.
//!
//! If a script fails, every call with a credential in it fails. Redis may have stored some of these credentials. They
//! are reported as duplicates when the caller tries again. If Redis is unavailable, the first script that fails also
//! fails all waiting calls, so that they do not wait for one timeout each. The credentials of a caller that disconnects
//! are still stored.
//!
//! The queues hold at most [`ROOM`] credentials. If they are full, calls and streams wait in the order in which they
//! arrived. A stream waits without a time limit. While it waits, it reads nothing, which slows its caller down. A call
//! waits at most [`PATIENCE`] and is then refused. So the number of waiting callers increases neither memory nor response
//! time.

mod queues;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use domain::AppId;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use server::rpc::status::Failure;
use store::Store;
use store::credentials::Packed;
use store::keys::Bucket;
use tokio::sync::{OwnedSemaphorePermit as QueueSlot, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::metrics::Intake;
use queues::{Answer, BucketQueues, Group};

/// The maximum number of credentials in memory that wait for Redis; beyond it, calls wait. About 40 MB.
pub const ROOM: usize = 200_000;

/// How long a call waits for free queue capacity. Redis stores all of [`ROOM`] in less time.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The maximum number of scripts in flight. Fewer would leave Redis idle between small scripts. More would only send
/// groups earlier that could still grow.
const SCRIPTS_IN_FLIGHT: usize = 32;

/// How many batches are received before scripts are sent again.
const BATCHES_AT_ONCE: usize = 64;

/// The indexes in the batch of the credentials that were stored already, in no particular order.
pub(crate) type Duplicates = Vec<u32>;

/// Sends batches to the batcher; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Ingest {
    // The channel is unbounded, but each batch holds a semaphore permit for every credential in it.
    batches: mpsc::UnboundedSender<Batch>,
    capacity: Arc<Semaphore>,
}

#[derive(Debug)]
pub(crate) struct Batcher(JoinHandle<()>);

#[derive(Debug)]
struct Batch {
    app: usize,
    credentials: Vec<Packed>,
    call: Call,
}

/// A call that waits for its answer.
#[derive(Debug)]
struct Call {
    /// Number of its credentials that Redis has not answered for.
    left: usize,
    duplicates: Duplicates,
    /// `None` once the call is answered. A failure answers it before the other credentials are done.
    answer: Option<oneshot::Sender<Result<Duplicates, Failure>>>,
    /// Queue capacity, held until the batch is answered.
    _slot: QueueSlot,
}

impl Ingest {
    /// Starts the batcher for these apps. `intake` has the counters of each app, in the same order.
    pub fn start(store: Store, apps: Arc<[AppId]>, intake: Arc<[Intake]>) -> (Self, Batcher) {
        let (sender, batches) = mpsc::unbounded_channel();
        let task = tokio::spawn(gather(store, apps, intake, batches));
        (Self { batches: sender, capacity: Arc::new(Semaphore::new(ROOM)) }, Batcher(task))
    }

    /// Stores a batch of the app with this index in the list of apps, and returns once Redis holds all of it.
    ///
    /// Fails if Redis does not answer, or at shutdown. Then any part of the batch may be stored, and the batch may be
    /// sent again. Fails with OVERLOADED if the queues stay full for [`PATIENCE`]. A batch has at most [`ROOM`]
    /// credentials.
    pub async fn collect(&self, app: usize, credentials: Vec<Packed>) -> Result<Duplicates, Failure> {
        let slot = tokio::time::timeout(PATIENCE, self.slot(credentials.len())).await;
        self.store(app, credentials, slot.map_err(|_| Failure::overloaded())??).await
    }

    /// Waits for queue capacity for this many credentials; fails at shutdown.
    pub fn slot(&self, credentials: usize) -> impl Future<Output = Result<QueueSlot, Failure>> + Send + 'static {
        let permits = u32::try_from(credentials.min(ROOM)).unwrap_or(u32::MAX);
        let slot = Arc::clone(&self.capacity).acquire_many_owned(permits);
        async move { slot.await.map_err(|_| Failure::shutting_down()) }
    }

    /// Like [`Ingest::collect`], for a batch whose capacity was acquired by [`Ingest::slot`].
    pub async fn store(&self, app: usize, credentials: Vec<Packed>, slot: QueueSlot) -> Result<Duplicates, Failure> {
        if credentials.is_empty() {
            return Ok(Duplicates::new());
        }
        let (answer, answered) = oneshot::channel();
        let call = Call { left: credentials.len(), duplicates: Duplicates::new(), answer: Some(answer), _slot: slot };
        self.batches.send(Batch { app, credentials, call }).map_err(|_| Failure::shutting_down())?;
        answered.await.unwrap_or_else(|_| Err(Failure::shutting_down()))
    }
}

impl Batcher {
    /// Waits, at most for `bound`, until the queued credentials are stored; then ends the task. Call it once every
    /// [`Ingest`] is dropped.
    pub async fn finish(mut self, bound: Duration) {
        if tokio::time::timeout(bound, &mut self.0).await.is_err() {
            self.0.abort();
        }
    }
}

async fn gather(store: Store, apps: Arc<[AppId]>, intake: Arc<[Intake]>, mut batches: mpsc::UnboundedReceiver<Batch>) {
    let mut queues = BucketQueues::new(store.clone(), apps.len());
    let mut scripts = FuturesUnordered::new();
    let mut arrived = Vec::with_capacity(BATCHES_AT_ONCE);
    let mut open = true;
    while open || !scripts.is_empty() {
        tokio::select! {
            Some(answer) = scripts.next() => queues.settle(answer),
            count = batches.recv_many(&mut arrived, BATCHES_AT_ONCE), if open => {
                open = count > 0;
                arrived.drain(..).for_each(|batch| queues.enqueue(batch));
            }
        }
        while scripts.len() < SCRIPTS_IN_FLIGHT
            && let Some((queue, group)) = queues.next_group()
        {
            let (apps, intake) = (Arc::clone(&apps), Arc::clone(&intake));
            scripts.push(send(store.clone(), apps, intake, queues.app_and_bucket(queue), queue, group));
        }
    }
}

async fn send(
    store: Store,
    apps: Arc<[AppId]>,
    intake: Arc<[Intake]>,
    (app, bucket): (usize, Bucket),
    queue: usize,
    group: Group,
) -> Answer {
    let outcome = store.collect(&apps[app], bucket, &group.credentials).await;
    if let Ok(duplicates) = &outcome {
        // Counted here and not where calls are answered, because it is stored even if the caller has disconnected.
        intake[app].stored(&group.credentials, duplicates);
    }
    Answer { queue, tickets: group.tickets, outcome }
}
