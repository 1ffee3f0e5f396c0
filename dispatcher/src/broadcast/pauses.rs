//! How many broadcasts are paused, and why, and how far those that are not over have come: for the metrics. A paused one is
//! on no list of what there is to do.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use shared::credential::AppId;
use shared::outage::Operation;
use shared::store::broadcast::BroadcastId;
use shared::store::broadcast::records::State;
use shared::store::{Error, Store};

use crate::metrics::PauseMetrics;

/// How often they are counted.
const LOOK: Duration = Duration::from_secs(5);

/// How often the users of one broadcast are counted, which takes Redis a command or two for each bucket.
const RECOUNT: Duration = Duration::from_secs(15);

/// How many broadcasts are looked at, the newest first: what is paused behind so many others is forgotten.
const MOST: usize = 1000;

/// Keeps the metrics of an app in sight of what all replicas and callers paused.
pub async fn follow(store: Store, app: AppId, metrics: PauseMetrics, mut reading: Operation) {
    let mut seen = Seen::default();
    loop {
        let reasons = seen.look(&store, &app).await;
        reading.note(&reasons);
        if let Ok(reasons) = reasons {
            metrics.show(reasons.iter().map(String::as_str));
            let sum = |part: fn(&Progress) -> u64| seen.open.values().map(part).sum();
            metrics.show_progress(sum(|progress| progress.audience), sum(|progress| progress.left));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is known of an app's broadcasts.
#[derive(Default)]
struct Seen {
    /// Those that are over stay so, and are looked at once.
    over: HashSet<BroadcastId>,
    /// Those that run or are paused.
    open: HashMap<BroadcastId, Progress>,
}

/// How far a broadcast has come.
struct Progress {
    audience: u64,
    left: u64,
    state: State,
    counted: Instant,
    /// It was paused at the count before this one too: what was in flight at the pause has ended, and nothing changes.
    at_rest: bool,
}

impl Seen {
    /// The reason of each paused broadcast.
    async fn look(&mut self, store: &Store, app: &AppId) -> Result<Vec<String>, Error> {
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
                self.count(store, app, &id, state).await?;
            } else {
                self.open.remove(&id);
            }
            if state.is_final() {
                self.over.insert(id);
            }
        }
        Ok(reasons)
    }

    async fn count(&mut self, store: &Store, app: &AppId, id: &BroadcastId, state: State) -> Result<(), Error> {
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
