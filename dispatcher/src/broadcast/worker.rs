//! The worker of one task. It sends the message of one broadcast to the users of one bucket.
//!
//! One loop does three things concurrently. It takes users from the audience page by page and leases a credential for
//! each, sends as many messages as the adaptive limit permits, and settles ended messages in batches.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::OpenId;
use futures_util::future::{BoxFuture, Fuse, FusedFuture as _, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use store::broadcast::pages::{Next, PAGE, Ready, Settlement};
use store::broadcast::permits::Permits;
use store::broadcast::records::State;
use store::broadcast::tasks::{Left, Task};
use store::leases::{Lease, LeaseEnd, LeaseId};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::active::ActiveBroadcast;
use super::completion::{self, Signal};
use super::message::{Message, Sent, send};
use super::reason::Ending;
use super::worker_io::{BucketIo, Fetched, Stage};
use crate::send::Progress;

/// Messages are settled in batches of this size, if that many end within [`SETTLE_WAIT`].
const SETTLE_BATCH: usize = 48;

/// Maximum time that an ended message waits for others to be settled in the same batch.
const SETTLE_WAIT: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Finished,
    State(State),
    Drain,
    TakenAway,
    /// Data in Redis is unusable until it is repaired.
    Unusable,
}

struct BucketWorker {
    io: BucketIo,
    stage: Stage,
    finished: bool,
    unusable: bool,
    /// Whether other workers may have left more messages in flight than the last takeover returned.
    more_in_flight: bool,
    /// Multiplier of the page size. It grows while only few users of each page can get the message now.
    page_factor: usize,
    /// Owner id of a page whose reply was lost. The page may have made leases.
    lost_page: Option<LeaseId>,
    /// Permits of the bucket, as last read.
    permits: Permits,
    /// Users whom this worker has fetched and not yet settled.
    own: HashSet<OpenId>,
    ready: VecDeque<Message>,
    sending: FuturesUnordered<BoxFuture<'static, Sent>>,
    ended: Vec<(Message, Settlement)>,
    ended_since: Instant,
    /// Number of busy answers of WeChat, per user.
    busy: HashMap<OpenId, u32>,
}

/// Processes a bucket until it is finished, the broadcast stops, or `drain`.
pub async fn work(active: Arc<ActiveBroadcast>, task: Task, consumer: Arc<str>, drain: CancellationToken) {
    let io = BucketIo { active, task };
    let mut worker = BucketWorker::new(io.clone());
    let stop = worker.run(&consumer, &drain).await;
    let BucketIo { active, task } = &io;
    let (store, app) = (&active.context.store, &active.context.app.id);
    let left = match stop {
        // If unusable: this or another replica takes the task over after it has been idle for one lease duration. This
        // repeats until the data is repaired.
        Stop::TakenAway | Stop::Unusable => return,
        Stop::Drain => Left::Passed,
        Stop::State(State::Cancelled) => {
            if let Err(error) = io.close().await {
                debug!(broadcast = %task.broadcast, %error, "a cancelled bucket could not be closed; it is closed later");
                return;
            }
            Left::Done
        }
        Stop::State(_) => Left::Stopped,
        Stop::Finished => Left::Done,
    };
    let left = async {
        active.give_back(task.bucket, worker.permits).await?;
        store.leave_task(app, task, left).await
    };
    // If this fails, a worker takes the task over after it has been idle for one lease duration.
    if let Err(error) = left.await {
        debug!(broadcast = %task.broadcast, %error, "a task could not be released; it is taken over later");
    }
}

impl BucketWorker {
    fn new(io: BucketIo) -> Self {
        Self {
            stage: if io.active.everyone { Stage::Snapshot } else { Stage::Pages },
            io,
            finished: false,
            unusable: false,
            more_in_flight: true,
            page_factor: 1,
            lost_page: None,
            permits: Permits::default(),
            own: HashSet::new(),
            ready: VecDeque::new(),
            sending: FuturesUnordered::new(),
            ended: Vec::new(),
            ended_since: Instant::now(),
            busy: HashMap::new(),
        }
    }

