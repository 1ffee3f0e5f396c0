//! State that the sends and the broadcasts of one app share.

use std::sync::Arc;

use store::Store;

use crate::app::App;
use crate::clock::Clock;
use crate::metrics::AppMetrics;
use crate::send::count::SendCounts;
use crate::settings::{Limits, Settings};
use crate::stops::AppStops;
use crate::wechat::client::Client;
use crate::wechat::error::ClientError;
use crate::wechat::token::Tokens;

#[derive(Clone)]
pub struct AppContext {
    pub app: Arc<App>,
    pub store: Store,
    pub client: Client,
    pub tokens: Tokens,
    pub stops: Arc<AppStops>,
    pub counts: Arc<SendCounts>,
    pub clock: Clock,
    pub limits: Limits,
    pub metrics: AppMetrics,
}

impl AppContext {
    /// Opens no connection yet.
    pub fn new(app: &Arc<App>, store: Store, settings: &Settings, metrics: AppMetrics) -> Result<Self, ClientError> {
        let client = Client::new(Arc::clone(app), Some(metrics.wechat.clone()))?;
        Ok(Self {
            app: Arc::clone(app),
            tokens: Tokens::new(app.id.clone(), client.clone(), store.clone())?,
            stops: Arc::new(AppStops::new(app.id.clone(), settings.clock.clone(), metrics.stops.clone())),
            counts: Arc::default(),
            store,
            client,
            clock: settings.clock.clone(),
            limits: settings.limits.clone(),
            metrics,
        })
    }

    /// The context of the app's broadcasts, with connections of its own to Redis and to WeChat.
    pub fn for_broadcasts(&self, bulk_store: Store) -> Result<Self, ClientError> {
        let client = Client::new(Arc::clone(&self.app), Some(self.metrics.wechat.clone()))?.untraced();
        Ok(Self { store: bulk_store, client, ..self.clone() })
    }
}
