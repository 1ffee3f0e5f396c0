//! The scheduler: a replica's part in all broadcasts of an app. It starts broadcasts that are due, takes tasks of those
//! that run, and processes a few buckets of each at once.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use server::telemetry::outage::Operation;
use store::broadcast::BroadcastId;
use store::broadcast::records::{Move, State};
use store::broadcast::tasks::{Left, TakeTasks, Task};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::active::ActiveBroadcast;
use super::quota;
use super::worker;
use crate::context::AppContext;
use crate::wechat::message::Delivery;

/// Interval at which an idle replica looks for tasks.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Interval at which a replica with broadcasts requests the quota. All replicas together call WeChat less often: see
/// [`quota`].
const QUOTA_INTERVAL: Duration = Duration::from_secs(60);

struct Scheduler {
    context: Arc<AppContext>,
    /// Name of this replica as a consumer of the task stream.
    name: Arc<str>,
    drain: CancellationToken,
    workers: JoinSet<BroadcastId>,
    active: HashMap<BroadcastId, OnReplica>,
    /// Broadcasts that cannot be processed, for example because a newer release stored them.
    unusable: HashMap<BroadcastId, Operation>,
    quota_asked: Instant,
}

struct OnReplica {
    broadcast: Arc<ActiveBroadcast>,
    buckets: usize,
}

