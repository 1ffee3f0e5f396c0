//! How many single messages were sent: they count for the app's quota and pace, and broadcasts make room for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shared::credential::AppId;
use shared::store::Store;
use tracing::debug;

use crate::clock::Clock;

/// How often what was sent is reported to the other replicas.
const REPORT: Duration = Duration::from_millis(200);

/// Counts the single messages of this replica.
#[derive(Debug, Default)]
pub struct Sends {
    count: AtomicU64,
}

impl Sends {
    /// One more was sent.
    pub fn note(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Reports them to the other replicas, for ever.
    pub async fn report_forever(&self, store: &Store, app: &AppId, clock: &Clock) {
        loop {
            tokio::time::sleep(REPORT).await;
            let count = self.count.swap(0, Ordering::Relaxed);
            if count == 0 {
                continue;
            }
            if let Err(error) = store.count_messages(app, clock.day(), count).await {
                debug!(%app, %error, "sends are counted later");
                self.count.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}
