//! Callers that collect continuously, even while Redis is unavailable, and record what was acknowledged and when.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use store::Store;
use testing::eventually;
use tokio::task::JoinSet;

use crate::fixture::*;
use crate::outages::assert_redis_unavailable;

/// Number of callers.
const CALLERS: usize = 8;

/// The running callers.
pub struct Writers {
    watch: Arc<Watch>,
    callers: JoinSet<Vec<Acknowledged>>,
}

/// Counters that the callers and the test share.
#[derive(Default)]
struct Watch {
    done: AtomicBool,
    stored: AtomicUsize,
    failed: AtomicUsize,
}

/// A successful call: the times of its start and its answer, and its openids and form ids.
struct Acknowledged {
    time: Range<Instant>,
    ids: Vec<(String, String)>,
}

impl Writers {
    /// Starts the callers.
    pub async fn start(collector: &Collector) -> Self {
        let (watch, mut callers) = (Arc::<Watch>::default(), JoinSet::new());
        for caller in 0..CALLERS {
            callers.spawn(collect_on(collector.client().await, caller, Arc::clone(&watch)));
        }
        Self { watch, callers }
    }

    /// Waits until this many more calls have succeeded.
    pub async fn stores(&self, calls: usize, bound: Duration) {
        let before = self.watch.stored.load(Ordering::Relaxed);
        eventually("calls succeed", bound, async || self.watch.stored.load(Ordering::Relaxed) > before + calls).await;
    }

    /// Waits until more calls have failed since the start than there are callers.
    pub async fn fails(&self) {
        eventually("calls fail", SOON, async || self.watch.failed.load(Ordering::Relaxed) > CALLERS).await;
    }

    /// Stops the callers. Returns the times of each acknowledged credential that is not stored.
    pub async fn missing(self, store: &Store) -> Vec<Range<Instant>> {
        self.watch.done.store(true, Ordering::Relaxed);
        let mut missing = Vec::new();
        for Acknowledged { time, ids } in self.callers.join_all().await.into_iter().flatten() {
            for (openid, id) in ids {
                if !stored(store, &openid).await.contains(&id) {
                    missing.push(time.clone());
                }
            }
        }
        missing
    }
}

async fn collect_on(mut client: Client, caller: usize, watch: Arc<Watch>) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    for call in 0.. {
        if watch.done.load(Ordering::Relaxed) {
            break;
        }
        let ids: Vec<_> = (0..20).map(|n| (format!("o{caller}x{call}x{}", n % 7), format!("f{n}"))).collect();
        let begun = Instant::now();
        match collect(&mut client, ids.iter().map(|(openid, id)| form(openid, id)).collect()).await {
            Ok(_) => {
                acknowledged.push(Acknowledged { time: begun..Instant::now(), ids });
                watch.stored.fetch_add(1, Ordering::Relaxed);
            }
            Err(status) => {
                assert_redis_unavailable(&status);
                watch.failed.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    acknowledged
}
