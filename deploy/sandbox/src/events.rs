//! Events that WeChat posts to an app's server: both formats, and the signature.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha1_smol::Sha1;

use crate::Settings;
use crate::clock::SECOND;
use crate::kept::Entry;
use crate::push::{CHANGE, POPUP, Push};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventFormat {
    /// `{"ToUserName": .., "List": ..}`.
    #[default]
    Json,
    /// `<xml><ToUserName>..`. Each item is an element inside one that is named after the event.
    Xml,
}

impl EventFormat {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json; charset=utf-8",
            Self::Xml => "text/xml; charset=utf-8",
        }
    }
}

/// Where the items of an event are. WeChat's documents show all of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventShape {
    /// In JSON in `List`, which is an object if there is one item. In XML as in [`EventShape::Nested`].
    #[default]
    List,
    /// In JSON in `List`, which is always an array.
    Array,
    /// In JSON in an array that is named after the event.
    Direct,
    /// In JSON and in XML in `List`, inside what is named after the event.
    Nested,
    /// As in [`EventShape::Nested`], but in a change event inside what is named after the popup event.
    Old,
}

/// An event as it is posted to the callback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Number of the event within the app. Starts at 1, without gaps.
    pub number: u64,
    pub openid: String,
    pub format: EventFormat,
    pub body: String,
    /// The query parameter `timestamp`: unix seconds on the sandbox's clock.
    pub timestamp: u64,
    /// The query parameter `nonce`.
    pub nonce: String,
    /// The query parameter `signature`; see [`Settings::callback_token`].
    pub signature: String,
}

impl Entry for Event {
    fn number(&self) -> u64 {
        self.number
    }

    fn openid(&self) -> &str {
        &self.openid
    }
}

/// Something that happened and gives an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// A user answered a pop-up that asked for these templates.
    Popup { templates: Vec<String>, accepted: bool },
    /// A user withdrew the grants for these templates in the settings of the mini program.
    Change { templates: Vec<String> },
    /// The result of the delivery of an accepted message.
    Sent { template_id: String, msgid: u64, error_code: i32, error_status: String },
    /// What a caller of the control API asked for.
    Asked(Push),
}

