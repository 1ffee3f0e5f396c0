//! Gauges of the daily quota and of broadcasts: how many are paused and why, and the progress of those that have not
//! ended. Paused broadcasts are not in any list that the scheduler reads.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use store::Error;
use store::broadcast::BroadcastId;
use store::broadcast::permits::Budget;
use store::broadcast::records::State;

use crate::context::AppContext;
use crate::wechat::message::Delivery;

const INTERVAL: Duration = Duration::from_secs(5);

/// Interval at which the users of one broadcast are counted. This takes a Redis command or two per bucket.
const RECOUNT: Duration = Duration::from_secs(15);

/// How many broadcasts are read, newest first. Older paused ones are not counted.
const MOST: usize = 1000;

/// Reads the usage of the daily quota, for both message generations. It includes the messages of all replicas. Never
/// returns.
pub async fn follow_quota(context: Arc<AppContext>) {
    let AppContext { app, store, clock, metrics, .. } = &*context;
    let mut reading = metrics.loops.gauges.operation();
    loop {
        for delivery in Delivery::ALL {
            let budget = Budget { api: delivery.api(), day: clock.day() };
            let quota = store.quota(&app.id, budget).await;
            reading.note(&quota);
            if let Ok((limit, used)) = quota {
                metrics.show_quota(delivery, limit.unwrap_or(app.bounds(delivery).daily_quota), used);
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Counts broadcasts, including those that callers and other replicas paused. Never returns.
pub async fn follow_broadcasts(context: Arc<AppContext>) {
    let metrics = &context.metrics;
    let mut reading = context.metrics.loops.gauges.operation();
    let mut seen = Seen::default();
    loop {
        let reasons = seen.update(&context).await;
        reading.note(&reasons);
        if let Ok(reasons) = reasons {
            metrics.show_paused(reasons.iter().map(String::as_str));
            let sum = |part: fn(&Progress) -> u64| seen.open.values().map(part).sum();
            metrics.show_progress(sum(|progress| progress.audience), sum(|progress| progress.left));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Known broadcasts of an app.
#[derive(Default)]
struct Seen {
    /// Broadcasts that have ended. They do not change any more, so they are read once.
    over: HashSet<BroadcastId>,
    open: HashMap<BroadcastId, Progress>,
}

struct Progress {
    audience: u64,
    left: u64,
    state: State,
    counted: Instant,
    /// It was already paused at the previous count. The messages in flight at the pause have ended, so nothing changes.
    at_rest: bool,
}

impl Seen {
    /// Returns the reason of each paused broadcast.
    async fn update(&mut self, context: &AppContext) -> Result<Vec<String>, Error> {
        let (store, app) = (&context.store, &context.app.id);
        let ids: HashSet<_> = store.newest_broadcasts(app, MOST).await?.into_iter().collect();
        self.over.retain(|id| ids.contains(id));
        self.open.retain(|id, _| ids.contains(id));
        let mut reasons = Vec::new();
        for id in ids {
            if self.over.contains(&id) {
                continue;
            }
            let Some((state, reason)) = store.broadcast_pause(app, &id).await? else { continue };
            reasons.extend(reason);
            if matches!(state, State::Running | State::Paused) {
                self.count(context, &id, state).await?;
            } else {
                self.open.remove(&id);
            }
            if state.is_final() {
                self.over.insert(id);
            }
        }
        Ok(reasons)
    }

    async fn count(&mut self, context: &AppContext, id: &BroadcastId, state: State) -> Result<(), Error> {
        let (store, app) = (&context.store, &context.app.id);
        let before = self.open.get(id).filter(|before| before.state == state);
        if before.is_some_and(|before| before.at_rest || before.counted.elapsed() < RECOUNT) {
            return Ok(());
        }
        let at_rest = before.is_some() && state == State::Paused;
        let Some(record) = store.broadcast(app, id).await? else { return Ok(()) };
        let tally = store.tally(app, &record).await?;
        let progress =
            Progress { audience: tally.audience, left: tally.left(), state, counted: Instant::now(), at_rest };
        self.open.insert(id.clone(), progress);
        Ok(())
    }
}
