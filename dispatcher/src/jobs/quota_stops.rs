//! Ends the stops for a used-up daily quota early. WeChat reports a remainder before midnight if an operator has called
//! `clear_quota`.

use std::sync::Arc;

use crate::broadcast::quota;
use crate::context::AppContext;
use crate::stops::ends_with_remainder;
use crate::wechat::message::Delivery;

/// While there is such a stop, asks WeChat once per interval, over all replicas. If WeChat does not report the quota,
/// the stop lasts until midnight. Never returns.
pub async fn await_quota(context: Arc<AppContext>) {
    let mut lifting = context.metrics.loops.stops.operation();
    loop {
        tokio::time::sleep(context.limits.await_quota).await;
        for delivery in Delivery::ALL {
            lifting.note(&end_stops(&context, delivery).await);
        }
    }
}

async fn end_stops(context: &AppContext, delivery: Delivery) -> Result<(), store::Error> {
    let AppContext { app, store, stops, limits, .. } = context;
    if !stops.in_force().iter().any(|(scope, stop)| ends_with_remainder(scope, stop, delivery)) {
        return Ok(());
    }
    if store.may_await_quota(&app.id, delivery.api(), limits.await_quota).await?
        && quota::read(context, delivery).await.is_some_and(|quota| quota.remain > 0)
    {
        let lifted = stops.lift(store, |scope, stop| ends_with_remainder(scope, stop, delivery)).await?;
        context.resume_after(&lifted).await;
    }
    Ok(())
}
