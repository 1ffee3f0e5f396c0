//! The body of a send, checked as strictly as WeChat does at its strictest.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::{No, code};
use crate::api::Api;
use crate::{Settings, keywords};

const LONGEST_PAGE: usize = 1024;

/// The versions of a mini program that a subscription message can open.
const STATES: &[&str] = &["developer", "trial", "formal"];

/// The languages of the text around a subscription message.
const LANGUAGES: &[&str] = &["zh_CN", "en_US", "zh_HK", "zh_TW"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Keyword {
    pub value: String,
    /// A color, which `template/send` accepts and ignores, and `subscribe/send` refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
}

/// The body of `template/send`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TemplateBody {
    touser: Option<String>,
    template_id: Option<String>,
    form_id: Option<String>,
    page: Option<String>,
    data: Option<Value>,
    emphasis_keyword: Option<String>,
}

/// The body of `subscribe/send`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SubscribeBody {
    touser: Option<String>,
    template_id: Option<String>,
    page: Option<String>,
    data: Option<Value>,
    miniprogram_state: Option<String>,
    lang: Option<String>,
}

/// A parsed body: field names and types are right, nothing else is checked yet.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) touser: Option<String>,
    pub(crate) template_id: Option<String>,
    page: Option<String>,
    data: Option<Value>,
    more: More,
}

/// The fields that only one of the two endpoints takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum More {
    Template { form_id: String, emphasis_keyword: Option<String> },
    Subscribe { miniprogram_state: String, lang: String },
}

/// A valid message. Whether the user's credential allows it is checked later.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) openid: String,
    pub(crate) template_id: String,
    pub(crate) page: Option<String>,
    pub(crate) data: BTreeMap<String, Keyword>,
    pub(crate) more: More,
}

impl More {
    pub(crate) fn api(&self) -> Api {
        match self {
            Self::Template { .. } => Api::Template,
            Self::Subscribe { .. } => Api::Subscribe,
        }
    }

    /// Checks of the endpoint's own: its rules for the data, and its own fields.
    fn check(&self, data: &BTreeMap<String, Keyword>) -> Result<(), No> {
        match self {
            Self::Template { emphasis_keyword: Some(keyword), .. } => {
                let is_key = keyword.strip_suffix(".DATA").is_some_and(|key| data.contains_key(key));
                if is_key { Ok(()) } else { Err(No::argument("emphasis_keyword")) }
            }
            Self::Template { emphasis_keyword: None, .. } => Ok(()),
            Self::Subscribe { miniprogram_state, lang } => {
                // Every template has at least one keyword.
                if data.is_empty() {
                    return Err(No::argument("data is empty"));
                }
                for (key, keyword) in data {
                    if keyword.color.is_some() {
                        return Err(No::argument(format!("data.{key}.color")));
                    }
                    if let Some(wrong) = keywords::fault(key, &keyword.value) {
                        return Err(No::argument(format!("data.{key}.value {wrong}")));
                    }
                }
                if !STATES.contains(&miniprogram_state.as_str()) {
                    return Err(No::argument("miniprogram_state"));
                }
                if !LANGUAGES.contains(&lang.as_str()) {
                    return Err(No::argument("lang"));
                }
                Ok(())
            }
        }
    }
}

impl From<TemplateBody> for Draft {
    fn from(body: TemplateBody) -> Self {
        let TemplateBody { touser, template_id, form_id, page, data, emphasis_keyword } = body;
        let emphasis_keyword = emphasis_keyword.filter(|keyword| !keyword.is_empty());
        let more = More::Template { form_id: form_id.unwrap_or_default(), emphasis_keyword };
        Self { touser, template_id, page, data, more }
    }
}

impl From<SubscribeBody> for Draft {
    fn from(body: SubscribeBody) -> Self {
        let SubscribeBody { touser, template_id, page, data, miniprogram_state, lang } = body;
        let more = More::Subscribe {
            miniprogram_state: miniprogram_state.unwrap_or_else(|| "formal".to_owned()),
            lang: lang.unwrap_or_else(|| "zh_CN".to_owned()),
        };
        Self { touser, template_id, page, data, more }
    }
}

impl Draft {
    pub(crate) fn parse(api: Api, body: &[u8]) -> Result<Self, No> {
        // serde would accept an array of the right strings as a draft, too.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(No::code(code::BODY_WRONG));
        }
        let draft = match api {
            Api::Template => serde_json::from_slice::<TemplateBody>(body).map(Self::from),
            Api::Subscribe => serde_json::from_slice::<SubscribeBody>(body).map(Self::from),
        };
        draft.map_err(|_| No::code(code::BODY_WRONG))
    }

    /// Checks the template, the page, the data, and the endpoint's own fields, in this order. The user was checked
    /// before. The credential is checked after.
    pub(crate) fn check(self, settings: &Settings) -> Result<Message, No> {
        let template_id = self.template_id.unwrap_or_default();
        if !settings.knows_template(&template_id) {
            return Err(No::code(code::TEMPLATE_UNKNOWN));
        }
        if settings.bans_template(&template_id) {
            return Err(No::code(code::TEMPLATE_BANNED));
        }
        let page = self.page.filter(|page| !page.is_empty());
        if page.as_deref().is_some_and(|page| !is_page(page)) {
            return Err(No::code(code::PAGE_WRONG));
        }
        let data = self.data.map_or_else(|| Ok(BTreeMap::new()), read_data)?;
        self.more.check(&data)?;
        Ok(Message { openid: self.touser.unwrap_or_default(), template_id, page, data, more: self.more })
    }
}

