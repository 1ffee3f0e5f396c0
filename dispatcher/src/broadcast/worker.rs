//! The worker of one task: one bucket of users of one broadcast, from its audience to the outcome of each message.
//!
//! One loop does several things concurrently. It takes users page by page with a lease each, sends as many messages as
//! the adaptive limit permits, and settles ended messages in batches.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::OpenId;
use futures_util::future::{Fuse, FusedFuture as _, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use store::broadcast::pages::{Next, PAGE, Ready, Settlement};
use store::broadcast::permits::Permits;
use store::broadcast::records::State;
use store::broadcast::tasks::{Left, Task};
use store::leases::{Lease, LeaseEnd, LeaseId};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, warn};

use super::active::ActiveBroadcast;
use super::completion::{self, Signal};
use super::limiter::Slot;
use super::worker_io::{Fetched, Stage, close, fetch, fetch_lost, settle_patiently};
use crate::send::{Progress, SendRequest};
use crate::spans;

/// Messages are settled in batches of this size, if that many end within [`SETTLE_WAIT`].
const SETTLE_BATCH: usize = 48;

/// Longest time that an ended message waits for others to be settled with.
const SETTLE_WAIT: Duration = Duration::from_millis(10);

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why a worker stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// All users are processed.
    Finished,
    /// The broadcast no longer runs.
    State(State),
    /// This replica shuts down.
    Drain,
    /// Another replica has taken over the task.
    TakenAway,
    /// Data in Redis is unusable until it is repaired.
    Unusable,
}

struct Message {
    ready: Ready,
    tally: Progress,
    traced: bool,
}

struct Sent {
    message: Message,
    ending: completion::Disposition,
}

struct BucketWorker {
    running: Arc<ActiveBroadcast>,
    task: Task,
    stage: Stage,
    finished: bool,
    unusable: bool,
    /// Other workers left more messages in flight than were taken over at once.
    more_in_flight: bool,
    /// Factor of the page size. It grows while few users of a page can be sent to.
    thin: usize,
    /// Owner of leases that a page may have made although its reply was lost.
    lost: Option<LeaseId>,
    /// Permits of the bucket, as last read.
    permits: Permits,
    /// Users whom this worker has fetched and not yet settled.
    mine: HashSet<OpenId>,
    ready: VecDeque<Message>,
    sending: FuturesUnordered<Work<Sent>>,
    ended: Vec<(Message, Settlement)>,
    ended_since: Instant,
    /// How often WeChat was busy, per user.
    busy: HashMap<OpenId, u32>,
}

/// Processes a bucket until it is finished, the broadcast stops, or `drain`.
pub async fn work(running: Arc<ActiveBroadcast>, task: Task, consumer: Arc<str>, drain: CancellationToken) {
    let mut bucket = BucketWorker::new(Arc::clone(&running), task.clone());
    let stop = bucket.run(&consumer, &drain).await;
    let (store, app) = (&running.context.store, &running.context.app.id);
    let left = match stop {
        // Unusable: the task is taken over once it has been idle for one lease, here or elsewhere, until the data is
        // repaired.
        Stop::TakenAway | Stop::Unusable => return,
        Stop::Drain => Left::Passed,
        Stop::State(State::Cancelled) => {
            if let Err(error) = close(&running, &task).await {
                debug!(broadcast = %task.broadcast, %error, "a cancelled bucket could not be closed; it is closed later");
                return;
            }
            Left::Done
        }
        Stop::State(_) => Left::Stopped,
        Stop::Finished => Left::Done,
    };
    let left = async {
        running.give_back(task.bucket, bucket.permits).await?;
        store.leave_task(app, &task, left).await
    };
    // If this fails, the task is taken over once it is idle.
    if let Err(error) = left.await {
        debug!(broadcast = %task.broadcast, %error, "a task could not be released; it is taken over later");
    }
}

impl BucketWorker {
    fn new(running: Arc<ActiveBroadcast>, task: Task) -> Self {
        let stage = if running.everyone { Stage::Snapshot } else { Stage::Pages };
        Self {
            running,
            task,
            stage,
            finished: false,
            unusable: false,
            more_in_flight: true,
            thin: 1,
            lost: None,
            permits: Permits::default(),
            mine: HashSet::new(),
            ready: VecDeque::new(),
            sending: FuturesUnordered::new(),
            ended: Vec::new(),
            ended_since: Instant::now(),
            busy: HashMap::new(),
        }
    }

