//! Keeps the app's numbers of messages of the day true: WeChat is asked now and then.

use std::time::Duration;

use shared::store::broadcast::permits::Budget;
use tracing::{debug, info};

use super::Ground;
use crate::wechat::message::Delivery;

/// How often WeChat is asked, over all replicas, while there are broadcasts.
const ASK: Duration = Duration::from_secs(300);

/// The longest time that a broadcast waits for WeChat's answer before it starts.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks WeChat how much of the day's quota is used, unless a replica did so not long ago. Where WeChat does not tell, the
/// count goes on from what is known.
pub async fn ask(ground: &Ground, delivery: Delivery) {
    if tokio::time::timeout(PATIENCE, try_to_ask(ground, delivery)).await.is_err() {
        debug!(app = %ground.app.id, "WeChat takes its time to tell the quota");
    }
}

async fn try_to_ask(ground: &Ground, delivery: Delivery) {
    let Ground { app, store, client, tokens, clock, .. } = ground;
    if !store.may_ask_quota(&app.id, delivery.api(), ASK).await.unwrap_or(false) {
        return;
    }
    let Ok(token) = tokens.get().await else { return };
    match client.quota(delivery, token.value()).await {
        Ok(quota) => {
            let budget = Budget { api: delivery.api(), day: clock.day() };
            info!(app = %app.id, limit = quota.daily_limit, used = quota.used, "the day's quota, by WeChat");
            if let Err(error) = store.set_quota(&app.id, budget, quota.daily_limit, quota.used).await {
                debug!(app = %app.id, %error, "the quota is asked for later");
            }
        }
        Err(error) => debug!(app = %app.id, %error, "WeChat does not tell the quota"),
    }
}
