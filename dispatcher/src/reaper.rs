//! Looks after leases whose owner did not come back. Every replica does it; the script makes that safe.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use shared::credential::AppId;
use shared::outage::Operation;
use shared::store::leases::{LeaseTerms, Reaped};
use shared::store::{Error, Store};
use tracing::{debug, warn};

/// How many leases one call looks at.
const PAGE: u32 = 50;

/// How many buckets are looked after at once.
const AT_ONCE: usize = 16;

/// Goes over all buckets of an app, once every `interval`. Never returns.
pub async fn reap_forever(store: Store, app: AppId, terms: LeaseTerms, interval: Duration, mut reaping: Operation) {
    loop {
        tokio::time::sleep(interval).await;
        reaping.note(&reap(&store, &app, &terms).await);
    }
}

/// Goes over all buckets of an app once, or until one fails.
async fn reap(store: &Store, app: &AppId, terms: &LeaseTerms) -> Result<(), Error> {
    let mut buckets =
        stream::iter(store.buckets()).map(|bucket| store.reap(app, bucket, terms, PAGE)).buffer_unordered(AT_ONCE);
    let (mut all, mut result) = (Reaped::default(), Ok(()));
    while let Some(reaped) = buckets.next().await {
        match reaped {
            Ok(Reaped { pinned, suspect, spent }) => {
                all.pinned += pinned;
                all.suspect += suspect;
                all.spent += spent;
            }
            // The other buckets are none the worse for it.
            Err(error) if error.is_lasting() => debug!(%app, %error, "leases of a bucket are not looked after"),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    // One line for all buckets: after an outage of Redis there may be some in each.
    if all != Reaped::default() {
        let Reaped { pinned, suspect, spent } = all;
        warn!(%app, pinned, suspect, spent, "expired leases were settled; their owners did not");
    }
    result
}
