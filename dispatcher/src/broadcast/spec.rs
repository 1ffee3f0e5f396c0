//! What a broadcast sends and how, as it is kept in Redis.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::store;

use crate::wechat::message::{Message, Value};

/// What is asked of a broadcast, but for its audience.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// What people call it.
    pub name: String,
    /// What is sent to everyone.
    pub message: Arc<Message>,
    /// Messages a second, over all replicas; 0 for as many as the app's pace permits.
    pub rate: u32,
    /// Users who got a message within this time are skipped; whole seconds.
    pub min_interval: Duration,
    /// The caller prefers a second message over none where nobody can tell.
    pub retry_unknown: bool,
    /// The trace of the call that ordered it, if there was one: see [`shared::traces::link`]. No part of what is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_by: Option<String>,
}

/// What of the message is one user's own.
pub type OwnData = BTreeMap<String, Value>;

impl Spec {
    /// As it is kept in Redis.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and maps of strings always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// As it was kept.
    pub fn decode(bytes: &[u8]) -> Result<Self, store::Error> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The message for one user.
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

/// One user's own data as it is kept; empty if there is none.
pub fn encode_own(own: &OwnData) -> Vec<u8> {
    if own.is_empty() { Vec::new() } else { serde_json::to_vec(own).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use shared::credential::TemplateId;

    use super::*;
    use crate::wechat::message::Delivery;

    fn value(text: &str) -> Value {
        Value { value: text.into(), color: String::new() }
    }

    #[test]
    fn a_users_own_data_overrides_the_common_and_leaves_the_rest() {
        let data = BTreeMap::from([("thing1".into(), value("all")), ("thing2".into(), value("all"))]);
        let plain = Message::empty(Delivery::FormId, TemplateId::parse("t").unwrap());
        let message = Message { page: "p".into(), data, ..plain };
        let (rate, min_interval) = (7, Duration::from_secs(3600));
        let (message, ordered_by) = (Arc::new(message), Some("00-1-2-01".into()));
        let spec = Spec { name: "spring".into(), message, rate, min_interval, retry_unknown: true, ordered_by };
        assert_eq!(Spec::decode(&spec.encode()).unwrap(), spec);
        assert_eq!(spec.message_for(b"").unwrap(), spec.message);
        let own = OwnData::from([("thing2".into(), value("mine"))]);
        let message = spec.message_for(&encode_own(&own)).unwrap();
        assert_eq!((&message.data["thing1"], &message.data["thing2"]), (&value("all"), &value("mine")));
        assert!(encode_own(&OwnData::new()).is_empty());
    }
}
