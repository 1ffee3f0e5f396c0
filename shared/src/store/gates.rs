//! What WeChat refuses of an app for now, shared by all replicas: a stopped app is left alone until the stop is over.

use std::collections::HashMap;

use deadpool_redis::redis;
use serde::{Deserialize, Serialize};

use super::{Error, Store, keys};
use crate::credential::{AppId, Kind};

/// What is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Everything of the app.
    App,
    /// One kind of credential.
    Kind(Kind),
}

impl Source {
    /// All there are, with their names.
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

/// Why something is stopped, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// When it may be tried again, in milliseconds since 1970.
    pub until_ms: u64,
    /// WeChat's errcode that caused it.
    pub errcode: i32,
    /// The request id WeChat gave with it.
    pub rid: String,
}

impl Store {
    /// All stops of an app, also those that are over.
    pub async fn stops(&self, app: &AppId) -> Result<HashMap<Source, Stop>, Error> {
        let fields: HashMap<String, String> = self.redis()?.run(redis::cmd("HGETALL").arg(keys::gates(app))).await?;
        let source = |name: &str| Source::ALL.iter().find(|(_, known)| *known == name).map(|(source, _)| *source);
        Ok(fields.iter().filter_map(|(name, stop)| Some((source(name)?, serde_json::from_str(stop).ok()?))).collect())
    }

    /// Stops a source of an app; every replica hears of it. The record goes by itself a day after the stop at the latest.
    pub async fn stop(&self, app: &AppId, source: Source, stop: &Stop) -> Result<(), Error> {
        let key = keys::gates(app);
        let text = serde_json::to_string(stop)?;
        self.redis()?.run::<()>(redis::cmd("HSET").arg(&key).arg(source.name()).arg(text)).await?;
        // The longest stop lasts until the next day, so two days outlive every field of the hash.
        self.redis()?.run(redis::cmd("EXPIRE").arg(&key).arg(2 * 24 * 3600)).await
    }
}
