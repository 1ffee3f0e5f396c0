//! App stops: which credentials and templates of an app may be used now. WeChat imposes stops, and all replicas share
//! them. This module also holds the pause of this replica after WeChat asked to slow down.
//!
//! A stop expires after some time. Then sends try again: the codes that stop an app spend nothing, so at worst WeChat
//! answers with the same code. Every replica reads the shared stops once a second; a stop that it sets itself applies
//! immediately. A stop that disappears from Redis was lifted.

use std::collections::HashMap;
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
use crate::wechat::errcode::{is_clearable, row_of};
use crate::wechat::message::Delivery;

/// Interval at which each replica reads the stops of an app.
pub const REFRESH: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct AppStops {
    app: AppId,
    clock: Clock,
    stops: RwLock<HashMap<StopScope, KnownStop>>,
    /// Number of reads of the shared stops that have begun, and the number of the last one that was applied. No lock is
    /// held across a read: it could be waited for by the task that should finish the read.
    begun: AtomicU64,
    applied: AtomicU64,
    not_before_ms: AtomicU64,
    metrics: StopMetrics,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct KnownStop {
    stop: Stop,
    sharing: Sharing,
}

/// Whether a stop is in Redis too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// It is being stored.
    Storing,
    /// Redis did not answer. It is stored with the next refresh.
    Failed,
    /// It was stored.
    Stored,
}

/// Whether it is a stop for the daily quota of a generation that ends as soon as WeChat reports a remainder.
pub fn ends_with_remainder(scope: &StopScope, stop: &Stop, delivery: Delivery) -> bool {
    is_clearable(stop.errcode) && matches!(scope, StopScope::Kind(kind) if Delivery::of(*kind) == delivery)
}

impl AppStops {
    pub fn new(app: AppId, clock: Clock, metrics: StopMetrics) -> Self {
        let (begun, applied) = (AtomicU64::default(), AtomicU64::default());
        Self { app, clock, stops: RwLock::default(), begun, applied, not_before_ms: AtomicU64::new(0), metrics }
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
            // Another message may have stopped the scope again meanwhile, and stores that stop itself.
            if let Some(known) = self.write().get_mut(scope).filter(|known| known.stop == stop) {
                known.sharing = if stored.is_ok() { Sharing::Stored } else { Sharing::Failed };
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
            let known = KnownStop { stop: stop.clone(), sharing: Sharing::Storing };
            new |= stops.insert(scope.clone(), known).is_none_or(|before| before.stop.until_ms <= now);
        }
        new
    }

    /// Reads the shared stops: those that other replicas set begin here, and those that were lifted end here.
    pub async fn refresh(&self, store: &Store) -> Result<(), store::Error> {
        let begun = self.begin_read();
        let before = self.read().clone();
        let mut shared = store.stops(&self.app).await?;
        let now = self.clock.now_ms();
        shared.retain(|_, stop| stop.until_ms > now);
        for (scope, KnownStop { stop, sharing }) in &before {
            if *sharing == Sharing::Failed && stop.until_ms > now && !shared.contains_key(scope) {
                store.stop(&self.app, scope, stop).await?;
                shared.insert(scope.clone(), stop.clone());
            }
        }
        let mut stops = self.write();
        if self.applied.fetch_max(begun, Ordering::Relaxed) > begun {
            // The known stops are from a later read, or were lifted since.
            return Ok(());
        }
        let count = stops.len();
        stops.retain(|scope, known| {
            // A stop that was stored only after the shared ones were read is missing among them, too.
            let was_stored = known.sharing == Sharing::Stored && before.get(scope) == Some(known);
            known.stop.until_ms > now && (shared.contains_key(scope) || !was_stored)
        });
        if stops.len() < count {
            info!(app = %self.app, "a stop is over; sends are allowed again");
        }
        for (scope, stop) in shared {
            // A stop that is being stored is newer than the stored one.
            if stops.get(&scope).is_none_or(|known| known.sharing != Sharing::Storing) {
                stops.insert(scope, KnownStop { stop, sharing: Sharing::Stored });
            }
        }
        drop(stops);
        self.show();
        Ok(())
    }

    fn begin_read(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Lifts the stops that `which` selects, and returns them. This applies on this replica immediately, and on other
    /// replicas within [`REFRESH`].
    pub async fn lift(
        &self,
        store: &Store,
        which: impl Fn(&StopScope, &Stop) -> bool,
    ) -> Result<Vec<(StopScope, Stop)>, store::Error> {
        self.refresh(store).await?;
        let mut lifted = self.in_force();
        lifted.retain(|(scope, stop)| which(scope, stop));
        if lifted.is_empty() {
            return Ok(lifted);
        }
        let scopes: Vec<_> = lifted.iter().map(|(scope, _)| scope.clone()).collect();
        store.lift_stops(&self.app, &scopes).await?;
        let mut stops = self.write();
        // A read that began earlier may have found what is lifted now.
        self.applied.fetch_max(self.begin_read(), Ordering::Relaxed);
        stops.retain(|scope, _| !scopes.contains(scope));
        drop(stops);
        self.show();
        Ok(lifted)
    }

    /// The stops in force, with those of other replicas as of the last [`Self::refresh`], in the order of their scopes.
    pub fn in_force(&self) -> Vec<(StopScope, Stop)> {
        let (stops, now) = (self.read(), self.clock.now_ms());
        let in_force = stops.iter().filter(|(_, known)| known.stop.until_ms > now);
        let mut in_force: Vec<_> = in_force.map(|(scope, known)| (scope.clone(), known.stop.clone())).collect();
        in_force.sort_by(|(one, _), (other, _)| one.cmp(other));
        in_force
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
