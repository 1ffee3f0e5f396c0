//! The body of a send, checked as strictly as WeChat on its worst day.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Settings;
use crate::answer::{No, code};

const LONGEST_PAGE: usize = 1024;

/// One keyword of a template message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Keyword {
    /// The text.
    pub value: String,
    /// A colour, which WeChat accepts and ignores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
}

/// The body as it came: the right names and types, nothing more is known.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Draft {
    #[serde(default)]
    pub(crate) touser: Option<String>,
    #[serde(default)]
    pub(crate) template_id: Option<String>,
    #[serde(default)]
    form_id: Option<String>,
    #[serde(default)]
    page: Option<String>,
    #[serde(default)]
    data: Option<Value>,
    #[serde(default)]
    emphasis_keyword: Option<String>,
}

/// A message that lacks nothing but the right to be sent.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) openid: String,
    pub(crate) template_id: String,
    pub(crate) form_id: String,
    pub(crate) page: Option<String>,
    pub(crate) data: BTreeMap<String, Keyword>,
    pub(crate) emphasis_keyword: Option<String>,
}

impl Draft {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, No> {
        // An array of the right strings would read as a draft, too.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(No::code(code::BODY_WRONG));
        }
        serde_json::from_slice(body).map_err(|_| No::code(code::BODY_WRONG))
    }

    /// The checks of template, page and data, in this order. The user's comes before, the form id's after.
    pub(crate) fn check(self, settings: &Settings) -> Result<Message, No> {
        let template_id = self.template_id.unwrap_or_default();
        if !settings.knows_template(&template_id) {
            return Err(No::code(code::TEMPLATE_UNKNOWN));
        }
        let page = self.page.filter(|page| !page.is_empty());
        if page.as_deref().is_some_and(|page| !is_page(page)) {
            return Err(No::code(code::PAGE_WRONG));
        }
        let data = self.data.map_or_else(|| Ok(BTreeMap::new()), keywords)?;
        let emphasis_keyword = self.emphasis_keyword.filter(|keyword| !keyword.is_empty());
        if let Some(keyword) = &emphasis_keyword
            && !keyword.strip_suffix(".DATA").is_some_and(|key| data.contains_key(key))
        {
            return Err(No::argument("emphasis_keyword"));
        }
        Ok(Message {
            openid: self.touser.unwrap_or_default(),
            template_id,
            form_id: self.form_id.unwrap_or_default(),
            page,
            data,
            emphasis_keyword,
        })
    }
}

/// `pages/index?x=1`, with or without a slash before it. Not a URL, not something with blanks in it.
fn is_page(page: &str) -> bool {
    let path = page.split('?').next().unwrap_or(page);
    page.len() <= LONGEST_PAGE
        && path.starts_with(|first: char| first == '/' || first == '_' || first.is_alphanumeric())
        && !path.starts_with("//")
        && !path.contains("://")
        && !page.contains(|c: char| c.is_control() || c == ' ')
}

fn keywords(data: Value) -> Result<BTreeMap<String, Keyword>, No> {
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

/// Tells messages apart by 128 bits of keyed hash: what a user would read twice has the same fingerprint.
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
        Draft::parse(body.as_bytes())?.check(&Settings::default())
    }

    #[test]
    fn what_is_not_a_send_is_47001() {
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
            assert_eq!(Draft::parse(body.as_bytes()).unwrap_err(), No::code(code::BODY_WRONG), "{body}");
        }
        assert_eq!(Draft::parse(b"{\"touser\":\"\xff\"}").unwrap_err(), No::code(code::BODY_WRONG));
    }

    #[test]
    fn a_wrong_argument_is_named() {
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
    fn only_a_key_of_the_data_can_be_emphasised() {
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
    fn the_template_is_judged_before_the_page_and_the_page_before_the_data() {
        let body = |template: &str, page: &str| format!(r#"{{"template_id":"{template}","page":"{page}","data":7}}"#);
        assert_eq!(check(&body("", "?")).unwrap_err().code, code::TEMPLATE_UNKNOWN);
        assert_eq!(check(&body("t", "?")).unwrap_err().code, code::PAGE_WRONG);
        assert_eq!(check(&body("t", "p")).unwrap_err().code, code::ARGUMENT_WRONG);
    }

    #[test]
    fn a_message_is_the_same_with_another_form_id_and_another_with_any_other_change() {
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