/// Runs until `drain`. Then waits until the messages in flight are settled and the tasks are handed over.
pub async fn work(context: Arc<AppContext>, drain: CancellationToken) {
    // If Redis was never usable, there is nothing to hand over.
    tokio::select! {
        biased;
        () = context.store.prepared() => {}
        () = drain.cancelled() => return,
    }
    let name = format!("{:016x}", rand::random::<u64>()).into();
    let mut polling = context.metrics.loops.broadcasts.operation();
    let (workers, active, unusable) = (JoinSet::new(), HashMap::new(), HashMap::new());
    let mut scheduler = Scheduler { context, name, drain, workers, active, unusable, quota_asked: Instant::now() };
    while !scheduler.drain.is_cancelled() {
        polling.note(&scheduler.poll().await);
        tokio::select! {
            () = scheduler.drain.cancelled() => {}
            Some(ended) = scheduler.workers.join_next(), if !scheduler.workers.is_empty() => scheduler.worker_ended(ended),
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
    while let Some(ended) = scheduler.workers.join_next().await {
        scheduler.worker_ended(ended);
    }
}

impl Scheduler {
    async fn poll(&mut self) -> Result<(), store::Error> {
        let context = Arc::clone(&self.context);
        let (app, now_ms) = (&context.app.id, context.clock.now_ms());
        let due = context.store.due_broadcasts(app, now_ms).await?;
        for id in &due {
            let begun = self.start_due(id, now_ms).await;
            self.note(id, begun)?;
        }
        let running = context.store.running_broadcasts(app).await?;
        self.unusable.retain(|id, _| due.contains(id) || running.contains(id));
        context.metrics.show_running(running.len());
        if !running.is_empty() && self.quota_asked.elapsed() >= QUOTA_INTERVAL {
            self.quota_asked = Instant::now();
            let sent = |delivery| {
                self.active.values().any(|on_replica| on_replica.broadcast.spec.message.delivery == delivery)
            };
            for delivery in Delivery::ALL.into_iter().filter(|delivery| sent(*delivery)) {
                // In a task of its own, so that the scheduler does not wait for WeChat.
                let context = Arc::clone(&context);
                tokio::spawn(async move { quota::ask(&context, delivery).await });
            }
        }
        self.active.retain(|id, on_replica| on_replica.buckets > 0 || running.contains(id));
        for id in &running {
            let taken = self.take_tasks(id, now_ms).await;
            self.note(id, taken)?;
        }
        Ok(())
    }

    /// Handles the result of one broadcast. A broadcast that cannot be read does not stop the others. An outage of
    /// Redis is returned, because it concerns all of them.
    fn note(&mut self, id: &BroadcastId, result: Result<(), store::Error>) -> Result<(), store::Error> {
        match result {
            Ok(()) => _ = self.unusable.remove(id).map(|mut broadcast| broadcast.succeeded()),
            Err(error) if !error.is_lasting() => return Err(error),
            Err(error) => {
                let broadcast =
                    self.unusable.entry(id.clone()).or_insert_with(|| self.context.metrics.unusable_broadcast());
                broadcast.failed(&format_args!("{}, broadcast {id}: {error}", self.context.app.id));
            }
        }
        Ok(())
    }

    /// Takes as many tasks of a broadcast as there is capacity for.
    async fn take_tasks(&mut self, id: &BroadcastId, now_ms: u64) -> Result<(), store::Error> {
        let context = Arc::clone(&self.context);
        let app = &context.app.id;
        let on_replica = self.active.get(id);
        let busy = on_replica.map_or(0, |on_replica| on_replica.buckets);
        let free = context.limits.broadcast_tasks.saturating_sub(busy);
        // Buckets that wait for permits do not count: a replica that died may have left the permits in other buckets.
        let waits = on_replica.is_some_and(|on_replica| on_replica.broadcast.waits_for_permits());
        let most = if waits { (2 * context.limits.broadcast_tasks).saturating_sub(busy) } else { free };
        if most == 0 {
            return Ok(());
        }
        // A worker marks its task as alive three times per lease, so an older task is taken over.
        let silence = context.limits.terms.duration;
        let take = TakeTasks { consumer: &self.name, count: free, silence, most };
        let tasks = context.store.take_tasks(app, id, &take).await?;
        if tasks.is_empty() && !self.active.contains_key(id) && context.store.broadcast(app, id).await?.is_none() {
            // The broadcast no longer exists. Requesting any transition removes it from the list.
            context.store.move_broadcast(app, id, &Move::Cancel, now_ms).await?;
        }
        for task in tasks {
            self.spawn_worker(task).await?;
        }
        Ok(())
    }

    /// Starts or resumes a broadcast that is due.
    async fn start_due(&self, id: &BroadcastId, now_ms: u64) -> Result<(), store::Error> {
        let (store, app) = (&self.context.store, &self.context.app.id);
        let Some(record) = store.broadcast(app, id).await? else {
            // Requesting any transition removes it from the list.
            return store.move_broadcast(app, id, &Move::Cancel, now_ms).await.map(drop);
        };
        let to = match record.state {
            State::Pending => Move::Start { everyone: record.everyone },
            _ => Move::Resume { due: true },
        };
        let moved = store.move_broadcast(app, id, &to, now_ms).await?;
        info!(%app, broadcast = %id, ?moved, "a broadcast is due");
        Ok(())
    }

    async fn spawn_worker(&mut self, task: Task) -> Result<(), store::Error> {
        let id = task.broadcast.clone();
        let Some(active) = self.load(&id).await? else {
            return self.context.store.leave_task(&self.context.app.id, &task, Left::Stopped).await.map(drop);
        };
        if let Some(on_replica) = self.active.get_mut(&id) {
            on_replica.buckets += 1;
        }
        let (name, drain) = (Arc::clone(&self.name), self.drain.clone());
        self.workers.spawn(async move {
            // Even after a panic its capacity is released. Another worker takes the task over once it has been idle for
            // long enough.
            if AssertUnwindSafe(worker::work(active, task, name, drain)).catch_unwind().await.is_err() {
                error!(broadcast = %id, "the worker of a bucket panicked");
            }
            id
        });
        Ok(())
    }

    /// Returns the broadcast as it runs here; `None` if there is nothing to do for it.
    async fn load(&mut self, id: &BroadcastId) -> Result<Option<Arc<ActiveBroadcast>>, store::Error> {
        if let Some(on_replica) = self.active.get(id) {
            let active = Arc::clone(&on_replica.broadcast);
            // Tasks exist only while a broadcast runs. If it is known here as paused, it was resumed.
            if *active.state().borrow() != State::Running {
                active.refresh().await?;
            }
            return Ok(Some(active));
        }
        let (store, app) = (&self.context.store, &self.context.app.id);
        let Some(record) = store.broadcast(app, id).await? else { return Ok(None) };
        if !matches!(record.state, State::Running | State::Cancelled) {
            return Ok(None);
        }
        let active = ActiveBroadcast::new(Arc::clone(&self.context), &record)?;
        if record.state == State::Running {
            quota::ask(&self.context, active.spec.message.delivery).await;
        }
        self.active.insert(id.clone(), OnReplica { broadcast: Arc::clone(&active), buckets: 0 });
        Ok(Some(active))
    }

    fn worker_ended(&mut self, ended: Result<BroadcastId, tokio::task::JoinError>) {
        if let Some(on_replica) = ended.ok().and_then(|id| self.active.get_mut(&id)) {
            on_replica.buckets = on_replica.buckets.saturating_sub(1);
        }
    }
}
