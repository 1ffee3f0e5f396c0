//! The sweeper: visits every bucket of every app once per sweep period, deletes expired credentials, and updates the
//! counts for GetStock.
//!
//! Every replica runs a sweeper. A bucket is swept by the replica that claims it first. An interrupted sweep loses
//! nothing: each of its steps is atomic, and the bucket is visited again in the next period.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use domain::AppId;
use server::telemetry::outage::Outages;
use store::keys::Bucket;
use store::{Error, Store};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use crate::clock::unix_time;

/// Pause between two pages of a bucket, so that Redis can serve calls in between.
const PAGE_PAUSE: Duration = Duration::from_millis(2);

/// Pause after a failure of Redis.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

pub async fn sweep(store: Store, apps: Arc<[AppId]>, period: Duration, outages: Outages) -> Infallible {
    let buckets: Vec<(&AppId, Bucket)> =
        apps.iter().flat_map(|app| store.buckets().map(move |bucket| (app, bucket))).collect();
    let step = period / u32::try_from(buckets.len()).unwrap_or(u32::MAX).max(1);
    store.prepared().await;
    let mut sweeping = outages.outage("sweep", "sweep interrupted: waiting for Redis", "sweep resumed").operation();
    // A failure that an operator must repair is logged once, and does not stop the sweep of the other buckets.
    let mut unswept = HashSet::new();
    loop {
        let start = Instant::now();
        let mut swept = 0_usize;
        for (turn, (app, bucket)) in (0..).zip(&buckets) {
            sleep_until(start + step * turn).await;
            let result = sweep_one(&store, app, *bucket, period).await;
            match &result {
                Err(error) if error.is_lasting() => {
                    if unswept.insert(turn) {
                        warn!(%app, bucket = bucket.0, %error, "cannot sweep a bucket");
                    }
                    continue;
                }
                Err(_) => {}
                Ok(_) => _ = unswept.remove(&turn),
            }
            sweeping.note(&result);
            match result {
                Ok(mine) => swept += usize::from(mine),
                Err(_) => sleep(ERROR_PAUSE).await,
            }
        }
        debug!(swept, of = buckets.len(), "swept");
        sleep_until(start + period).await;
    }
}

/// Sweeps one bucket. Returns false if another replica has swept it recently.
async fn sweep_one(store: &Store, app: &AppId, bucket: Bucket, period: Duration) -> Result<bool, Error> {
    // The claim is shorter than the period. A claim that ended just after the next visit would make that visit skip the
    // bucket.
    if !store.claim_sweep(app, bucket, period * 3 / 4).await? {
        return Ok(false);
    }
    store.sweep(app, bucket, unix_time(), PAGE_PAUSE).await?;
    Ok(true)
}
