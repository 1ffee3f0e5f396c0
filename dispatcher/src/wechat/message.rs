//! A message of either generation (template or subscription), and its JSON body.

use std::collections::BTreeMap;

use domain::{CredentialId, Kind, OpenId, TemplateId};
use serde::{Deserialize, Serialize};
use server::proto;
use store::broadcast::permits::Api;
use store::eligibility::{Eligibility, Kinds};

/// WeChat's two message generations, each with an API of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Template message: `template/send`, which spends form ids and prepay ids.
    #[default]
    FormId,
    /// Subscription message: `subscribe/send`, which spends grants.
    Subscription,
}

impl Delivery {
    /// Both generations. `delivery as usize` is the index of a generation.
    pub const ALL: [Self; 2] = [Self::FormId, Self::Subscription];

    /// Name in the apps file and in labels of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::FormId => "form_id",
            Self::Subscription => "subscription",
        }
    }

    pub fn kinds(self) -> Kinds {
        match self {
            Self::FormId => Kinds::IDS,
            Self::Subscription => Kinds::GRANTS,
        }
    }

    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::FormId | Kind::PrepayId => Self::FormId,
            Kind::Grant => Self::Subscription,
        }
    }

    pub fn api(self) -> Api {
        match self {
            Self::FormId => Api::Template,
            Self::Subscription => Api::Subscribe,
        }
    }

    /// Messages per day that WeChat documents as the limit of an app.
    pub fn published_quota(self) -> u64 {
        match self {
            Self::FormId => 1_000_000,
            Self::Subscription => 10_000_000,
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Delivery> for proto::Delivery {
    fn from(delivery: Delivery) -> Self {
        match delivery {
            Delivery::FormId => Self::FormId,
            Delivery::Subscription => Self::Subscription,
        }
    }
}

/// A message without its recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    #[serde(default, skip_serializing_if = "Delivery::is_default")]
    pub delivery: Delivery,
    pub template_id: TemplateId,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub page: String,
    /// Values of the template. Sorted, so that equal messages have equal bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, Value>,
    /// Key whose value is shown large, such as `keyword1.DATA`. Template messages only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub emphasis_keyword: String,
    /// Version of the mini program that opens on a tap. Subscription messages only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub miniprogram_state: String,
    /// Language of the mini program's frame. Subscription messages only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lang: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    pub value: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub color: String,
}

/// Body of either call. Fields that an API does not have are empty and omitted.
#[derive(Serialize)]
struct Body<'a> {
    touser: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    form_id: Option<&'a str>,
    template_id: &'a TemplateId,
    #[serde(skip_serializing_if = "str::is_empty")]
    page: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    data: &'a BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "str::is_empty")]
    emphasis_keyword: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    miniprogram_state: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    lang: &'a str,
}

impl Message {
    pub fn empty(delivery: Delivery, template_id: TemplateId) -> Self {
        Self {
            delivery,
            template_id,
            page: String::new(),
            data: BTreeMap::new(),
            emphasis_keyword: String::new(),
            miniprogram_state: String::new(),
            lang: String::new(),
        }
    }

    /// Credentials that may be spent on it, restricted to `kinds`.
    pub fn eligibility(&self, kinds: Kinds) -> Eligibility {
        match self.delivery {
            Delivery::FormId => Eligibility::ids(kinds),
            Delivery::Subscription => Eligibility::grants(self.template_id.clone()),
        }
    }

    /// The JSON body of the call. A prepay id is passed as the form id. A grant is not passed: WeChat finds it by
    /// itself.
    pub fn body(&self, openid: &OpenId, credential: &CredentialId) -> Vec<u8> {
        let Self { delivery, template_id, page, data, emphasis_keyword, miniprogram_state, lang } = self;
        let form_id = (*delivery == Delivery::FormId).then(|| credential.as_str());
        let touser = openid.as_str();
        let body = Body { touser, form_id, template_id, page, data, emphasis_keyword, miniprogram_state, lang };
        // Strings and maps of strings always have a JSON form.
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// Digest of the message. Equal messages have equal digests, on every replica and in every release.
    pub fn fingerprint(&self) -> [u8; 16] {
        fingerprint(&serde_json::to_vec(self).unwrap_or_default())
    }
}

/// Digest that distinguishes a reused request id from a repeated request: FNV-1a, 128 bits. Not for secrets.
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

    fn message() -> Message {
        let data = BTreeMap::from([("keyword1".into(), Value { value: "x".into(), color: String::new() })]);
        let plain = Message::empty(Delivery::FormId, TemplateId::parse("t1").unwrap());
        Message { page: "index?a=b".into(), data, ..plain }
    }

    fn body(message: &Message, credential: &str) -> serde_json::Value {
        let body = message.body(&OpenId::parse("oU").unwrap(), &CredentialId::parse(credential).unwrap());
        serde_json::from_slice(&body).unwrap()
    }

    #[test]
    fn bodies_are_as_wechat_documents_them() {
        let expected = serde_json::json!({
            "touser": "oU", "form_id": "f1", "template_id": "t1", "page": "index?a=b", "data": {"keyword1": {"value": "x"}},
        });
        assert_eq!(body(&message(), "f1"), expected);
        let message = Message {
            delivery: Delivery::Subscription,
            miniprogram_state: "trial".into(),
            lang: "en_US".into(),
            ..message()
        };
        let expected = serde_json::json!({
            "touser": "oU", "template_id": "t1", "page": "index?a=b", "data": {"keyword1": {"value": "x"}},
            "miniprogram_state": "trial", "lang": "en_US",
        });
        assert_eq!(body(&message, "t1"), expected);
    }

    #[test]
    fn messages_that_differ_in_any_field_have_different_fingerprints() {
        let plain = message();
        assert_eq!(plain.fingerprint(), plain.clone().fingerprint());
        for other in [
            Message { page: "p".into(), ..plain.clone() },
            Message { delivery: Delivery::Subscription, ..plain.clone() },
            Message { lang: "en_US".into(), ..plain.clone() },
        ] {
            assert_ne!(plain.fingerprint(), other.fingerprint());
        }
    }
}
