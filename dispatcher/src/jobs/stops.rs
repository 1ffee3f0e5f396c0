//! Reads the app stops that other replicas set.

use std::sync::Arc;

use crate::context::AppContext;
use crate::stops::REFRESH;

/// Never returns.
pub async fn follow(context: Arc<AppContext>) {
    let mut reading = context.metrics.loops.stops.operation();
    loop {
        reading.note(&context.stops.refresh(&context.store).await);
        tokio::time::sleep(REFRESH).await;
    }
}