    async fn run(&mut self, consumer: &str, drain: &CancellationToken) -> Stop {
        let running = Arc::clone(&self.running);
        let mut state = running.state();
        let mut beat = tokio::time::interval(running.context.limits.terms.duration / 3);
        let mut fetching: Fuse<Work<(Fetched, Permits)>> = Fuse::terminated();
        let mut settling: Fuse<Work<SettleBatch>> = Fuse::terminated();
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
            let changed = running.flow.changed();
            let mut closed_for = None;
            if stop.is_some() {
                while let Some(message) = self.ready.pop_front() {
                    self.unsent(message);
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
                    self.take_in(sent).await;
                    while let Some(Some(sent)) = self.sending.next().now_or_never() {
                        self.take_in(sent).await;
                    }
                }
                (fetched, permits) = &mut fetching, if !fetching.is_terminated() => {
                    self.permits = permits;
                    self.fetched(fetched);
                }
                settled = &mut settling, if !settling.is_terminated() => self.settled(settled).await,
                () = changed, if !self.ready.is_empty() => {}
                () = tokio::time::sleep(closed_for.unwrap_or_default()), if closed_for.is_some() => {}
                () = tokio::time::sleep_until(settle_at.into()), if !self.ended.is_empty() && settling.is_terminated() => {}
                _ = state.changed() => {}
                () = drain.cancelled(), if stop.is_none() => {}
                _ = beat.tick() => {
                    let kept = running.context.store.keep_task(&running.context.app.id, consumer, &self.task).await;
                    match kept {
                        Ok(kept) => taken_away |= !kept,
                        Err(error) => running.context.metrics.loops.broadcasts.failed(&error),
                    }
                }
            }
        }
    }

    /// Starts as many sends as the adaptive limit permits. Returns how long it is closed, if it is.
    fn launch(&mut self) -> Option<Duration> {
        while let Some(message) = self.ready.pop_front() {
            // An old lease could expire during the call.
            if message.tally.leased_at.elapsed() > self.running.context.limits.terms.duration / 3 {
                self.unsent(message);
                continue;
            }
            match self.running.flow.enter() {
                Ok(place) => {
                    let rounds = self.busy.get(&message.ready.openid).copied().unwrap_or_default();
                    self.sending.push(Box::pin(send(Arc::clone(&self.running), message, rounds, place)));
                }
                Err(closed_for) => {
                    self.ready.push_front(message);
                    return closed_for;
                }
            }
        }
        None
    }

    /// How many users are taken at once: about as many as can be sent to soon.
    fn page_size(&self) -> usize {
        (self.running.flow.cap() * 2 * self.thin).clamp(1, self.running.largest_page())
    }

    fn wants_more(&self, idle: bool) -> bool {
        match self.stage {
            _ if self.finished => false,
            _ if self.lost.is_some() => true,
            Stage::Snapshot => true,
            Stage::Pages => self.ready.len() * 2 <= self.page_size(),
            Stage::Flight => idle || (self.more_in_flight && self.ready.len() * 2 <= self.page_size()),
        }
    }

    fn fetch(&self) -> Work<(Fetched, Permits)> {
        let (running, task, permits) = (Arc::clone(&self.running), self.task.clone(), self.permits);
        match self.lost {
            Some(owner) => Box::pin(fetch_lost(running, task, owner, self.mine.clone(), permits)),
            None => {
                let mine = if self.stage == Stage::Flight { self.mine.clone() } else { HashSet::new() };
                Box::pin(fetch(running, task, self.stage, self.page_size(), mine, permits))
            }
        }
    }

    fn fetched(&mut self, fetched: Fetched) {
        match fetched {
            Fetched::Snapshot => self.stage = Stage::Pages,
            Fetched::Page { page, asked, traced } => {
                if page.through {
                    self.stage = Stage::Flight;
                }
                self.thin = if page.ready.len() * 2 < page.taken { (self.thin * 2).min(PAGE) } else { 1 };
                self.enqueue(page.ready, asked, traced);
            }
            Fetched::Flight { through, found, asked } => {
                self.finished = through;
                self.more_in_flight = !found.ready.is_empty();
                if !through && found.ready.is_empty() {
                    // Another worker may have put users back into the audience.
                    self.stage = Stage::Pages;
                }
                self.enqueue(found.ready, asked, false);
            }
            Fetched::Recovered { ready, asked } => {
                self.lost = None;
                self.enqueue(ready, asked, false);
            }
            Fetched::Lost(owner) => self.lost = Some(owner),
            // The open permits may belong to messages that a dead replica left in flight in this bucket.
            Fetched::Nothing if self.stage == Stage::Pages && self.running.waits_for_permits() => {
                self.stage = Stage::Flight;
            }
            Fetched::Nothing => {}
            Fetched::Unusable => self.unusable = true,
        }
    }

    /// If the page is traced, only its first message is.
    fn enqueue(&mut self, ready: Vec<Ready>, leased_at: Instant, traced: bool) {
        for (place, ready) in ready.into_iter().enumerate() {
            self.mine.insert(ready.openid.clone());
            self.ready.push_back(Message { ready, tally: Progress::new(leased_at), traced: traced && place == 0 });
        }
    }

    /// Ends a message that is not sent now.
    fn unsent(&mut self, message: Message) {
        let (verdict, next) = completion::unsent(message.ready.lease.taken_over);
        self.end(message, verdict, next);
    }

    async fn take_in(&mut self, Sent { message, ending }: Sent) {
        if ending.next == Next::Again && completion::wears_out(&message.tally.last) {
            *self.busy.entry(message.ready.openid.clone()).or_default() += 1;
        }
        self.running.on_signal(ending.sign, message.tally.congested).await;
        self.end(message, ending.verdict, ending.next);
    }

    fn end(&mut self, message: Message, verdict: LeaseEnd, next: Next) {
        if self.ended.is_empty() {
            self.ended_since = Instant::now();
        }
        let (openid, owner) = (message.ready.openid.clone(), message.ready.lease.id);
        let msgid = message.tally.last.msgid;
        self.ended.push((message, Settlement { openid, owner, verdict, next, msgid }));
    }

    fn settles_now(&self) -> bool {
        !self.ended.is_empty()
            && (self.ended.len() >= SETTLE_BATCH
                || (self.sending.is_empty() && self.ready.is_empty())
                || self.ended_since.elapsed() >= SETTLE_WAIT)
    }

    fn settle(&mut self) -> Work<SettleBatch> {
        let batch: Vec<_> = self.ended.drain(..self.ended.len().min(PAGE)).collect();
        self.ended_since = Instant::now();
        let (running, task) = (Arc::clone(&self.running), self.task.clone());
        Box::pin(async move {
            let (messages, settlements): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let asked = Instant::now();
            let _span = running.trace.settle(settlements.len());
            let next = settle_patiently(&running, &task, &settlements).await.ok();
            SettleBatch { messages, settlements, next, asked }
        })
    }

    async fn settled(&mut self, settled: SettleBatch) {
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
                    message.tally.credentials += 1;
                    message.tally.leased_at = settled.asked;
                    self.ready.push_front(message);
                    continue;
                }
                // It was the message's last credential.
                (Next::Credential(..), None) => self.running.on_signal(Signal::Failed, false).await,
                (Next::Again, _) if self.stage == Stage::Flight => self.stage = Stage::Pages,
                (Next::Hold, _) => self.more_in_flight = false,
                _ => {}
            }
            self.mine.remove(&settlement.openid);
        }
    }
}