type Field = (&'static str, String);

/// The fields of one item of the list, in WeChat's order.
type Item = Vec<Field>;

impl News {
    /// The name of the event, and of the element that holds the list in XML, if there is a list.
    fn names(&self) -> (&str, Option<&'static str>) {
        match self {
            Self::Popup { .. } => (POPUP.0, Some(POPUP.1)),
            Self::Change { .. } => (CHANGE.0, Some(CHANGE.1)),
            Self::Sent { .. } => ("subscribe_msg_sent_event", Some("SubscribeMsgSentEvent")),
            Self::Asked(push) => (&push.event, push.element()),
        }
    }

    fn items(&self) -> Vec<Item> {
        let answered = |template_id: &String, status: &str| {
            vec![("TemplateId", template_id.clone()), ("SubscribeStatusString", status.to_owned())]
        };
        let asked = |template_id, status| {
            let mut item = answered(template_id, status);
            // Scene 0: a page of the mini program opened the pop-up.
            item.push(("PopupScene", "0".to_owned()));
            item
        };
        match self {
            Self::Popup { templates, accepted } => {
                let status = if *accepted { "accept" } else { "reject" };
                templates.iter().map(|template_id| asked(template_id, status)).collect()
            }
            Self::Asked(push) if push.event == POPUP.0 => {
                push.decisions.iter().map(|one| asked(&one.template_id, &one.status)).collect()
            }
            Self::Asked(push) => push.decisions.iter().map(|one| answered(&one.template_id, &one.status)).collect(),
            Self::Change { templates } => templates.iter().map(|template_id| answered(template_id, "reject")).collect(),
            Self::Sent { template_id, msgid, error_code, error_status } => vec![vec![
                ("TemplateId", template_id.clone()),
                ("MsgID", msgid.to_string()),
                ("ErrorCode", error_code.to_string()),
                ("ErrorStatus", error_status.clone()),
            ]],
        }
    }
}

impl Event {
    pub(crate) fn new(number: u64, app_id: &str, openid: &str, news: &News, now_ms: u64, settings: &Settings) -> Self {
        let timestamp = now_ms / SECOND;
        let nonce = rand::random::<u32>().to_string();
        let (event, element) = news.names();
        let created = if let News::Asked(push) = news { push.created_at } else { None };
        let mut head = vec![
            ("ToUserName", account(app_id)),
            ("FromUserName", openid.to_owned()),
            ("CreateTime", created.unwrap_or(timestamp).to_string()),
            ("MsgType", "event".to_owned()),
            ("Event", event.to_owned()),
        ];
        if element.is_none() {
            head.push(("OpenID", openid.to_owned()));
        }
        let (format, shape) = (settings.callback_format, settings.callback_shape);
        let is_old = shape == EventShape::Old && element == Some(CHANGE.1);
        let list = element.map(|element| (if is_old { POPUP.1 } else { element }, news.items()));
        let body = match format {
            EventFormat::Json => json(&head, list, shape, settings.callback_numbers),
            EventFormat::Xml => xml(&head, list),
        };
        let signature = signature(&settings.callback_token, &timestamp.to_string(), &nonce);
        Self { number, openid: openid.to_owned(), format, body, timestamp, nonce, signature }
    }
}

/// The account name of a mini program: a second id, unrelated to the app id.
fn account(app_id: &str) -> String {
    let mut digest = Sha1::from(app_id).digest().to_string();
    digest.truncate(12);
    format!("gh_{digest}")
}

/// 40 hex digits: the SHA-1 of the three texts, sorted and joined.
fn signature(token: &str, timestamp: &str, nonce: &str) -> String {
    let mut parts = [token, timestamp, nonce];
    parts.sort_unstable();
    Sha1::from(parts.concat()).digest().to_string()
}

fn json(head: &[Field], list: Option<(&str, Vec<Item>)>, shape: EventShape, numbers: bool) -> String {
    let mut fields = values(head, numbers);
    if let Some((element, items)) = list {
        let mut items: Vec<_> = items.iter().map(|item| object(&values(item, numbers))).collect();
        let list = match &mut items[..] {
            [only] if shape == EventShape::List => std::mem::take(only),
            several => format!("[{}]", several.join(",")),
        };
        fields.push(match shape {
            EventShape::List | EventShape::Array => ("List", list),
            EventShape::Direct => (element, list),
            EventShape::Nested | EventShape::Old => (element, object(&[("List", list)])),
        });
    }
    object(&fields)
}

/// The fields, with their values as JSON.
fn values(fields: &[Field], numbers: bool) -> Vec<(&str, String)> {
    const NUMBERS: [&str; 4] = ["CreateTime", "PopupScene", "MsgID", "ErrorCode"];
    let is_number = |name| numbers && NUMBERS.contains(&name);
    let json = |name, text: &String| {
        if is_number(name) { text.clone() } else { Value::from(text.as_str()).to_string() }
    };
    fields.iter().map(|(name, text)| (*name, json(*name, text))).collect()
}

/// An object with these fields, in their order. The values are JSON already.
fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn xml(head: &[Field], list: Option<(&str, Vec<Item>)>) -> String {
    let mut text = String::from("<xml>");
    write_elements(&mut text, head);
    if let Some((element, items)) = list {
        _ = write!(text, "<{element}>");
        for item in items {
            text.push_str("<List>");
            write_elements(&mut text, &item);
            text.push_str("</List>");
        }
        _ = write!(text, "</{element}>");
    }
    text.push_str("</xml>");
    text
}

/// Writes texts as character data, as WeChat does, and numbers without it.
fn write_elements(text: &mut String, fields: &[Field]) {
    for (name, value) in fields {
        // Writing to a string cannot fail.
        _ = if value.bytes().all(|b| b.is_ascii_digit()) {
            write!(text, "<{name}>{value}</{name}>")
        } else {
            // A text that contains the end mark of character data is split in two parts.
            write!(text, "<{name}><![CDATA[{}]]></{name}>", value.replace("]]>", "]]]]><![CDATA[>"))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 1_714_036_504;

    fn body(format: EventFormat, news: &News) -> String {
        shaped(Settings { callback_format: format, ..Settings::default() }, news)
    }

    /// The body after its first fields.
    fn shaped(settings: Settings, news: &News) -> String {
        let event = Event::new(1, "wx1", "openid-1", news, AT * SECOND + 999, &settings);
        assert_eq!((event.timestamp, event.openid.as_str()), (AT, "openid-1"));
        let head = format!(
            r#"{{"ToUserName":"{}","FromUserName":"openid-1","CreateTime":"{AT}","MsgType":"event","#,
            account("wx1")
        );
        let xml_head = format!(
            "<xml><ToUserName><![CDATA[{}]]></ToUserName><FromUserName><![CDATA[openid-1]]></FromUserName>\
             <CreateTime>{AT}</CreateTime><MsgType><![CDATA[event]]></MsgType>",
            account("wx1")
        );
        let rest = event.body.strip_prefix(&head).or_else(|| event.body.strip_prefix(&xml_head));
        rest.unwrap_or_else(|| panic!("{}", event.body)).to_owned()
    }

    fn templates(ids: &[&str]) -> Vec<String> {
        ids.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn signature_is_the_digest_of_the_sorted_and_joined_parts() {
        assert_eq!(signature("AAAAA", "1714036504", "1514711492"), "f464b24fc39322e44b38aa78f5edd27bd1441696");
    }

    #[test]
    fn json_list_is_an_object_for_one_item_and_an_array_for_several() {
        let one = body(EventFormat::Json, &News::Popup { templates: templates(&["a"]), accepted: true });
        let item =
            |id, status| format!(r#"{{"TemplateId":"{id}","SubscribeStatusString":"{status}","PopupScene":"0"}}"#);
        assert_eq!(one, format!(r#""Event":"subscribe_msg_popup_event","List":{}}}"#, item("a", "accept")));
        let two = body(EventFormat::Json, &News::Popup { templates: templates(&["a", "b"]), accepted: false });
        let items = [item("a", "reject"), item("b", "reject")].join(",");
        assert_eq!(two, format!(r#""Event":"subscribe_msg_popup_event","List":[{items}]}}"#));
    }

    #[test]
    fn xml_has_one_element_for_each_item() {
        let two = body(EventFormat::Xml, &News::Popup { templates: templates(&["a", "b"]), accepted: true });
        let item = |id| {
            format!(
                "<List><TemplateId><![CDATA[{id}]]></TemplateId>\
                 <SubscribeStatusString><![CDATA[accept]]></SubscribeStatusString><PopupScene>0</PopupScene></List>"
            )
        };
        let expected = format!(
            "<Event><![CDATA[subscribe_msg_popup_event]]></Event>\
             <SubscribeMsgPopupEvent>{}{}</SubscribeMsgPopupEvent></xml>",
            item("a"),
            item("b")
        );
        assert_eq!(two, expected);
    }

    #[test]
    fn withdrawal_has_no_scene() {
        let news = News::Change { templates: templates(&["a"]) };
        let expected =
            r#""Event":"subscribe_msg_change_event","List":{"TemplateId":"a","SubscribeStatusString":"reject"}}"#;
        assert_eq!(body(EventFormat::Json, &news), expected);
        let xml = body(EventFormat::Xml, &news);
        assert!(xml.contains("<SubscribeMsgChangeEvent><List><TemplateId>"), "{xml}");
    }

    #[test]
    fn numbers_are_strings_in_json_and_plain_in_xml() {
        let news = News::Sent {
            template_id: "a]]>b&".into(),
            msgid: u64::MAX,
            error_code: 43101,
            error_status: "user_refuse".into(),
        };
        let expected = concat!(
            r#""Event":"subscribe_msg_sent_event","List":{"TemplateId":"a]]>b&","MsgID":"18446744073709551615","#,
            r#""ErrorCode":"43101","ErrorStatus":"user_refuse"}}"#
        );
        assert_eq!(body(EventFormat::Json, &news), expected);
        let xml = body(EventFormat::Xml, &news);
        let expected = concat!(
            "<SubscribeMsgSentEvent><List><TemplateId><![CDATA[a]]]]><![CDATA[>b&]]></TemplateId>",
            "<MsgID>18446744073709551615</MsgID><ErrorCode>43101</ErrorCode>",
            "<ErrorStatus><![CDATA[user_refuse]]></ErrorStatus></List></SubscribeMsgSentEvent></xml>"
        );
        assert!(xml.ends_with(expected), "{xml}");
    }
    #[test]
    fn items_are_where_the_shape_has_them() {
        let news = News::Change { templates: templates(&["a"]) };
        let item = r#"{"TemplateId":"a","SubscribeStatusString":"reject"}"#;
        for (shape, expected) in [
            (EventShape::List, format!(r#""List":{item}"#)),
            (EventShape::Array, format!(r#""List":[{item}]"#)),
            (EventShape::Direct, format!(r#""SubscribeMsgChangeEvent":[{item}]"#)),
            (EventShape::Nested, format!(r#""SubscribeMsgChangeEvent":{{"List":[{item}]}}"#)),
            (EventShape::Old, format!(r#""SubscribeMsgPopupEvent":{{"List":[{item}]}}"#)),
        ] {
            let settings = Settings { callback_shape: shape, ..Settings::default() };
            let expected = format!(r#""Event":"subscribe_msg_change_event",{expected}}}"#);
            assert_eq!(shaped(settings, &news), expected);
            let settings = Settings { callback_shape: shape, callback_format: EventFormat::Xml, ..Settings::default() };
            let xml = shaped(settings, &news);
            assert_eq!(xml.contains("<SubscribeMsgPopupEvent><List><TemplateId>"), shape == EventShape::Old, "{xml}");
        }
    }

    #[test]
    fn numbers_are_numbers_in_json_if_asked() {
        let (template_id, error_status) = ("7".to_owned(), "refuse \"me\"".to_owned());
        let news = News::Sent { template_id, msgid: u64::MAX, error_code: -1, error_status };
        let settings = Settings { callback_numbers: true, ..Settings::default() };
        let event = Event::new(1, "wx1", "1", &news, AT * SECOND, &settings);
        let body: Value = serde_json::from_str(&event.body).unwrap();
        let list = serde_json::json!({
            "TemplateId": "7", "MsgID": u64::MAX, "ErrorCode": -1, "ErrorStatus": "refuse \"me\"",
        });
        assert_eq!((&body["CreateTime"], &body["FromUserName"], &body["List"]), (&AT.into(), &"1".into(), &list));
    }

    #[test]
    fn asked_event_has_its_words_and_time() {
        let decisions = vec![crate::Decision { template_id: "a".into(), status: "acceptWithAudio".into() }];
        let popup = Push { decisions, created_at: Some(7), ..Push::new(POPUP.0, "openid-1") };
        let event = Event::new(1, "wx1", "openid-1", &News::Asked(popup), AT * SECOND, &Settings::default());
        let sent: Value = serde_json::from_str(&event.body).unwrap();
        assert_eq!((event.timestamp, &sent["CreateTime"]), (AT, &"7".into()), "the signature is made now");
        let item = serde_json::json!({
            "TemplateId": "a", "SubscribeStatusString": "acceptWithAudio", "PopupScene": "0",
        });
        assert_eq!(sent["List"], item);
        let revoked = News::Asked(Push::new("user_authorization_revoke", "openid-1"));
        let expected = r#""Event":"user_authorization_revoke","OpenID":"openid-1"}"#;
        assert_eq!(body(EventFormat::Json, &revoked), expected);
        let xml = body(EventFormat::Xml, &revoked);
        assert!(xml.ends_with("</Event><OpenID><![CDATA[openid-1]]></OpenID></xml>"), "{xml}");
    }
}
