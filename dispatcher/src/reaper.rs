//! Looks after leases whose owner did not come back. Every replica does it; the script makes that safe.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use shared::credential::AppId;
use shared::store::Store;
use shared::store::leases::{LeaseTerms, Reaped};
use tracing::{debug, warn};

/// How many leases one call looks at.
const PAGE: u32 = 50;

/// How many buckets are looked after at once.
const AT_ONCE: usize = 16;

/// Goes over all buckets of an app, once every `interval`. Never returns.
pub async fn reap_forever(store: Store, app: AppId, terms: LeaseTerms, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        reap(&store, &app, &terms).await;
    }
}

/// Goes over all buckets of an app once.
pub async fn reap(store: &Store, app: &AppId, terms: &LeaseTerms) {
    let mut buckets =
        stream::iter(store.buckets()).map(|bucket| store.reap(app, bucket, terms, PAGE)).buffer_unordered(AT_ONCE);
    while let Some(reaped) = buckets.next().await {
        match reaped {
            Ok(reaped) if reaped == Reaped::default() => {}
            Ok(Reaped { pinned, suspect, spent, expired }) => {
                warn!(%app, pinned, suspect, spent, expired, "leases were left behind");
            }
            Err(error) => {
                debug!(%app, %error, "the reaper waits for Redis");
                return;
            }
        }
    }
}
