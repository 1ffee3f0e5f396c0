//! The message and the options of a broadcast, as stored in Redis.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use store::broadcast::audience::Choice;
use store::eligibility::Kinds;

use crate::app::App;
use crate::wechat::message::{Delivery, Message, Value};

/// Parameters of a broadcast, without its audience.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub name: String,
    pub message: Arc<Message>,
    /// Messages per second over all replicas; 0 for as many as the app's limit permits.
    pub rate: u32,
    /// Users who received a message within this time are skipped; whole seconds.
    pub min_interval: Duration,
    /// If the outcome is unknown, send again: the caller prefers a duplicate over a lost message.
    pub retry_unknown: bool,
    /// Texts that are too long are cut before they are stored, also those of users who are added later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fit: bool,
    /// Trace of the call that created the broadcast, if there was one: see [`server::telemetry::traces::link`]. Not a parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_by: Option<String>,
}

pub type OwnData = BTreeMap<String, Value>;

impl Spec {
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and maps of strings always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, store::Error> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// How users are selected for it.
    pub fn choice(&self, app: &App) -> Choice {
        let kinds = match self.message.delivery {
            Delivery::FormId => app.broadcast_kinds,
            Delivery::Subscription => Kinds::GRANTS,
        };
        Choice { wanted: self.message.eligibility(kinds), min_interval: self.min_interval.as_secs() as u32 }
    }

    /// The message for one user, whose own values override the common ones.
    pub fn message_for(&self, own: &[u8]) -> Result<Arc<Message>, store::Error> {
        if own.is_empty() {
            return Ok(Arc::clone(&self.message));
        }
        let own: OwnData = serde_json::from_slice(own)?;
        let mut message = Message::clone(&self.message);
        message.data.extend(own);
        Ok(Arc::new(message))
    }
}

/// Encodes one user's own values; empty if there are none.
pub fn encode_own(own: &OwnData) -> Vec<u8> {
    if own.is_empty() { Vec::new() } else { serde_json::to_vec(own).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use domain::TemplateId;

    use super::*;

    fn value(text: &str) -> Value {
        Value { value: text.into(), color: String::new() }
    }

    #[test]
    fn own_data_of_a_user_overrides_only_its_keys() {
        let data = BTreeMap::from([("thing1".into(), value("all")), ("thing2".into(), value("all"))]);
        let plain = Message::empty(Delivery::FormId, TemplateId::parse("t").unwrap());
        let message = Message { page: "p".into(), data, ..plain };
        let (rate, min_interval) = (7, Duration::from_secs(3600));
        let (message, ordered_by) = (Arc::new(message), Some("00-1-2-01".into()));
        let name = "spring".into();
        let spec = Spec { name, message, rate, min_interval, retry_unknown: true, fit: false, ordered_by };
        assert_eq!(Spec::decode(&spec.encode()).unwrap(), spec);
        assert_eq!(spec.message_for(b"").unwrap(), spec.message);
        let own = OwnData::from([("thing2".into(), value("mine"))]);
        let message = spec.message_for(&encode_own(&own)).unwrap();
        assert_eq!((&message.data["thing1"], &message.data["thing2"]), (&value("all"), &value("mine")));
        assert!(encode_own(&OwnData::new()).is_empty());
    }
}
