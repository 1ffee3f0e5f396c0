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
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        for delivery in Delivery::ALL {
            let messages = counts.take(delivery);
            if messages == 0 {
                continue;
            }
            let budget = Budget { api: delivery.api(), day: clock.day() };
            let counted = store.count_messages(&app.id, budget, messages).await;
            reporting.note(&counted);
            if counted.is_err() {
                counts.add(delivery, messages);
            }
        }
    }
}
