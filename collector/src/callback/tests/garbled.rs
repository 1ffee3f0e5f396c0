//! Property tests with valid, mutated and random bodies: parsing gives a report or an error, and errors show no
//! content.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::*;

/// Used as the openid in every body, so that an error that quotes the body is found.
const CANARY: &str = "oC4nary7f3a";

/// A random event, which can be written in both formats.
#[derive(Debug, Clone)]
struct Sample {
    event: Event,
    created: i64,
    /// For each item: the template, and the values of the other fields.
    items: Vec<(String, [String; 3])>,
}

fn sample() -> impl Strategy<Value = Sample> {
    let template = "[!-~]{1,64}|[ -~é]{0,70}";
    let word = select(vec![
        "accept",
        "acceptWithAudio",
        "reject",
        "ban",
        "maybe",
        "0",
        "-1",
        "43101",
        "18446744073709551615",
        "1e3",
        "a < b & c",
    ]);
    let item = (template, [word.clone(), word.clone(), word]);
    let item = item.prop_map(|(template, words)| (template.trim_ascii().to_owned(), words.map(str::to_owned)));
    (select(Event::ALL.to_vec()), -1..=5_000_000_000_i64, vec(item, 1..5)).prop_map(|(event, created, items)| Sample {
        event,
        created,
        items,
    })
}

impl Sample {
    /// The names of the other fields of an item.
    fn names(&self) -> &'static [&'static str] {
        match self.event {
            Event::Popup => &["SubscribeStatusString", "PopupScene"],
            Event::Change => &["SubscribeStatusString"],
            Event::Sent => &["MsgID", "ErrorCode", "ErrorStatus"],
        }
    }

    fn fields<'a>(&self, item: &'a (String, [String; 3])) -> impl Iterator<Item = (&'static str, &'a str)> {
        let others = self.names().iter().copied().zip(item.1.iter().map(String::as_str));
        std::iter::once(("TemplateId", item.0.as_str())).chain(others)
    }

    fn xml(&self, cdata: bool) -> String {
        let element = |(name, text): (&str, &str)| match text {
            _ if cdata && !text.contains("]]>") => format!("<{name}><![CDATA[{text}]]></{name}>\n"),
            _ => format!("<{name}>{}</{name}>", quick_xml::escape::escape(text)),
        };
        let items = self
            .items
            .iter()
            .map(|item| format!("<List>{}</List>", self.fields(item).map(element).collect::<String>()));
        format!(
            "<xml>{}{}<CreateTime>{}</CreateTime><MsgType>event</MsgType>{}<{name}>{}</{name}></xml>",
            element(("ToUserName", "gh_1")),
            element(("FromUserName", CANARY)),
            self.created,
            element(("Event", self.event.name())),
            items.collect::<String>(),
            name = self.event.element(),
        )
    }

    fn json(&self) -> String {
        let items: Vec<_> = self.items.iter().map(|item| self.fields(item).collect::<BTreeMap<_, _>>()).collect();
        let list = if let [one] = &items[..] { serde_json::json!(one) } else { serde_json::json!(items) };
        let event = self.event.name();
        serde_json::json!({
            "ToUserName": "gh_1", "FromUserName": CANARY, "CreateTime": self.created.to_string(), "MsgType": "event",
            "Event": event, "List": list,
        })
        .to_string()
    }
}

/// A random change to the bytes of a body.
#[derive(Debug, Clone)]
enum Mutation {
    Flip(Index, u8),
    Cut(Index, Index),
    Insert(Index, String),
    Duplicate(Index, Index, Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let bits = r#"< > </ & ; &a; &#x41; <![CDATA[ ]]> <!-- <!DOCTYPE <? { [ " \u"#;
    prop_oneof![
        (any::<Index>(), 1..=255_u8).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        any::<(Index, Index)>().prop_map(|(from, to)| Mutation::Cut(from, to)),
        (any::<Index>(), prop_oneof![select(bits.split(' ').map(str::to_owned).collect::<Vec<_>>()), ".{0,8}"])
            .prop_map(|(at, text)| Mutation::Insert(at, text)),
        any::<(Index, Index, Index)>().prop_map(|(from, to, at)| Mutation::Duplicate(from, to, at)),
    ]
}

impl Mutation {
    fn apply(&self, body: &mut Vec<u8>) {
        let span = |from: &Index, to: &Index| {
            let (from, to) = (from.index(body.len() + 1), to.index(body.len() + 1));
            from.min(to)..from.max(to)
        };
        match self {
            Self::Flip(..) if body.is_empty() => {}
            Self::Flip(at, bits) => {
                let at = at.index(body.len());
                body[at] ^= bits;
            }
            Self::Cut(from, to) => {
                body.drain(span(from, to));
            }
            Self::Insert(at, text) => {
                let at = at.index(body.len() + 1);
                body.splice(at..at, text.bytes());
            }
            Self::Duplicate(from, to, at) => {
                let copy = body[span(from, to)].to_vec();
                let at = at.index(body.len() + 1);
                body.splice(at..at, copy);
            }
        }
    }
}

/// Asserts that an error is a sentence and shows no content of the body.
fn check(error: EventError) -> Result<(), TestCaseError> {
    let sentence = error.to_string();
    prop_assert!(sentence.starts_with("body") && sentence.contains(' ') && sentence.is_ascii(), "{sentence}");
    prop_assert!(!sentence.contains(CANARY) && !format!("{error:?}").contains(CANARY), "{sentence}");
    Ok(())
}

fn read(body: &[u8]) -> Result<(), TestCaseError> {
    match parse(body) {
        Err(error) => check(error)?,
        Ok(Report::Revocation { of, .. }) => of.err().map_or(Ok(()), check)?,
        Ok(Report::Other { name }) => {
            prop_assert!(name.is_none_or(|name| domain::visible(&name, 64).is_ok()))
        }
        Ok(Report::Subscription(pushed)) => {
            prop_assert!(pushed.items.len() <= MAX_ITEMS && pushed.created >= 0);
            for item in &pushed.items {
                match item {
                    Ok(item) => {
                        let decided = matches!(item, Item::Decision { status: Status::Accept | Status::Reject, .. });
                        prop_assert_eq!(pushed.once_key(item).is_some(), decided);
                    }
                    Err(error) => check(*error)?,
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn event_gives_the_same_report_in_both_formats(sample in sample(), cdata in any::<bool>()) {
        let (xml, json) = (sample.xml(cdata), sample.json());
        let report = parse(json.as_bytes());
        prop_assert_eq!(parse(xml.as_bytes()), report.clone(), "{} {}", xml, json);
        match report {
            Ok(Report::Subscription(pushed)) => prop_assert_eq!(pushed.items.len(), sample.items.len()),
            Ok(other) => prop_assert!(false, "{:?}", other),
            Err(error) => prop_assert_eq!(error.place, Location::Field("CreateTime")),
        }
    }

    #[test]
    fn random_bytes_give_a_report_or_an_error(start in select(vec!["", "<", "{", "<xml>", "{\"MsgType\":\"event\""]), rest in vec(any::<u8>(), 0..300)) {
        read(&[start.as_bytes(), &rest].concat())?;
    }

    #[test]
    fn mutated_event_gives_a_report_or_an_error(sample in sample(), as_xml in any::<bool>(), mutations in vec(mutation(), 1..6)) {
        let mut body = if as_xml { sample.xml(true) } else { sample.json() }.into_bytes();
        for mutation in mutations {
            mutation.apply(&mut body);
        }
        read(&body)?;
    }
}
