//! How many broadcasts are paused, and why: for the metrics. A paused one is on no list of what there is to do.

use std::collections::HashSet;
use std::time::Duration;

use shared::credential::AppId;
use shared::store::broadcast::BroadcastId;
use shared::store::{Error, Store};

use crate::metrics::PauseMetrics;

/// How often they are counted.
const LOOK: Duration = Duration::from_secs(5);

/// How many broadcasts are looked at, the newest first: what is paused behind so many others is forgotten.
const MOST: usize = 1000;

/// Keeps the metrics of an app in sight of what all replicas and callers paused.
pub async fn follow(store: Store, app: AppId, metrics: PauseMetrics) {
    let mut over = HashSet::new();
    loop {
        match paused(&store, &app, &mut over).await {
            Ok(reasons) => metrics.show(reasons.iter().map(String::as_str)),
            Err(error) => tracing::debug!(%app, %error, "what is paused is not known"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The reason of each paused broadcast. Those that are over stay so, and are looked at once.
async fn paused(store: &Store, app: &AppId, over: &mut HashSet<BroadcastId>) -> Result<Vec<String>, Error> {
    let ids = store.newest_broadcasts(app, MOST).await?;
    let kept: HashSet<_> = ids.iter().collect();
    over.retain(|id| kept.contains(id));
    let mut reasons = Vec::new();
    for id in ids {
        if over.contains(&id) {
            continue;
        }
        match store.broadcast_pause(app, &id).await? {
            Some((state, _)) if state.is_final() => _ = over.insert(id),
            Some((_, reason)) => reasons.extend(reason),
            None => {}
        }
    }
    Ok(reasons)
}
