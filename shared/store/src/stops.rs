//! App stops, shared by all replicas. A stop records that WeChat currently refuses messages of an app: all of them,
//! those with one kind of credential, or those of one template. Such messages are not sent until the stop is over.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use deadpool_redis::redis;
use serde::{Deserialize, Serialize};

use super::retention::KEEP_STOPS;
use super::{Error, Store, keys};
use domain::{AppId, Kind, TemplateId};

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StopScope {
    /// All messages of the app.
    App,
    /// Messages with one kind of credential.
    Kind(Kind),
    /// Messages of one template.
    Template(TemplateId),
}

const TEMPLATE: &str = "template:";

impl StopScope {
    /// The scopes other than templates, and their names.
    pub const NAMED: [(Self, &str); 4] = [
        (Self::App, "app"),
        (Self::Kind(Kind::FormId), "form_id"),
        (Self::Kind(Kind::PrepayId), "prepay_id"),
        (Self::Kind(Kind::Grant), "grant"),
    ];

    /// The stored form. [`Self::parse`] is the inverse.
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            Self::App => "app".into(),
            Self::Kind(kind) => kind.name().into(),
            Self::Template(template) => format!("{TEMPLATE}{}", template.as_str()).into(),
        }
    }

    /// `None` for a scope that only another release knows.
    pub fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix(TEMPLATE) {
            Some(template) => TemplateId::parse(template).ok().map(Self::Template),
            None => Self::NAMED.into_iter().find(|(_, known)| *known == name).map(|(scope, _)| scope),
        }
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
    /// The IP address of the dispatcher as WeChat saw it, if the stop is about this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

impl Store {
    /// All stops of an app, including those that are over.
    pub async fn stops(&self, app: &AppId) -> Result<HashMap<StopScope, Stop>, Error> {
        let fields: HashMap<String, String> = self.redis()?.run(redis::cmd("HGETALL").arg(keys::stops(app))).await?;
        let known = fields.iter();
        Ok(known.filter_map(|(name, stop)| Some((StopScope::parse(name)?, serde_json::from_str(stop).ok()?))).collect())
    }

    /// Stores a stop of an app, which all replicas read. The record expires at the latest a day after the stop ends.
    pub async fn stop(&self, app: &AppId, scope: &StopScope, stop: &Stop) -> Result<(), Error> {
        let key = keys::stops(app);
        let text = serde_json::to_string(stop)?;
        self.redis()?.run::<()>(redis::cmd("HSET").arg(&key).arg(&*scope.name()).arg(text)).await?;
        self.redis()?.run(redis::cmd("EXPIRE").arg(&key).arg(KEEP_STOPS.as_secs())).await
    }

    /// Deletes stops of an app, all of them or, if Redis does not answer, none. `scopes` must not be empty.
    pub async fn lift_stops(&self, app: &AppId, scopes: &[StopScope]) -> Result<(), Error> {
        let mut command = redis::cmd("HDEL");
        command.arg(keys::stops(app));
        scopes.iter().for_each(|scope| _ = command.arg(&*scope.name()));
        self.redis()?.run::<u64>(&command).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_is_read_back_from_its_name() {
        let template = StopScope::Template(TemplateId::parse("app").unwrap());
        for scope in StopScope::NAMED.into_iter().map(|(scope, _)| scope).chain([template]) {
            assert_eq!(StopScope::parse(&scope.name()), Some(scope));
        }
        assert_eq!(StopScope::parse("of a newer release"), None);
    }
}
