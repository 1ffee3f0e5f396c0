//! Keeps the app's daily message count equal to WeChat's, by requesting WeChat's numbers periodically.

use std::sync::Arc;
use std::time::Duration;

use store::broadcast::permits::Budget;
use tracing::{debug, info};

use crate::context::AppContext;
use crate::wechat::message::Delivery;
use crate::wechat::reply::Quota;

/// Interval at which WeChat is asked, over all replicas, while there are broadcasts.
const INTERVAL: Duration = Duration::from_secs(300);

/// Interval at which WeChat is asked again, over all replicas, while the number is not exact.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(2);

/// Longest time that a broadcast waits for WeChat's answer before it starts.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks WeChat how much of the daily quota is used, unless a replica did so recently. If WeChat does not answer,
/// counting continues from the known numbers.
pub async fn ask(context: &Arc<AppContext>, delivery: Delivery) {
    // In a task of its own: a late answer is useful too, and WeChat is not asked again soon.
    let asking = tokio::spawn({
        let context = Arc::clone(context);
        async move {
            if context.store.may_ask_quota(&context.app.id, delivery.api(), INTERVAL).await.unwrap_or(false) {
                update(&context, delivery).await;
            }
        }
    });
    if tokio::time::timeout(TIMEOUT, asking).await.is_err() {
        debug!(app = %context.app.id, "WeChat has not answered with the quota yet");
    }
}

/// Asks WeChat again if the daily quota seems used up and the number is not exact because messages were in flight when
/// WeChat reported it. Returns false if there is no new number.
pub async fn recount(context: &AppContext, delivery: Delivery) -> bool {
    let turn = context.store.may_recount_quota(&context.app.id, delivery.api(), RECOUNT_INTERVAL).await;
    if turn.unwrap_or(false) {
        return renew(context, delivery).await;
    }
    // Another replica asks.
    tokio::time::sleep(RECOUNT_INTERVAL / 10).await;
    true
}

/// Asks WeChat now, however recently it was asked. Returns false if there is no new number in time.
pub async fn renew(context: &AppContext, delivery: Delivery) -> bool {
    tokio::time::timeout(TIMEOUT, update(context, delivery)).await.unwrap_or(false)
}

/// Stores WeChat's current numbers for all replicas. Returns false if there are none.
async fn update(context: &AppContext, delivery: Delivery) -> bool {
    let AppContext { app, store, clock, .. } = context;
    let budget = Budget { api: delivery.api(), day: clock.day() };
    let Ok(ended) = store.ended_messages(&app.id, budget).await else { return false };
    let Some(quota) = read(context, delivery).await else { return false };
    info!(app = %app.id, limit = quota.daily_limit, used = quota.used, "WeChat reported the daily quota");
    let set = store.set_quota(&app.id, budget, quota.daily_limit, quota.used, ended).await;
    if let Err(error) = &set {
        debug!(app = %app.id, %error, "the quota could not be stored; it is requested again later");
    }
    set.is_ok()
}

/// WeChat's current numbers; `None` if it gives none.
pub async fn read(context: &AppContext, delivery: Delivery) -> Option<Quota> {
    let token = context.tokens.get().await.ok()?;
    let quota = context.client.quota(delivery, token.value()).await;
    let outage = context.metrics.quota_outage(delivery);
    match &quota {
        Ok(_) => _ = outage.succeeded(),
        Err(error) => outage.failed(error),
    }
    quota.ok()
}