    async fn run(&mut self, consumer: &str, drain: &CancellationToken) -> Stop {
        let active = Arc::clone(&self.io.active);
        let mut state = active.state();
        let mut heartbeat = tokio::time::interval(active.context.limits.terms.duration / 3);
        let mut fetching: Fuse<BoxFuture<'static, (Fetched, Permits)>> = Fuse::terminated();
        let mut settling: Fuse<BoxFuture<'static, SettleBatch>> = Fuse::terminated();
        let mut taken_away = false;
        loop {
            let now = *state.borrow_and_update();
            let stop = if taken_away {
                Some(Stop::TakenAway)
            } else if self.unusable {
                Some(Stop::Unusable)
            } else if now != State::Running {
                Some(Stop::State(now))
            } else if drain.is_cancelled() {
                Some(Stop::Drain)
            } else {
                self.finished.then_some(Stop::Finished)
            };
            let changed = active.limit.changed();
            let mut closed_for = None;
            if stop.is_some() {
                while let Some(message) = self.ready.pop_front() {
                    self.put_back(message);
                }
            } else {
                closed_for = self.launch();
            }
            let idle = self.ready.is_empty() && self.sending.is_empty() && self.ended.is_empty();
            if stop.is_none() && fetching.is_terminated() && self.wants_more(idle && settling.is_terminated()) {
                fetching = self.fetch().fuse();
            }
            if settling.is_terminated() && self.settles_now() {
                settling = self.settle().fuse();
            }
            match stop {
                Some(stop) if idle && fetching.is_terminated() && settling.is_terminated() => return stop,
                _ => {}
            }
            let settle_at = self.ended_since + SETTLE_WAIT;
            tokio::select! {
                Some(sent) = self.sending.next(), if !self.sending.is_empty() => {
                    self.on_sent(sent).await;
                    while let Some(Some(sent)) = self.sending.next().now_or_never() {
                        self.on_sent(sent).await;
                    }
                }
                (fetched, permits) = &mut fetching, if !fetching.is_terminated() => {
                    self.permits = permits;
                    self.on_fetched(fetched);
                }
                settled = &mut settling, if !settling.is_terminated() => self.on_settled(settled).await,
                () = changed, if !self.ready.is_empty() => {}
                () = tokio::time::sleep(closed_for.unwrap_or_default()), if closed_for.is_some() => {}
                () = tokio::time::sleep_until(settle_at.into()), if !self.ended.is_empty() && settling.is_terminated() => {}
                _ = state.changed() => {}
                () = drain.cancelled(), if stop.is_none() => {}
                _ = heartbeat.tick() => {
                    let kept = active.context.store.keep_task(&active.context.app.id, consumer, &self.io.task).await;
                    match kept {
                        Ok(kept) => taken_away |= !kept,
                        Err(error) => active.context.metrics.loops.broadcasts.failed(&error),
                    }
                }
            }
        }
    }

    /// Starts as many sends as the adaptive limit permits. Returns how long the limit stays closed, if it is closed for
    /// a known time.
    fn launch(&mut self) -> Option<Duration> {
        while let Some(message) = self.ready.pop_front() {
            // An old lease could expire during the call.
            if message.progress.leased_at.elapsed() > self.io.active.context.limits.terms.duration / 3 {
                self.put_back(message);
                continue;
            }
            match self.io.active.limit.enter() {
                Ok(slot) => {
                    let rounds = self.busy.get(&message.ready.openid).copied().unwrap_or_default();
                    self.sending.push(send(Arc::clone(&self.io.active), message, rounds, slot).boxed());
                }
                Err(closed_for) => {
                    self.ready.push_front(message);
                    return closed_for;
                }
            }
        }
        None
    }

    /// Number of users to take with one page: about as many as can be sent to soon.
    fn page_size(&self) -> usize {
        (self.io.active.limit.cap() * 2 * self.page_factor).clamp(1, self.io.active.largest_page())
    }

    fn wants_more(&self, idle: bool) -> bool {
        match self.stage {
            _ if self.finished => false,
            _ if self.lost_page.is_some() => true,
            Stage::Snapshot | Stage::Recovery(_) => true,
            Stage::Pages => self.ready.len() * 2 <= self.page_size(),
            Stage::Flight => idle || (self.more_in_flight && self.ready.len() * 2 <= self.page_size()),
        }
    }

