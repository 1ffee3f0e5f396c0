//! Background jobs: each job repeats until the dispatcher stops.
//!
//! - [`reaper`]: settles leases that expired
//! - [`gauges`]: updates the gauges of the quota and of broadcasts
//! - [`quota_stops`]: ends stops for the daily quota when WeChat reports a remainder
//! - [`send_counts`]: reports the single messages of this replica

mod gauges;
mod quota_stops;
mod reaper;
mod send_counts;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::JoinSet;

use crate::context::AppContext;
use crate::stops::REFRESH;

impl AppContext {
    /// Spawns the jobs of the app. They begin when Redis is known to be usable.
    pub fn spawn_jobs(self: &Arc<Self>, jobs: &mut JoinSet<()>, reap_interval: Duration, metrics_enabled: bool) {
        let context = || Arc::clone(self);
        let mut work = vec![
            self.tokens.clone().renew_forever().boxed(),
            reaper::reap_forever(context(), reap_interval).boxed(),
            follow_stops(context()).boxed(),
            quota_stops::await_quota(context()).boxed(),
            send_counts::report_forever(context()).boxed(),
        ];
        if metrics_enabled {
            work.extend([gauges::follow_quota(context()).boxed(), gauges::follow_broadcasts(context()).boxed()]);
        }
        for job in work {
            let store = self.store.clone();
            jobs.spawn(async move {
                store.prepared().await;
                job.await;
            });
        }
    }
}

/// Reads the app stops that other replicas set.
async fn follow_stops(context: Arc<AppContext>) {
    let mut reading = context.metrics.loops.stops.operation();
    loop {
        reading.note(&context.stops.refresh(&context.store).await);
        tokio::time::sleep(REFRESH).await;
    }
}
