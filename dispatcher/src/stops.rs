//! App stops: which credentials of an app may be used now. WeChat imposes stops, and all replicas share them. This
//! module also holds the pause of this replica after WeChat asked to slow down.
//!
//! A stop expires after some time. Then sends try again: the codes that stop an app spend nothing, so at worst WeChat
//! answers with the same code. Every replica reads the shared stops once a second; a stop that it sets itself applies
//! immediately.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use domain::{AppId, Kind};
use store::Store;
use store::eligibility::Kinds;
use store::stops::{Stop, StopScope};
use tracing::{error, info};

use crate::clock::Clock;
use crate::metrics::StopMetrics;

/// Interval at which each replica reads the stops of an app.
pub const REFRESH: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct AppStops {
    app: AppId,
    clock: Clock,
    stops: RwLock<HashMap<StopScope, Stop>>,
    not_before_ms: AtomicU64,
    metrics: StopMetrics,
}

impl AppStops {
    pub fn new(app: AppId, clock: Clock, metrics: StopMetrics) -> Self {
        Self { app, clock, stops: RwLock::default(), not_before_ms: AtomicU64::new(0), metrics }
    }

    /// Returns those kinds of `wanted` that may be used now. If none may be used, fails with the stop.
    pub fn usable(&self, wanted: Kinds) -> Result<Kinds, Stop> {
        let (usable, stop) = self.split(wanted);
        match stop {
            Some(stop) if usable.is_empty() => Err(stop),
            _ => Ok(usable),
        }
    }

    /// Fails with the stop if any kind of `wanted` may not be used now.
    pub fn check_all(&self, wanted: Kinds) -> Result<(), Stop> {
        self.split(wanted).1.map_or(Ok(()), Err)
    }

    /// Returns the kinds out of `wanted` that may be used now, and a stop of one of the others.
    fn split(&self, wanted: Kinds) -> (Kinds, Option<Stop>) {
        let stops = self.stops.read().unwrap_or_else(PoisonError::into_inner);
        if stops.is_empty() {
            return (wanted, None);
        }
        let now = self.clock.now_ms();
        let stopped = |source| stops.get(&source).filter(|stop| stop.until_ms > now);
        if let Some(stop) = stopped(StopScope::App) {
            return (Kinds::NONE, Some(stop.clone()));
        }
        let mut first = None;
        let is_usable = |kind: &Kind| {
            let stop = stopped(StopScope::Kind(*kind));
            first = first.or(stop);
            stop.is_none()
        };
        let usable = wanted.iter().filter(is_usable).collect();
        (usable, first.cloned())
    }

    /// Stops sources of the app. This applies on this replica immediately, and on other replicas within [`REFRESH`].
    pub async fn stop(&self, store: &Store, sources: &[StopScope], stop: Stop) {
        // All messages in flight may get the same answer. Only the first one is logged.
        if self.insert(sources, &stop) {
            error!(app = %self.app, errcode = stop.errcode, rid = stop.rid, ?sources, until_ms = stop.until_ms, "WeChat stopped the app");
        }
        for source in sources {
            self.metrics.sharing.operation().note(&store.stop(&self.app, *source, &stop).await);
        }
        let (stops, now) = (self.stops.read().unwrap_or_else(PoisonError::into_inner), self.clock.now_ms());
        self.show(&stops, now);
    }

    /// Returns true if any of the sources was not stopped before.
    fn insert(&self, sources: &[StopScope], stop: &Stop) -> bool {
        let now = self.clock.now_ms();
        let mut stops = self.stops.write().unwrap_or_else(PoisonError::into_inner);
        let mut new = false;
        for source in sources {
            new |= stops.insert(*source, stop.clone()).is_none_or(|known| known.until_ms <= now);
        }
        new
    }

    pub async fn refresh(&self, store: &Store) -> Result<(), store::Error> {
        let shared = store.stops(&self.app).await?;
        let now = self.clock.now_ms();
        let mut stops = self.stops.write().unwrap_or_else(PoisonError::into_inner);
        for (source, stop) in shared {
            if stop.until_ms > now && stops.get(&source).is_none_or(|known| known.until_ms < stop.until_ms) {
                stops.insert(source, stop);
            }
        }
        let before = stops.len();
        stops.retain(|_, stop| stop.until_ms > now);
        if stops.len() < before {
            info!(app = %self.app, "a stop expired; sends are allowed again");
        }
        self.show(&stops, now);
        Ok(())
    }

    fn show(&self, stops: &HashMap<StopScope, Stop>, now: u64) {
        self.metrics.show(|source| stops.get(&source).is_some_and(|stop| stop.until_ms > now));
    }

    /// Delays all sends of this replica by `pause`: WeChat answered that the app sends too fast.
    pub fn slow_down(&self, pause: Duration) {
        self.not_before_ms.fetch_max(self.clock.now_ms() + pause.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn wait(&self) -> Duration {
        let not_before = self.not_before_ms.load(Ordering::Relaxed);
        if not_before == 0 {
            Duration::ZERO
        } else {
            Duration::from_millis(not_before.saturating_sub(self.clock.now_ms()))
        }
    }
}