/// A settled batch, and the next credentials of the messages that got one.
struct SettleBatch {
    messages: Vec<Message>,
    settlements: Vec<Settlement>,
    /// `None` if the batch could not be settled and retrying does not help.
    next: Option<Vec<(OpenId, Lease)>>,
    asked: Instant,
}

async fn send(running: Arc<ActiveBroadcast>, message: Message, rounds: u32, place: Slot) -> Sent {
    if !message.traced {
        return attempt(running, message, rounds, place).await;
    }
    let span = running.trace.message();
    let sent = attempt(running, message, rounds, place).instrument(span.clone()).await;
    spans::ended(&span, &sent.ending.next, sent.message.tally.attempts);
    sent
}

async fn attempt(running: Arc<ActiveBroadcast>, mut message: Message, rounds: u32, place: Slot) -> Sent {
    let context = &running.context;
    let conclusion = match running.spec.message_for(&message.ready.data) {
        Ok(text) => {
            let (openid, retry_unknown) = (message.ready.openid.clone(), running.spec.retry_unknown);
            let order = SendRequest { openid, message: text, request: None, retry_unknown };
            context.try_credential(&order, &message.ready.lease, &mut message.tally).await
        }
        Err(error) => {
            warn!(broadcast = %running.id, %error, "the data of a recipient cannot be read");
            crate::send::AttemptResult::NotSpent(error.into())
        }
    };
    drop(place);
    let ending =
        completion::of(conclusion, &message.tally, rounds, context.limits.credentials, context.clock.next_day_ms());
    Sent { message, ending }
}
