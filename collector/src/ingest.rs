//! The hot path: gathers the credentials of all calls and brings them to Redis in few, large scripts.
//!
//! A script that stores many credentials of one bucket costs Redis a third a credential of what one alone costs. So
//! one task, the gatherer, takes in whole batches and spreads them over lanes, one for each bucket of each app:
//!
//! - A lane has at most one script on its way. What comes meanwhile waits and goes together in the next one, so groups
//!   grow with the load by themselves, and an idle lane sends at once: there is no timer.
//! - At most [`SCRIPTS_IN_FLIGHT`] scripts are on their way in all, enough to keep Redis busy; the lanes take turns.
//! - A call is answered when Redis has answered for the last of its credentials.
//! - One script a lane also keeps order: of the same credential twice in a call, the second is the duplicate.
//!
//! When a script fails, every call with a credential in it fails; what Redis did store of it is found as a duplicate
//! when the caller tries again. When Redis is away, everything that waits fails with it rather than wait for a timeout
//! each. A caller that leaves changes nothing: its credentials are stored all the same.
//!
//! There is room for [`ROOM`] credentials. Who finds none waits in one line: a stream for as long as it takes, since it
//! reads no more meanwhile and so slows its caller down; a call for [`PATIENCE`] at most, after which it is turned away.
//! So neither memory nor the time that an answer takes grows with the number of those who wait.

mod lanes;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use shared::credential::AppId;
use shared::status::Failure;
use shared::store::Store;
use shared::store::credentials::Packed;
use shared::store::keys::Bucket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::metrics::Intake;
use lanes::{Answer, Group, Lanes};

/// The most credentials that are held in memory on their way to Redis; beyond, calls wait. About 40 MB.
pub const ROOM: usize = 200_000;

/// How long a call waits for room. Redis takes in all of [`ROOM`] in less.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The most scripts on their way at once. Fewer would leave Redis idle between small ones, more would only take turns
/// away from groups that could still grow.
pub const SCRIPTS_IN_FLIGHT: usize = 32;

/// How many batches are taken in before scripts are sent again.
const BATCHES_AT_ONCE: usize = 64;

/// The places, in the batch, of those that were stored already, in no order.
pub type Duplicates = Vec<u32>;

/// Where batches go; cheap to clone.
#[derive(Debug, Clone)]
pub struct Ingest {
    // Unbounded, but each batch brings a permit for every credential in it.
    batches: mpsc::UnboundedSender<Batch>,
    room: Arc<Semaphore>,
}

/// Room for a batch, until it is answered.
#[derive(Debug)]
pub struct Room(OwnedSemaphorePermit);

/// The task behind [`Ingest`].
#[derive(Debug)]
pub struct Gatherer(JoinHandle<()>);

#[derive(Debug)]
struct Batch {
    app: usize,
    credentials: Vec<Packed>,
    call: Call,
}

/// A call that waits for its answer.
#[derive(Debug)]
struct Call {
    /// How many of its credentials Redis has not answered for.
    left: usize,
    duplicates: Duplicates,
    /// Gone once it is answered, which a failure does early.
    answer: Option<oneshot::Sender<Result<Duplicates, Failure>>>,
    _room: OwnedSemaphorePermit,
}

impl Ingest {
    /// Starts the gatherer for these apps; `intake` counts for each of them.
    pub fn start(store: Store, apps: Arc<[AppId]>, intake: Arc<[Intake]>) -> (Self, Gatherer) {
        let (sender, batches) = mpsc::unbounded_channel();
        let task = tokio::spawn(gather(store, apps, intake, batches));
        (Self { batches: sender, room: Arc::new(Semaphore::new(ROOM)) }, Gatherer(task))
    }

    /// Stores a batch of the app with this place in the list of apps, and answers once Redis holds all of it.
    ///
    /// Fails when Redis does not answer, or at a stop; then any part of the batch may be stored, and the batch may be
    /// sent again. Fails with OVERLOADED when there is no room for it in time. A batch is at most [`ROOM`] long.
    pub async fn collect(&self, app: usize, credentials: Vec<Packed>) -> Result<Duplicates, Failure> {
        let room = tokio::time::timeout(PATIENCE, self.room(credentials.len()));
        let room = room.await.map_err(|_| Failure::overloaded())??;
        self.store(app, credentials, room).await
    }

    /// Waits for room for so many credentials; fails at a stop.
    pub fn room(&self, credentials: usize) -> impl Future<Output = Result<Room, Failure>> + Send + 'static {
        let permits = u32::try_from(credentials.min(ROOM)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(permits);
        async move { room.await.map(Room).map_err(|_| Failure::shutting_down()) }
    }

    /// Like [`Ingest::collect`], for a batch that has its room.
    pub async fn store(&self, app: usize, credentials: Vec<Packed>, room: Room) -> Result<Duplicates, Failure> {
        if credentials.is_empty() {
            return Ok(Duplicates::new());
        }
        let (answer, answered) = oneshot::channel();
        let call = Call { left: credentials.len(), duplicates: Duplicates::new(), answer: Some(answer), _room: room.0 };
        self.batches.send(Batch { app, credentials, call }).map_err(|_| Failure::shutting_down())?;
        answered.await.unwrap_or_else(|_| Err(Failure::shutting_down()))
    }
}

impl Gatherer {
    /// Lets what was gathered reach Redis, within a bound, once every [`Ingest`] is dropped; then ends the task.
    pub async fn finish(mut self, bound: Duration) {
        if tokio::time::timeout(bound, &mut self.0).await.is_err() {
            self.0.abort();
        }
    }
}

async fn gather(store: Store, apps: Arc<[AppId]>, intake: Arc<[Intake]>, mut batches: mpsc::UnboundedReceiver<Batch>) {
    let mut lanes = Lanes::new(store.clone(), apps.len());
    let mut scripts = FuturesUnordered::new();
    let mut arrived = Vec::with_capacity(BATCHES_AT_ONCE);
    let mut open = true;
    while open || !scripts.is_empty() {
        tokio::select! {
            Some(answer) = scripts.next() => lanes.settle(answer),
            count = batches.recv_many(&mut arrived, BATCHES_AT_ONCE), if open => {
                open = count > 0;
                arrived.drain(..).for_each(|batch| lanes.take_in(batch));
            }
        }
        while scripts.len() < SCRIPTS_IN_FLIGHT
            && let Some((lane, group)) = lanes.next_group()
        {
            let (apps, intake) = (Arc::clone(&apps), Arc::clone(&intake));
            scripts.push(send(store.clone(), apps, intake, lanes.place(lane), lane, group));
        }
    }
}

/// Brings one group to Redis.
async fn send(
    store: Store,
    apps: Arc<[AppId]>,
    intake: Arc<[Intake]>,
    (app, bucket): (usize, Bucket),
    lane: usize,
    group: Group,
) -> Answer {
    let outcome = store.collect(&apps[app], bucket, &group.credentials).await;
    if let Ok(duplicates) = &outcome {
        // Here and not where calls are answered: it is stored, whoever still waits for it.
        intake[app].stored(&group.credentials, duplicates);
    }
    Answer { lane, tickets: group.tickets, outcome }
}
