//! A template message, and the JSON that WeChat wants of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared::credential::{CredentialId, OpenId};

/// What is sent, whoever it is sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The template.
    pub template_id: String,
    /// The page that opens on a tap.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub page: String,
    /// What fills the template; sorted, so that equal messages have equal bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, Value>,
    /// The key whose value is shown large, as `keyword1.DATA`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub emphasis_keyword: String,
}

/// One value of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// The text.
    pub value: String,
    /// Its colour.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub color: String,
}

#[derive(Serialize)]
struct Body<'a> {
    touser: &'a str,
    form_id: &'a str,
    #[serde(flatten)]
    message: &'a Message,
}

impl Message {
    /// The body of `template/send`. A prepay id goes where a form id goes.
    pub fn body(&self, openid: &OpenId, credential: &CredentialId) -> Vec<u8> {
        let body = Body { touser: openid.as_str(), form_id: credential.as_str(), message: self };
        // Strings and maps of strings always have a JSON form.
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// A digest of the message: equal messages have equal ones, on every replica and in every release.
    pub fn fingerprint(&self) -> [u8; 16] {
        fingerprint(&serde_json::to_vec(self).unwrap_or_default())
    }
}

/// A digest that tells a mistaken request id from a repeated one: FNV-1a, 128 bits. It guards no secret.
pub fn fingerprint(bytes: &[u8]) -> [u8; 16] {
    bytes
        .iter()
        .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
            (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        })
        .to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_the_json_of_the_documents() {
        let data = BTreeMap::from([("keyword1".into(), Value { value: "x".into(), color: String::new() })]);
        let message =
            Message { template_id: "t1".into(), page: "index?a=b".into(), data, emphasis_keyword: String::new() };
        let body = message.body(&OpenId::parse("oU").unwrap(), &CredentialId::parse("f1").unwrap());
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let expected = serde_json::json!({
            "touser": "oU", "form_id": "f1", "template_id": "t1", "page": "index?a=b", "data": {"keyword1": {"value": "x"}},
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn messages_that_differ_anywhere_have_different_fingerprints() {
        let plain = Message {
            template_id: "t".into(),
            page: String::new(),
            data: BTreeMap::new(),
            emphasis_keyword: String::new(),
        };
        let paged = Message { page: "p".into(), ..plain.clone() };
        assert_ne!(plain.fingerprint(), paged.fingerprint());
        assert_eq!(plain.fingerprint(), plain.clone().fingerprint());
    }
}
