//! Events that WeChat posts to an app's server: both formats, and the signature.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize, Serializer};
use sha1_smol::Sha1;

use crate::Settings;
use crate::clock::SECOND;
use crate::kept::Entry;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventFormat {
    /// `{"ToUserName": .., "List": ..}`. The list is an object if it has one item. Numbers are strings.
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
}

/// The fields of one item of the list, in WeChat's order.
type Item = Vec<(&'static str, String)>;

impl News {
    /// The name of the event, and of the element that holds the list in XML.
    fn names(&self) -> (&'static str, &'static str) {
        match self {
            Self::Popup { .. } => ("subscribe_msg_popup_event", "SubscribeMsgPopupEvent"),
            Self::Change { .. } => ("subscribe_msg_change_event", "SubscribeMsgChangeEvent"),
            Self::Sent { .. } => ("subscribe_msg_sent_event", "SubscribeMsgSentEvent"),
        }
    }

    fn items(&self) -> Vec<Item> {
        let answered = |template_id: &String, status: &str| {
            vec![("TemplateId", template_id.clone()), ("SubscribeStatusString", status.to_owned())]
        };
        match self {
            Self::Popup { templates, accepted } => {
                let status = if *accepted { "accept" } else { "reject" };
                let item = |template_id| {
                    let mut item = answered(template_id, status);
                    // Scene 0: a page of the mini program opened the pop-up.
                    item.push(("PopupScene", "0".to_owned()));
                    item
                };
                templates.iter().map(item).collect()
            }
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
        let head = vec![
            ("ToUserName", account(app_id)),
            ("FromUserName", openid.to_owned()),
            ("CreateTime", timestamp.to_string()),
            ("MsgType", "event".to_owned()),
            ("Event", event.to_owned()),
        ];
        let format = settings.callback_format;
        let body = match format {
            EventFormat::Json => json(&head, &news.items()),
            EventFormat::Xml => xml(&head, element, &news.items()),
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

/// Serializes fields as a JSON object, in their order.
struct Fields<'a>(&'a [(&'static str, String)]);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

fn json(head: &[(&'static str, String)], items: &[Item]) -> String {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum List<'a> {
        One(Fields<'a>),
        Several(Vec<Fields<'a>>),
    }
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(flatten)]
        head: Fields<'a>,
        #[serde(rename = "List")]
        list: List<'a>,
    }
    let list = match items {
        [only] => List::One(Fields(only)),
        several => List::Several(several.iter().map(|item| Fields(item)).collect()),
    };
    // Cannot fail: the body is only strings under the names of fields.
    serde_json::to_string(&Body { head: Fields(head), list }).unwrap_or_default()
}

fn xml(head: &[(&'static str, String)], element: &str, items: &[Item]) -> String {
    let mut text = String::from("<xml>");
    write_elements(&mut text, head);
    _ = write!(text, "<{element}>");
    for item in items {
        text.push_str("<List>");
        write_elements(&mut text, item);
        text.push_str("</List>");
    }
    _ = write!(text, "</{element}></xml>");
    text
}

/// Writes texts as character data, as WeChat does, and numbers without it.
fn write_elements(text: &mut String, fields: &[(&'static str, String)]) {
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
        let settings = Settings { callback_format: format, ..Settings::default() };
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
}
