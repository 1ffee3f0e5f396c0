//! App stops, shared by all replicas. A stop records that WeChat currently refuses messages of an app: all of them, or
//! those with one kind of credential. Such messages are not sent until the stop is over.

use std::collections::HashMap;

use deadpool_redis::redis;
use serde::{Deserialize, Serialize};

use super::retention::KEEP_STOPS;
use super::{Error, Store, keys};
use domain::{AppId, Kind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StopScope {
    /// All messages of the app.
    App,
    /// Messages with one kind of credential.
    Kind(Kind),
}

impl StopScope {
    pub const ALL: [(Self, &str); 4] = [
        (Self::App, "app"),
        (Self::Kind(Kind::FormId), "form_id"),
        (Self::Kind(Kind::PrepayId), "prepay_id"),
        (Self::Kind(Kind::Grant), "grant"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(source, _)| *source == self).map_or("app", |(_, name)| name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// When sending may be retried, in milliseconds since 1970.
    pub until_ms: u64,
    /// WeChat's errcode that caused the stop.
    pub errcode: i32,
    /// WeChat's request id of that answer.
    pub rid: String,
}

impl Store {
    /// All stops of an app, including those that are over.
    pub async fn stops(&self, app: &AppId) -> Result<HashMap<StopScope, Stop>, Error> {
        let fields: HashMap<String, String> = self.redis()?.run(redis::cmd("HGETALL").arg(keys::stops(app))).await?;
        let source = |name: &str| StopScope::ALL.iter().find(|(_, known)| *known == name).map(|(source, _)| *source);
        Ok(fields.iter().filter_map(|(name, stop)| Some((source(name)?, serde_json::from_str(stop).ok()?))).collect())
    }

    /// Stores a stop of an app, which all replicas read. The record expires at the latest a day after the stop ends.
    pub async fn stop(&self, app: &AppId, source: StopScope, stop: &Stop) -> Result<(), Error> {
        let key = keys::stops(app);
        let text = serde_json::to_string(stop)?;
        self.redis()?.run::<()>(redis::cmd("HSET").arg(&key).arg(source.name()).arg(text)).await?;
        self.redis()?.run(redis::cmd("EXPIRE").arg(&key).arg(KEEP_STOPS.as_secs())).await
    }
}