/// True for a path such as `pages/index?x=1`, with or without a leading slash. False for a URL, or with blanks.
fn is_page(page: &str) -> bool {
    let path = page.split('?').next().unwrap_or(page);
    page.len() <= LONGEST_PAGE
        && path.starts_with(|first: char| first == '/' || first == '_' || first.is_alphanumeric())
        && !path.starts_with("//")
        && !path.contains("://")
        && !page.contains(|c: char| c.is_control() || c == ' ')
}

fn read_data(data: Value) -> Result<BTreeMap<String, Keyword>, No> {
    let Value::Object(data) = data else {
        return Err(No::argument("data"));
    };
    data.into_iter()
        .map(|(key, keyword)| {
            let Value::Object(mut fields) = keyword else {
                return Err(No::argument(format!("data.{key}")));
            };
            let Some(Value::String(value)) = fields.remove("value") else {
                return Err(No::argument(format!("data.{key}.value")));
            };
            let color = match fields.remove("color") {
                None => None,
                Some(Value::String(color)) => Some(color),
                Some(_) => return Err(No::argument(format!("data.{key}.color"))),
            };
            match fields.keys().next() {
                Some(other) => Err(No::argument(format!("data.{key}.{other}"))),
                None => Ok((key, Keyword { value, color })),
            }
        })
        .collect()
}

/// Identifies messages by 128 bits of a keyed hash: two messages that look the same to the user have the same
/// fingerprint.
#[derive(Default)]
pub(crate) struct Fingerprints(RandomState, RandomState);

