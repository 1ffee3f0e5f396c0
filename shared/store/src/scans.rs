//! Limits work that reads every bucket of an app, which runs hundreds of commands per call. Per kind of work, an app
//! has one turn at a time, and at most [`APPS_AT_ONCE`] apps have a turn at once. Callers that ask for the same result
//! share the work.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, WeakShared};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Store;
use domain::AppId;

/// Number of apps that work of one kind may run for at the same time.
const APPS_AT_ONCE: usize = 4;

/// The kind of work. Each kind has its own turns, so that slow work of one kind delays no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// Counting the stock or the ledger.
    Count,
    /// Adding up the tally of a broadcast.
    Tally,
    /// Reading a page of a list, or checking whether any bucket has users.
    List,
    /// Estimating whom a broadcast would reach.
    Preview,
    /// Adding to the recipient list of a broadcast.
    Recipients,
}

#[derive(Debug, Default)]
pub(super) struct ScanLimits([KindLimits; 5]);

#[derive(Debug)]
struct KindLimits {
    all: Arc<Semaphore>,
    /// Grows to at most the number of configured apps, since requests for other apps are rejected earlier.
    apps: Mutex<HashMap<AppId, Arc<Semaphore>>>,
}

impl Default for KindLimits {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(APPS_AT_ONCE)), apps: Mutex::default() }
    }
}

/// A turn. It ends when this is dropped.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct ScanPermit {
    // None if a semaphore was closed, which never happens.
    _app: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

impl Store {
    /// Waits for a turn to do work of a kind for an app. A caller that holds a turn must not wait for another one.
    pub fn turn(&self, work: Scan, app: &AppId) -> impl Future<Output = ScanPermit> + Send + use<> {
        let turns = &self.inner.turns.0[work as usize];
        let app = Arc::clone(lock(&turns.apps).entry(app.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))));
        let all = Arc::clone(&turns.all);
        // The app's semaphore comes first: an app that waits for its own turn holds no turn that others could use.
        async move { ScanPermit { _app: app.acquire_owned().await.ok(), _all: all.acquire_owned().await.ok() } }
    }
}

/// Runs work once for all callers that ask before it begins. A caller that asks later gets the next run, which sees all
/// changes made before the call.
#[derive(Debug)]
pub struct SingleFlight<K, T> {
    // Weak references: work that no caller waits for any more is dropped and gives back its turn.
    waiting: Mutex<HashMap<K, WeakShared<BoxFuture<'static, T>>>>,
}

impl<K, T> Default for SingleFlight<K, T> {
    fn default() -> Self {
        Self { waiting: Mutex::default() }
    }
}

impl<K, T> SingleFlight<K, T>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Returns the result of `work`, or of equal work that another caller asked for and that has not begun. The work
    /// begins once it has its `turn`.
    pub async fn join(
        self: &Arc<Self>,
        key: K,
        turn: impl Future<Output = ScanPermit> + Send + 'static,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let shared = {
            let mut waiting = lock(&self.waiting);
            let joined = waiting.get(&key).and_then(WeakShared::upgrade);
            joined.unwrap_or_else(|| {
                waiting.retain(|_, work| work.upgrade().is_some());
                let (flights, begun) = (Arc::clone(self), key.clone());
                let work = async move {
                    let _turn = turn.await;
                    lock(&flights.waiting).remove(&begun);
                    work.await
                };
                let shared = work.boxed().shared();
                if let Some(weak) = shared.downgrade() {
                    waiting.insert(key, weak);
                }
                shared
            })
        };
        shared.await
    }
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one insert or one remove, so a panic of another thread leaves the map consistent.
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use futures_util::poll;
    use tokio::sync::watch;

    use super::super::{RedisConfig, RedisUrl, StoreConfig};
    use super::*;

    fn store() -> Store {
        let url = RedisUrl::parse("redis://127.0.0.1:1", None).unwrap();
        let redis = RedisConfig { url, connections: 1, timeout: Duration::from_secs(1) };
        Store::new(&StoreConfig { redis, buckets: 4, cap: 120, keep_once: Duration::from_secs(1) }).unwrap()
    }

    fn app(id: &str) -> AppId {
        AppId::parse(id).unwrap()
    }

    /// Scan for one app that ends on a signal. It returns the number of runs that had begun before.
    struct Counting {
        store: Store,
        flights: Arc<SingleFlight<&'static str, u32>>,
        begun: Arc<AtomicU32>,
        end: watch::Sender<bool>,
    }

    impl Counting {
        fn new() -> Self {
            let (flights, begun) = (Arc::default(), Arc::default());
            Self { store: store(), flights, begun, end: watch::Sender::new(false) }
        }

        fn ask(&self, key: &'static str) -> Pin<Box<impl Future<Output = u32> + '_>> {
            let (begun, mut end) = (Arc::clone(&self.begun), self.end.subscribe());
            let work = async move {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                end.wait_for(|end| *end).await.unwrap();
                number
            };
            Box::pin(self.flights.join(key, self.store.turn(Scan::Count, &app("wx1")), work))
        }
    }

    #[tokio::test]
    async fn callers_share_work_that_has_not_begun_and_later_ones_the_next() {
        let counting = Counting::new();
        let mut first = counting.ask("stock");
        assert!(poll!(&mut first).is_pending());
        let mut others = [(); 100].map(|()| counting.ask("stock"));
        for other in &mut others {
            assert!(poll!(other).is_pending());
        }
        assert_eq!(counting.begun.load(Ordering::Relaxed), 1);
        counting.end.send_replace(true);
        assert_eq!(first.await, 0);
        for other in others {
            assert_eq!(other.await, 1);
        }
        assert_eq!(counting.begun.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn abandoned_work_gives_back_its_turn() {
        let counting = Counting::new();
        let (mut begun, mut waiting) = (counting.ask("a"), counting.ask("b"));
        assert!(poll!(&mut begun).is_pending() && poll!(&mut waiting).is_pending());
        drop((waiting, begun));
        counting.end.send_replace(true);
        let next = tokio::time::timeout(Duration::from_secs(20), counting.ask("c"));
        assert_eq!(next.await, Ok(1));
        assert_eq!(lock(&counting.flights.waiting).len(), 0);
    }

    #[tokio::test]
    async fn app_has_one_turn_and_takes_none_from_others_while_waiting() {
        let store = store();
        let turn = |work, id| Box::pin(store.turn(work, &app(id)));
        let mut taken = vec![turn(Scan::Count, "wx1").await];
        let mut second = [(); APPS_AT_ONCE].map(|()| turn(Scan::Count, "wx1"));
        for second in &mut second {
            assert!(poll!(second).is_pending());
        }
        for id in ["wx2", "wx3", "wx4"] {
            taken.push(turn(Scan::Count, id).await);
        }
        let mut fifth = turn(Scan::Count, "wx5");
        assert!(poll!(&mut fifth).is_pending());
        let _other_work = turn(Scan::Tally, "wx1").await;
        taken.pop();
        let _fifth = fifth.await;
    }
}
