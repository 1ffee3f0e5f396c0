//! Counts single messages. They count towards the app's quota and rate, and broadcasts slow down for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use store::broadcast::permits::{Api, Budget};

use crate::context::AppContext;

/// Interval at which the counts are reported to the other replicas.
const REPORT: Duration = Duration::from_millis(200);

/// Number of single messages sent by this replica, per API.
#[derive(Debug, Default)]
pub struct Sends {
    template: AtomicU64,
    subscribe: AtomicU64,
}

impl Sends {
    fn count(&self, api: Api) -> &AtomicU64 {
        match api {
            Api::Template => &self.template,
            Api::Subscribe => &self.subscribe,
        }
    }

    /// Counts one sent message.
    pub fn note(&self, api: Api) {
        self.count(api).fetch_add(1, Ordering::Relaxed);
    }

    /// Reports the counts to the other replicas. Never returns.
    pub async fn report_forever(&self, context: &AppContext) {
        let AppContext { app, store, clock, .. } = context;
        let mut reporting = context.metrics.loops.counts.operation();
        loop {
            tokio::time::sleep(REPORT).await;
            for api in [Api::Template, Api::Subscribe] {
                let messages = self.count(api).swap(0, Ordering::Relaxed);
                if messages == 0 {
                    continue;
                }
                let budget = Budget { api, day: clock.day() };
                let counted = store.count_messages(&app.id, budget, messages).await;
                reporting.note(&counted);
                if counted.is_err() {
                    self.count(api).fetch_add(messages, Ordering::Relaxed);
                }
            }
        }
    }
}
