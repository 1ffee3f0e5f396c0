//! Settles expired leases that their owners did not settle. All replicas do so; the script makes this safe.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use store::Error;
use store::leases::Reaped;
use tracing::{debug, warn};

use crate::context::AppContext;

/// Maximum number of leases per script call.
const PAGE: u32 = 50;

/// Number of buckets processed concurrently.
const AT_ONCE: usize = 16;

/// Processes all buckets of an app once every `interval`. Never returns.
pub async fn reap_forever(context: Arc<AppContext>, interval: Duration) {
    let mut reaping = context.metrics.loops.reaps.operation();
    loop {
        tokio::time::sleep(interval).await;
        reaping.note(&reap(&context).await);
    }
}

/// Processes all buckets of an app once. Stops at an outage of Redis.
async fn reap(context: &AppContext) -> Result<(), Error> {
    let (store, app, terms) = (&context.store, &context.app.id, &context.limits.terms);
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
            // The error concerns only this bucket.
            Err(error) if error.is_lasting() => debug!(%app, %error, "expired leases of a bucket cannot be settled"),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    // One line for all buckets: after an outage of Redis, each may have some.
    if all != Reaped::default() {
        let Reaped { pinned, suspect, spent } = all;
        warn!(%app, pinned, suspect, spent, "settled expired leases that their owners did not settle");
    }
    result
}
