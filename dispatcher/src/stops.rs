//! App stops: which credentials and templates of an app may be used now. WeChat imposes stops, and all replicas share
//! them. This module also holds the pause of this replica after WeChat asked to slow down.
//!
//! A stop expires after some time. Then sends try again: the codes that stop an app spend nothing, so at worst WeChat
//! answers with the same code. Every replica reads the shared stops once a second; a stop that it sets itself applies
//! immediately.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use domain::{AppId, Kind, TemplateId};
use store::Store;
use store::eligibility::Kinds;
use store::stops::{Stop, StopScope};
use tracing::{error, info};

use crate::clock::Clock;
use crate::metrics::StopMetrics;
use crate::wechat::errcode::row_of;

/// Interval at which each replica reads the stops of an app.
pub const REFRESH: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct AppStops {
    app: AppId,
    clock: Clock,
    stops: RwLock<HashMap<StopScope, KnownStop>>,
    not_before_ms: AtomicU64,
    metrics: StopMetrics,
}

#[derive(Debug)]
struct KnownStop {
    stop: Stop,
    /// It is in Redis too. If it disappears there, it was lifted.
    shared: bool,
}

impl AppStops {
    pub fn new(app: AppId, clock: Clock, metrics: StopMetrics) -> Self {
        Self { app, clock, stops: RwLock::default(), not_before_ms: AtomicU64::new(0), metrics }
    }

    /// Returns those kinds of `wanted` that messages of the template may use now. If none may be used, fails with the
    /// stop.
    pub fn usable(&self, wanted: Kinds, template: &TemplateId) -> Result<Kinds, Stop> {
        let (usable, stop) = self.split(wanted, template);
        match stop {
            Some((_, stop)) if usable.is_empty() => Err(stop),
            _ => Ok(usable),
        }
    }

    /// Fails with the stop if messages of the template may not use any kind of `wanted` now.
    pub fn check_all(&self, wanted: Kinds, template: &TemplateId) -> Result<(), (StopScope, Stop)> {
        self.split(wanted, template).1.map_or(Ok(()), Err)
    }

    /// Returns the kinds out of `wanted` that messages of the template may use now, and a stop of one of the others.
    fn split(&self, wanted: Kinds, template: &TemplateId) -> (Kinds, Option<(StopScope, Stop)>) {
        let stops = self.read();
        if stops.is_empty() {
            return (wanted, None);
        }
        let now = self.clock.now_ms();
        let stopped = |scope: StopScope| {
            let known = stops.get(&scope).filter(|known| known.stop.until_ms > now)?;
            Some((scope, known.stop.clone()))
        };
        if let Some(stop) = stopped(StopScope::App).or_else(|| stopped(StopScope::Template(template.clone()))) {
            return (Kinds::NONE, Some(stop));
        }
        let mut first = None;
        let mut is_usable = |kind: &Kind| {
            let stop = stopped(StopScope::Kind(*kind));
            let usable = stop.is_none();
            first = first.take().or(stop);
            usable
        };
        let usable = wanted.iter().filter(|kind| is_usable(kind)).collect();
        (usable, first)
    }

    /// Stops scopes of the app. This applies on this replica immediately, and on other replicas within [`REFRESH`].
    pub async fn stop(&self, store: &Store, scopes: &[StopScope], stop: Stop) {
        // All messages in flight may get the same answer. Only the first one is logged.
        if self.insert(scopes, &stop) {
            let (address, why) = (stop.address.map(tracing::field::display), row_of(stop.errcode).sentence);
            let Stop { until_ms, errcode, rid, .. } = &stop;
            error!(app = %self.app, errcode, rid, ?scopes, until_ms, address, why, "WeChat stopped the app");
        }
        for scope in scopes {
            let stored = store.stop(&self.app, scope, &stop).await;
            self.metrics.sharing.operation().note(&stored);
            if let (Ok(()), Some(known)) = (stored, self.write().get_mut(scope)) {
                known.shared = true;
            }
        }
        self.show();
    }

    /// Returns true if any of the scopes was not stopped before.
    fn insert(&self, scopes: &[StopScope], stop: &Stop) -> bool {
        let now = self.clock.now_ms();
        let mut stops = self.write();
        let mut new = false;
        for scope in scopes {
            let known = KnownStop { stop: stop.clone(), shared: false };
            new |= stops.insert(scope.clone(), known).is_none_or(|before| before.stop.until_ms <= now);
        }
        new
    }

    /// Reads the shared stops: those that other replicas set begin here, and those that were lifted end here.
    pub async fn refresh(&self, store: &Store) -> Result<(), store::Error> {
        let mut lifted: HashSet<StopScope> =
            self.read().iter().filter(|(_, known)| known.shared).map(|(scope, _)| scope.clone()).collect();
        let shared = store.stops(&self.app).await?;
        let now = self.clock.now_ms();
        let mut stops = self.write();
        for (scope, stop) in shared {
            lifted.remove(&scope);
            // A stop that this replica has not stored yet is newer than the stored one.
            if stop.until_ms > now && stops.get(&scope).is_none_or(|known| known.shared) {
                stops.insert(scope, KnownStop { stop, shared: true });
            }
        }
        let before = stops.len();
        stops.retain(|scope, known| known.stop.until_ms > now && !(known.shared && lifted.contains(scope)));
        if stops.len() < before {
            info!(app = %self.app, "a stop is over; sends are allowed again");
        }
        drop(stops);
        self.show();
        Ok(())
    }

    fn show(&self) {
        let (stops, now) = (self.read(), self.clock.now_ms());
        self.metrics.show(stops.iter().filter(|(_, known)| known.stop.until_ms > now).map(|(scope, _)| scope));
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<StopScope, KnownStop>> {
        self.stops.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<StopScope, KnownStop>> {
        self.stops.write().unwrap_or_else(PoisonError::into_inner)
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
