//! Counts single messages. They count towards the app's quota and rate, and broadcasts slow down for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use store::broadcast::permits::Budget;

use crate::context::AppContext;
use crate::wechat::message::Delivery;

/// Interval at which the counts are reported to the other replicas.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Number of single messages that this replica sent and did not report yet, by delivery.
#[derive(Debug, Default)]
pub struct SendCounts([AtomicU64; 2]);

impl SendCounts {
    pub fn add(&self, delivery: Delivery) {
        self.0[delivery as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Reports the counts to the other replicas. Never returns.
pub async fn report_forever(context: Arc<AppContext>) {
    let AppContext { app, store, clock, counts, metrics, .. } = &*context;
    let mut reporting = metrics.loops.counts.operation();
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        for delivery in Delivery::ALL {
            let count = &counts.0[delivery as usize];
            let messages = count.swap(0, Ordering::Relaxed);
            if messages == 0 {
                continue;
            }
            let budget = Budget { api: delivery.api(), day: clock.day() };
            let counted = store.count_messages(&app.id, budget, messages).await;
            reporting.note(&counted);
            if counted.is_err() {
                count.fetch_add(messages, Ordering::Relaxed);
            }
        }
    }
}