    fn fetch(&self) -> BoxFuture<'static, (Fetched, Permits)> {
        let stage = self.lost_page.map_or(self.stage, Stage::Recovery);
        let takes_over = matches!(stage, Stage::Flight | Stage::Recovery(_));
        let own = if takes_over { self.own.clone() } else { HashSet::new() };
        self.io.clone().fetch(stage, self.page_size(), own, self.permits).boxed()
    }

    fn on_fetched(&mut self, fetched: Fetched) {
        match fetched {
            Fetched::Snapshot => self.stage = Stage::Pages,
            Fetched::Page { page, requested_at, traced } => {
                if page.through {
                    self.stage = Stage::Flight;
                }
                self.page_factor = if page.ready.len() * 2 < page.taken { (self.page_factor * 2).min(PAGE) } else { 1 };
                self.enqueue(page.ready, requested_at, traced);
            }
            Fetched::TakenOver { complete, found, requested_at } => {
                self.finished = complete;
                self.more_in_flight = !found.ready.is_empty();
                if !complete && found.ready.is_empty() {
                    // Another worker may have put users back into the audience.
                    self.stage = Stage::Pages;
                }
                self.enqueue(found.ready, requested_at, false);
            }
            Fetched::Recovered { ready, requested_at } => {
                self.lost_page = None;
                self.enqueue(ready, requested_at, false);
            }
            Fetched::Lost(owner) => self.lost_page = Some(owner),
            // The open permits may belong to messages that a dead replica left in flight in this bucket.
            Fetched::Nothing if self.stage == Stage::Pages && self.io.active.waits_for_permits() => {
                self.stage = Stage::Flight;
            }
            Fetched::Nothing => {}
            Fetched::Unusable => self.unusable = true,
        }
    }

    /// If the page is traced, only its first message is traced.
    fn enqueue(&mut self, ready: Vec<Ready>, leased_at: Instant, traced: bool) {
        for (number, ready) in ready.into_iter().enumerate() {
            self.own.insert(ready.openid.clone());
            self.ready.push_back(Message { ready, progress: Progress::new(leased_at), traced: traced && number == 0 });
        }
    }

    /// Ends a message without sending it now.
    fn put_back(&mut self, message: Message) {
        let (lease_end, next) = completion::unsent(message.ready.lease.taken_over);
        self.end(message, lease_end, next);
    }

    async fn on_sent(&mut self, Sent { message, disposition }: Sent) {
        if disposition.next == Next::Again && completion::is_busy(&message.progress.last) {
            *self.busy.entry(message.ready.openid.clone()).or_default() += 1;
        }
        self.io.active.on_signal(disposition.signal, message.progress.congested).await;
        self.end(message, disposition.lease_end, disposition.next);
    }

    fn end(&mut self, message: Message, lease_end: LeaseEnd, next: Next) {
        if self.ended.is_empty() {
            self.ended_since = Instant::now();
        }
        let (openid, owner) = (message.ready.openid.clone(), message.ready.lease.id);
        let msgid = message.progress.last.msgid;
        self.ended.push((message, Settlement { openid, owner, verdict: lease_end, next, msgid }));
    }

    fn settles_now(&self) -> bool {
        !self.ended.is_empty()
            && (self.ended.len() >= SETTLE_BATCH
                || (self.sending.is_empty() && self.ready.is_empty())
                || self.ended_since.elapsed() >= SETTLE_WAIT)
    }

    fn settle(&mut self) -> BoxFuture<'static, SettleBatch> {
        let batch: Vec<_> = self.ended.drain(..self.ended.len().min(PAGE)).collect();
        self.ended_since = Instant::now();
        let io = self.io.clone();
        Box::pin(async move {
            let (messages, settlements): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let requested_at = Instant::now();
            let _span = io.active.trace.settle(settlements.len());
            let next = io.settle(&settlements).await.ok();
            SettleBatch { messages, settlements, next, requested_at }
        })
    }

    async fn on_settled(&mut self, settled: SettleBatch) {
        let Some(next) = settled.next else {
            self.unusable = true;
            return;
        };
        let mut leases: HashMap<OpenId, Lease> = next.into_iter().collect();
        for (mut message, settlement) in settled.messages.into_iter().zip(settled.settlements) {
            let next = leases.remove(&settlement.openid);
            match (settlement.next, next) {
                (Next::Credential(..), Some(lease)) => {
                    message.ready.lease = lease;
                    message.progress.credentials += 1;
                    message.progress.leased_at = settled.requested_at;
                    self.ready.push_front(message);
                    continue;
                }
                (Next::Credential(_, ending), None) if ending == Ending::NoCredential.name() => {}
                // There is no next credential, so the message failed.
                (Next::Credential(..), None) => self.io.active.on_signal(Signal::Failed, false).await,
                (Next::Again, _) if self.stage == Stage::Flight => self.stage = Stage::Pages,
                (Next::Hold, _) => self.more_in_flight = false,
                _ => {}
            }
            self.own.remove(&settlement.openid);
        }
    }
}

/// A settled batch, and the next credentials of the messages that got one.
struct SettleBatch {
    messages: Vec<Message>,
    settlements: Vec<Settlement>,
    /// `None` if the batch could not be settled and retrying does not help.
    next: Option<Vec<(OpenId, Lease)>>,
    requested_at: Instant,
}