impl Fingerprints {
    pub(crate) fn of(&self, message: &Message) -> u128 {
        let read = (&message.openid, &message.template_id, &message.page, &message.data);
        u128::from(self.0.hash_one(read)) << 64 | u128::from(self.1.hash_one(read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str) -> Result<Message, No> {
        Draft::parse(Api::Template, body.as_bytes())?.check(&Settings::default())
    }

    /// A subscription message for the user u, with additional fields.
    fn subscribe(fields: &str) -> Result<Message, No> {
        let body = format!(r#"{{"touser":"u","template_id":"t",{fields}}}"#);
        Draft::parse(Api::Subscribe, body.as_bytes())?.check(&Settings::default())
    }

    #[test]
    fn malformed_body_answers_47001() {
        for body in [
            "",
            "nonsense",
            "null",
            "7",
            r#"["user","template"]"#,
            r#"{"touser":7}"#,
            r#"{"touser":"u","form_id":["f"]}"#,
            r#"{"touser":"u","formid":"f"}"#,
            r#"{"touser":"u"} and more"#,
            "{\"touser\":\"\u{0}\"",
        ] {
            for api in Api::ALL {
                assert_eq!(Draft::parse(api, body.as_bytes()).unwrap_err(), No::code(code::BODY_WRONG), "{body}");
            }
        }
        let not_utf8 = b"{\"touser\":\"\xff\"}";
        assert_eq!(Draft::parse(Api::Template, not_utf8).unwrap_err(), No::code(code::BODY_WRONG));
    }

    #[test]
    fn each_endpoint_refuses_the_fields_of_the_other() {
        for (api, body) in [
            (Api::Template, r#"{"touser":"u","lang":"zh_CN"}"#),
            (Api::Template, r#"{"touser":"u","miniprogram_state":"formal"}"#),
            (Api::Subscribe, r#"{"touser":"u","form_id":"f"}"#),
            (Api::Subscribe, r#"{"touser":"u","emphasis_keyword":"thing1.DATA"}"#),
        ] {
            assert_eq!(Draft::parse(api, body.as_bytes()).unwrap_err(), No::code(code::BODY_WRONG), "{body}");
        }
    }

    #[test]
    fn subscription_message_defaults_to_formal_and_chinese() {
        let more = |fields: &str| subscribe(&format!(r#""data":{{"thing1":{{"value":"x"}}}}{fields}"#)).map(|m| m.more);
        let expected = |state: &str, lang: &str| More::Subscribe { miniprogram_state: state.into(), lang: lang.into() };
        assert_eq!(more(""), Ok(expected("formal", "zh_CN")));
        assert_eq!(more(r#","miniprogram_state":null,"lang":null"#), Ok(expected("formal", "zh_CN")));
        assert_eq!(more(r#","miniprogram_state":"trial","lang":"en_US""#), Ok(expected("trial", "en_US")));
        for wrong in ["", "release", "Formal"] {
            let field = format!(r#","miniprogram_state":"{wrong}""#);
            assert_eq!(more(&field), Err(No::argument("miniprogram_state")), "{wrong}");
        }
        for wrong in ["", "zh", "zh-CN"] {
            assert_eq!(more(&format!(r#","lang":"{wrong}""#)), Err(No::argument("lang")), "{wrong}");
        }
    }

    #[test]
    fn refused_subscription_message_names_its_first_wrong_keyword() {
        for (data, path) in [
            ("null", "data is empty"),
            ("{}", "data is empty"),
            (r#""text""#, "data"),
            (
                r#"{"thing1":{"value":"x"},"number2":{"value":"y"},"number3":{"value":"z"}}"#,
                "data.number2.value invalid",
            ),
            (r#"{"thing1":{"value":""}}"#, "data.thing1.value is empty"),
            (r#"{"thing1":{"value":7}}"#, "data.thing1.value"),
            (r##"{"thing1":{"value":"x","color":"#173177"}}"##, "data.thing1.color"),
        ] {
            assert_eq!(subscribe(&format!(r#""data":{data}"#)).unwrap_err(), No::argument(path), "{data}");
        }
    }

    #[test]
    fn answer_names_the_wrong_argument() {
        for (data, path) in [
            (r#""text""#, "data"),
            (r#"{"k":"text"}"#, "data.k"),
            (r#"{"k":{}}"#, "data.k.value"),
            (r#"{"k":{"value":7}}"#, "data.k.value"),
            (r#"{"a":{"value":"x"},"k":{"value":null}}"#, "data.k.value"),
            (r#"{"k":{"value":"x","color":7}}"#, "data.k.color"),
            (r#"{"k":{"value":"x","size":"7"}}"#, "data.k.size"),
        ] {
            let body = format!(r#"{{"touser":"u","template_id":"t","data":{data}}}"#);
            assert_eq!(check(&body).unwrap_err(), No::argument(path), "{body}");
        }
    }

    #[test]
    fn only_a_key_of_the_data_can_be_emphasized() {
        let with = |keyword: &str| {
            check(&format!(
                r#"{{"template_id":"t","data":{{"k":{{"value":"v","color":"red"}}}},"emphasis_keyword":"{keyword}"}}"#
            ))
        };
        assert!(with("k.DATA").is_ok() && with("").is_ok());
        for wrong in ["k", "k.data", "other.DATA", ".DATA"] {
            assert_eq!(with(wrong).unwrap_err(), No::argument("emphasis_keyword"), "{wrong}");
        }
    }

    #[test]
    fn pages_are_paths_of_at_most_1024_bytes() {
        let long = "p".repeat(LONGEST_PAGE);
        for right in ["pages/index", "/pages/index?a=1&b=https://x", "index", &long] {
            assert!(is_page(right), "{right}");
        }
        for wrong in ["https://example.com", "//host", "?a=1", "#x", " pages", "pages/a b", "\n", &format!("{long}p")] {
            assert!(!is_page(wrong), "{wrong}");
        }
    }

    #[test]
    fn template_is_checked_before_page_and_page_before_data() {
        let body = |template: &str, page: &str| format!(r#"{{"template_id":"{template}","page":"{page}","data":7}}"#);
        assert_eq!(check(&body("", "?")).unwrap_err().code, code::TEMPLATE_UNKNOWN);
        assert_eq!(check(&body("t", "?")).unwrap_err().code, code::PAGE_WRONG);
        assert_eq!(check(&body("t", "p")).unwrap_err().code, code::ARGUMENT_WRONG);
    }

    #[test]
    fn fingerprint_ignores_the_form_id_and_depends_on_all_else() {
        let prints = Fingerprints::default();
        let print = |body: &str| prints.of(&check(body).unwrap());
        let first =
            print(r#"{"touser":"u","template_id":"t","form_id":"1","data":{"a":{"value":"x"},"b":{"value":"y"}}}"#);
        let same =
            print(r#"{"touser":"u","template_id":"t","form_id":"2","data":{"b":{"value":"y"},"a":{"value":"x"}}}"#);
        assert_eq!(first, same);
        for other in [
            r#"{"touser":"v","template_id":"t","data":{"a":{"value":"x"},"b":{"value":"y"}}}"#,
            r#"{"touser":"u","template_id":"s","data":{"a":{"value":"x"},"b":{"value":"y"}}}"#,
            r#"{"touser":"u","template_id":"t","page":"p","data":{"a":{"value":"x"},"b":{"value":"y"}}}"#,
            r#"{"touser":"u","template_id":"t","data":{"a":{"value":"y"},"b":{"value":"x"}}}"#,
            r#"{"touser":"u","template_id":"t","data":{"a":{"value":"x"}}}"#,
        ] {
            assert_ne!(first, print(other), "{other}");
        }
    }
}
