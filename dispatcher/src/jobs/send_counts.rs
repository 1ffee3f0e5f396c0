//! Reports the single messages of this replica to the other replicas.

use std::sync::Arc;
use std::time::Duration;

use store::broadcast::permits::Budget;

use crate::context::AppContext;
use crate::wechat::message::Delivery;

const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Never returns.
pub async fn report_forever(context: Arc<AppContext>) {
    let AppContext { app, store, clock, counts, metrics, .. } = &*context;
    let mut reporting = metrics.loops.counts.operation();
    let mut day = clock.day();
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        for delivery in Delivery::ALL {
            let messages = counts.take(delivery);
            if messages == 0 {
                continue;
            }
            let counted = store.count_messages(&app.id, Budget { api: delivery.api(), day }, messages).await;
            reporting.note(&counted);
            if counted.is_err() {
                counts.add(delivery, messages);
            }
        }
        // Messages count on the day on which their interval began: those of the last moments of a day must not take
        // anything from the next day's quota.
        day = clock.day();
    }
}
