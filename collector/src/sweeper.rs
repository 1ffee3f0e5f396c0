//! Walks over every bucket of every app within the sweep period, drops what has expired and keeps the count for GetStock.
//!
//! Every replica walks; a bucket is swept by whoever claims it first. An interrupted sweep harms nothing: each of its
//! steps is whole, and the bucket comes round again.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use shared::credential::AppId;
use shared::outage::Outages;
use shared::store::keys::Bucket;
use shared::store::{Error, Store};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use crate::service::unix_time;

/// Between two pages of a bucket, so that calls come first in Redis.
const PAUSE: Duration = Duration::from_millis(2);

/// How long to leave Redis alone after it failed.
const RESPITE: Duration = Duration::from_secs(1);

/// Sweeps until it is dropped.
pub async fn sweep(store: Store, apps: Arc<[AppId]>, period: Duration, outages: Outages) -> Infallible {
    let buckets: Vec<(&AppId, Bucket)> =
        apps.iter().flat_map(|app| store.buckets().map(move |bucket| (app, bucket))).collect();
    let step = period / u32::try_from(buckets.len()).unwrap_or(u32::MAX).max(1);
    store.prepared().await;
    let mut sweeping = outages.outage("sweep", "the sweep waits for Redis", "the sweep goes on").operation();
    // What somebody has to repair is logged once, and does not keep the sweep from the other buckets.
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
                        warn!(%app, bucket = bucket.0, %error, "a bucket is not swept");
                    }
                    continue;
                }
                Err(_) => {}
                Ok(_) => _ = unswept.remove(&turn),
            }
            sweeping.note(&result);
            match result {
                Ok(mine) => swept += usize::from(mine),
                Err(_) => sleep(RESPITE).await,
            }
        }
        debug!(swept, of = buckets.len(), "swept");
        sleep_until(start + period).await;
    }
}

/// Sweeps one bucket; false when another replica did so not long ago.
async fn sweep_one(store: &Store, app: &AppId, bucket: Bucket, period: Duration) -> Result<bool, Error> {
    // Claimed for less than the period: a claim that ends a moment after the next turn would make it miss that one.
    if !store.claim_sweep(app, bucket, period * 3 / 4).await? {
        return Ok(false);
    }
    store.sweep(app, bucket, unix_time(), PAUSE).await?;
    Ok(true)
}
