//! A message of either generation, and the JSON that WeChat wants of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared::credential::{CredentialId, Kind, OpenId, TemplateId};
use shared::proto;
use shared::store::broadcast::permits::Api;
use shared::store::wanted::{Kinds, Wanted};

/// By which of WeChat's two generations of messages something is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// `template/send`, which spends form ids and prepay ids.
    #[default]
    FormId,
    /// `subscribe/send`, which spends grants.
    Subscription,
}

impl Delivery {
    /// Both.
    pub const ALL: [Self; 2] = [Self::FormId, Self::Subscription];

    /// What its messages spend.
    pub fn kinds(self) -> Kinds {
        match self {
            Self::FormId => Kinds::IDS,
            Self::Subscription => Kinds::GRANTS,
        }
    }

    /// The generation whose messages spend such a credential.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::FormId | Kind::PrepayId => Self::FormId,
            Kind::Grant => Self::Subscription,
        }
    }

    /// WeChat's API for it.
    pub fn api(self) -> Api {
        match self {
            Self::FormId => Api::Template,
            Self::Subscription => Api::Subscribe,
        }
    }

    /// Messages a day that WeChat publishes as an app's limit.
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

/// What is sent, whoever it is sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// How it is sent.
    #[serde(default, skip_serializing_if = "Delivery::is_default")]
    pub delivery: Delivery,
    /// The template.
    pub template_id: TemplateId,
    /// The page that opens on a tap.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub page: String,
    /// What fills the template; sorted, so that equal messages have equal bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, Value>,
    /// The key whose value is shown large, as `keyword1.DATA`. Not of subscription messages.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub emphasis_keyword: String,
    /// Which version of the mini program opens on a tap. Only of subscription messages.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub miniprogram_state: String,
    /// The language of the mini program's frame. Only of subscription messages.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lang: String,
}

/// One value of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// The text.
    pub value: String,
    /// Its colour. Not of subscription messages.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub color: String,
}

/// The body of either call: what one of them does not have is empty, and left out.
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
    /// One of a template, with nothing in it.
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

    /// What may be spent on it, of these kinds.
    pub fn wanted(&self, kinds: Kinds) -> Wanted {
        match self.delivery {
            Delivery::FormId => Wanted::ids(kinds),
            Delivery::Subscription => Wanted::grants(self.template_id.clone()),
        }
    }

    /// The body of the call. A prepay id goes where a form id goes; WeChat finds a grant by itself.
    pub fn body(&self, openid: &OpenId, credential: &CredentialId) -> Vec<u8> {
        let Self { delivery, template_id, page, data, emphasis_keyword, miniprogram_state, lang } = self;
        let form_id = (*delivery == Delivery::FormId).then(|| credential.as_str());
        let touser = openid.as_str();
        let body = Body { touser, form_id, template_id, page, data, emphasis_keyword, miniprogram_state, lang };
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
    fn the_bodies_are_the_json_of_the_documents() {
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
    fn messages_that_differ_anywhere_have_different_fingerprints() {
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
