//! Valid bodies as WeChat posts them, and invalid ones.

mod garbled;
mod shapes;

use std::time::Duration;

use super::*;

/// A body in XML with the common fields and these items.
fn xml(event: Event, items: &str) -> String {
    format!(
        "<xml>\n<ToUserName><![CDATA[gh_123456789abc]]></ToUserName>\n<FromUserName><![CDATA[oUser]]></FromUserName>\n\
         <CreateTime>1610969440</CreateTime>\n<MsgType><![CDATA[event]]></MsgType>\n<Event><![CDATA[{}]]></Event>\n\
         <{element}>{items}</{element}>\n</xml>",
        event.name(),
        element = event.element(),
    )
}

fn json(event: Event, list: &str) -> String {
    format!(
        r#"{{"ToUserName":"gh_123456789abc","FromUserName":"oUser","CreateTime":"1610969440","MsgType":"event",
            "Event":"{}","List":{list}}}"#,
        event.name()
    )
}

fn pushed(body: &str) -> Pushed {
    match parse(body.as_bytes()) {
        Ok(Report::Subscription(pushed)) => pushed,
        other => panic!("{other:?} of {body}"),
    }
}

fn error(body: impl AsRef<[u8]>) -> String {
    parse(body.as_ref()).unwrap_err().to_string()
}

/// The error of the one invalid item of a body.
fn item_error(body: &str) -> String {
    let errors: Vec<EventError> = pushed(body).items.into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1, "{body}");
    errors[0].to_string()
}

fn template(text: &str) -> TemplateId {
    TemplateId::parse(text).unwrap()
}

fn decision(id: &str, status: Status, scene: impl Into<Option<u32>>) -> Result<Item, EventError> {
    Ok(Item::Decision { template: template(id), status, scene: scene.into() })
}

#[test]
fn popup_event_has_a_decision_per_template_in_both_formats() {
    let items = vec![decision("t-1", Status::Accept, 2), decision("t_2", Status::Reject, 0)];
    let expected =
        Pushed { event: Event::Popup, openid: OpenId::parse("oUser").unwrap(), created: 1_610_969_440, items };
    let from_xml = pushed(&xml(
        Event::Popup,
        "\n<List>\n<TemplateId><![CDATA[t-1]]></TemplateId>\
         <SubscribeStatusString><![CDATA[accept]]></SubscribeStatusString><PopupScene>2</PopupScene></List>\n<List>\
         <TemplateId>t_2</TemplateId><SubscribeStatusString>reject</SubscribeStatusString>\n\
         <PopupScene>\n <![CDATA[0]]> </PopupScene></List>",
    ));
    let from_json = pushed(&json(
        Event::Popup,
        r#"[{"TemplateId":"t-1","SubscribeStatusString":"accept","PopupScene":"2"},
            {"TemplateId":"t_2","SubscribeStatusString":"reject","PopupScene":0}]"#,
    ));
    assert_eq!((&from_xml, &from_json), (&expected, &expected));
}

#[test]
fn single_item_may_come_without_a_list() {
    let one = r#"{"TemplateId":"t","SubscribeStatusString":"reject"}"#;
    let expected = vec![decision("t", Status::Reject, None)];
    assert_eq!(pushed(&json(Event::Change, one)).items, expected);
    assert_eq!(pushed(&json(Event::Change, &format!("[{one}]"))).items, expected);
    let nested = json(Event::Change, &format!(r#"null,"SubscribeMsgChangeEvent":{{"List":{one}}}"#));
    assert_eq!(pushed(&nested).items, expected, "nested as in XML");
    let one = "<List><TemplateId>t</TemplateId><SubscribeStatusString>reject</SubscribeStatusString></List>";
    assert_eq!(pushed(&xml(Event::Change, one)).items, expected);
}

#[test]
fn sent_event_has_the_delivery_result_of_a_message() {
    let outcome = |msgid, error_code, status: &str| {
        Ok(Item::Outcome { template: template("t"), msgid, error_code, error_status: status.into() })
    };
    let refused = "<List><TemplateId>t</TemplateId><MsgID>1700827132819554304</MsgID><ErrorCode>43101</ErrorCode>\
                   <ErrorStatus><![CDATA[user refuse to accept the msg]]></ErrorStatus></List>";
    let expected = [outcome(1_700_827_132_819_554_304, 43101, "user refuse to accept the msg")];
    assert_eq!(pushed(&xml(Event::Sent, refused)).items, expected);

    let numbers = r#"[{"TemplateId":"t","MsgID":"18446744073709551615","ErrorCode":"0","ErrorStatus":"success"},
                      {"TemplateId":"t","MsgID":18446744073709551615,"ErrorCode":-1}]"#;
    let expected = [outcome(u64::MAX, 0, "success"), outcome(u64::MAX, -1, "")];
    assert_eq!(pushed(&json(Event::Sent, numbers)).items, expected, "message ids are not rounded");
}

#[test]
fn error_status_is_truncated_and_has_no_control_characters() {
    let words = format!("a\\nb\\u001b{}", "用".repeat(1000));
    let body = json(Event::Sent, &format!(r#"{{"TemplateId":"t","MsgID":1,"ErrorCode":1,"ErrorStatus":"{words}"}}"#));
    let Ok(Item::Outcome { error_status, .. }) = pushed(&body).items.remove(0) else { panic!("no outcome") };
    assert_eq!(*error_status, *format!("ab{}", "用".repeat(126)));
}

#[test]
fn unrelated_callback_bodies_are_reported_by_name() {
    let other = |name: &str| Ok(Report::Other { name: Some(name.into()) });
    assert_eq!(parse(b"<xml><MsgType>text</MsgType><Content>hi</Content></xml>"), other("text"));
    assert_eq!(parse(br#"{"MsgType":"event","Event":"wxa_media_check"}"#), other("wxa_media_check"));
    assert_eq!(
        parse(br#"{"MsgType":"event","Event":"SUBSCRIBE_MSG_POPUP_EVENT"}"#),
        other("SUBSCRIBE_MSG_POPUP_EVENT")
    );
    for name in ["", "two words", "é", &"x".repeat(65)] {
        let body = format!("<xml><MsgType>event</MsgType><Event>{name}</Event></xml>");
        assert_eq!(parse(body.as_bytes()), Ok(Report::Other { name: None }), "{name:?}");
    }
}

#[test]
fn whitespace_and_byte_order_mark_before_a_body_are_ignored() {
    for body in ["<xml><MsgType>text</MsgType></xml>", r#"{"MsgType":"text"}"#] {
        for start in ["", "\u{feff}", "\r\n\t ", "\u{feff}\n"] {
            assert!(parse(format!("{start}{body}\n").as_bytes()).is_ok(), "{start:?} {body}");
        }
    }
    let declared = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><!-- a --><xml><MsgType>text</MsgType></xml><!-- b -->";
    assert!(parse(declared.as_bytes()).is_ok());
}

#[test]
fn encrypted_body_is_refused_unless_it_has_the_plain_fields_too() {
    for body in ["<xml><ToUserName>gh</ToUserName><Encrypt><![CDATA[b64]]></Encrypt></xml>", r#"{"Encrypt":"b64"}"#] {
        assert_eq!(error(body), "body is encrypted: send the decrypted content of Encrypt instead");
    }
    assert!(parse(br#"{"Encrypt":"b64","MsgType":"text"}"#).is_ok(), "WeChat's compatible mode");
}

#[test]
fn only_predefined_xml_references_are_resolved() {
    let named = |name: &str| parse(format!("<xml><MsgType>{name}</MsgType></xml>").as_bytes());
    assert_eq!(named("&lt;&#65;&#x42;&amp;<![CDATA[&amp;]]>"), Ok(Report::Other { name: Some("<AB&&amp;".into()) }));
    for bad in ["&nbsp;", "&a;", "&#0;", "&#x110000;", "&;"] {
        assert!(named(bad).unwrap_err().to_string().starts_with("body has a reference to an entity"), "{bad}");
    }
    assert!(matches!(named("& "), Err(EventError { fault: Fault::NotXml(_), .. })));
}

#[test]
fn unreadable_bodies_give_specific_errors() {
    let long = format!("{{{}}}", " ".repeat(MAX_BODY));
    for (body, sentence) in [
        ("success", "body is neither XML nor JSON: it must begin with '<' or '{'"),
        ("[{}]", "body is neither XML nor JSON: it must begin with '<' or '{'"),
        (&long, "body must not be longer than 65536 bytes"),
        ("{\"a\":\n x}", "body is not well-formed JSON, or nested too deeply, at line 2, column 2"),
        ("{} {}", "body is not well-formed JSON, or nested too deeply, at line 1, column 4"),
        ("<xml><a></b></xml>", "body is not one well-formed <xml> element, at byte 8"),
        ("<xml><a>", "body is not one well-formed <xml> element, at byte 8"),
        ("<html></html>", "body is not one well-formed <xml> element, at byte 0"),
        ("<xml/><xml/>", "body is not one well-formed <xml> element, at byte 6"),
        ("<xml/>more", "body is not one well-formed <xml> element, at byte 6"),
        ("<xml/>", "body.MsgType is missing"),
        ("{}", "body.MsgType is missing"),
        (r#"{"MsgType":7}"#, "body.MsgType is not a string"),
        ("<xml><MsgType>event</MsgType></xml>", "body.Event is missing"),
    ] {
        assert_eq!(error(body), sentence, "{:?}", &body[..body.len().min(40)]);
    }
    assert_eq!(error(b"<xml>\xff</xml>"), "body is not UTF-8");
}

#[test]
fn fields_that_all_items_need_are_checked() {
    let good = json(Event::Popup, "[]");
    assert!(pushed(&good).items.is_empty());
    assert!(pushed(&xml(Event::Popup, "")).items.is_empty() && pushed(&xml(Event::Popup, "<List/>")).items.is_empty());
    for (from, to, sentence) in [
        ("FromUserName", "From", "body.FromUserName is missing"),
        ("\"oUser\"", "7", "body.FromUserName is not a string"),
        ("oUser", "", "body.FromUserName must not be empty"),
        ("oUser", "o User", "body.FromUserName must consist of visible ASCII characters, without spaces"),
        ("CreateTime", "Time", "body.CreateTime is missing"),
        ("1610969440", "soon", "body.CreateTime is not a whole number"),
        ("1610969440", "+1", "body.CreateTime is not a whole number"),
        ("1610969440", "-1", "body.CreateTime is out of range"),
        ("1610969440", "1610969440000", "body.CreateTime is out of range"),
        ("\"List\"", "\"Lists\"", "body.List is missing"),
        ("[]", "null", "body.List is not an object with fields"),
        ("[]", "[],\"SubscribeMsgPopupEvent\":7", "body.SubscribeMsgPopupEvent is not an object with fields"),
        ("[]", "[],\"SubscribeMsgPopupEvent\":{}", "body.List is missing"),
    ] {
        assert_eq!(error(good.replace(from, to)), sentence);
    }
    let twice = xml(Event::Popup, "").replace("<ToUserName>", "<FromUserName>x</FromUserName><ToUserName>");
    assert_eq!(error(twice), "body.FromUserName is not a string", "of two values, none is chosen");
}

#[test]
fn invalid_item_is_reported_by_place_and_others_are_kept() {
    let good = r#"{"TemplateId":"t","MsgID":"1","ErrorCode":"0"}"#;
    for (from, to, sentence) in [
        ("\"t\"", "\"\"", "body.List[1].TemplateId must not be empty"),
        ("\"t\"", "\"a b\"", "body.List[1].TemplateId must consist of visible ASCII characters, without spaces"),
        ("TemplateId", "Template", "body.List[1].TemplateId is missing"),
        ("\"1\"", "\"1.0\"", "body.List[1].MsgID is not a whole number"),
        ("\"1\"", "1.5", "body.List[1].MsgID is not a whole number"),
        ("\"1\"", "null", "body.List[1].MsgID is not a whole number"),
        ("\"1\"", "-1", "body.List[1].MsgID is out of range"),
        ("\"1\"", "\"18446744073709551616\"", "body.List[1].MsgID is out of range"),
        ("\"1\"", "18446744073709551616", "body.List[1].MsgID is out of range"),
        ("\"0\"", "2147483648", "body.List[1].ErrorCode is out of range"),
        ("ErrorCode", "Code", "body.List[1].ErrorCode is missing"),
        ("\"0\"", "0,\"ErrorStatus\":0", "body.List[1].ErrorStatus is not a string"),
        (good, "[]", "body.List[1] is not an object with fields"),
    ] {
        let body = json(Event::Sent, &format!("[{good},{},{good}]", good.replace(from, to)));
        assert_eq!(item_error(&body), sentence);
        assert_eq!(pushed(&body).items.iter().filter(|item| item.is_ok()).count(), 2);
    }
    let long = json(Event::Sent, &good.replace("\"t\"", &format!("\"{}\"", "t".repeat(65))));
    assert_eq!(item_error(&long), "body.List[0].TemplateId must not be longer than 64 bytes");
}

#[test]
fn each_word_of_wechat_is_a_status_and_any_other_a_bad_item() {
    let item = |word: &str| format!(r#"{{"TemplateId":"t","SubscribeStatusString":"{word}"}}"#);
    for (word, status) in [
        ("accept", Status::Accept),
        ("acceptWithAudio", Status::Accept),
        ("acceptWithAlert", Status::Accept),
        ("acceptWithForcePush", Status::Accept),
        ("reject", Status::Reject),
        ("ban", Status::NotAsked),
        ("filter", Status::NotAsked),
    ] {
        assert_eq!(pushed(&json(Event::Popup, &item(word))).items, [decision("t", status, None)], "{word}");
        let change = json(Event::Change, &item(word));
        if status == Status::Accept {
            let sentence = "body.List[0].SubscribeStatusString is not reject, the only status of this event";
            assert_eq!(item_error(&change), sentence, "{word}");
        } else {
            assert_eq!(pushed(&change).items, [decision("t", status, None)], "{word}");
        }
    }
    let unknown =
        "body.List[0].SubscribeStatusString is not a word that WeChat documents, such as accept, reject or ban";
    for (event, word) in [(Event::Popup, "maybe"), (Event::Popup, "Accept"), (Event::Popup, ""), (Event::Change, "no")]
    {
        assert_eq!(item_error(&json(event, &item(word))), unknown, "{word}");
    }
    let scene = json(Event::Popup, r#"{"TemplateId":"t","SubscribeStatusString":"accept","PopupScene":"x"}"#);
    assert_eq!(item_error(&scene), "body.List[0].PopupScene is not a whole number");
}

#[test]
fn number_of_items_of_an_event_is_bounded() {
    let list = |count| json(Event::Popup, &format!("[{}]", vec!["0"; count].join(",")));
    assert_eq!(pushed(&list(MAX_ITEMS)).items.len(), MAX_ITEMS);
    assert_eq!(error(list(MAX_ITEMS + 1)), "body.List must not have more than 100 items");
}

#[test]
fn deep_nesting_and_entity_expansion_fail_quickly() {
    let deep = |open: &str, close: &str, count: usize| format!("{}{}", open.repeat(count), close.repeat(count));
    let fits = |text: String| -> String { text.chars().take(MAX_BODY).collect() };
    let laughs =
        "<!DOCTYPE xml [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]><xml><MsgType>&b;</MsgType></xml>";
    for (body, sentence) in [
        (deep("<xml>", "</xml>", 5000), "body is nested too deeply, at byte 80"),
        (deep("{\"a\":", "}", 5000), "body is not well-formed JSON, or nested too deeply, at line 1, column 636"),
        (fits(format!("{{\"a\":{}", "[".repeat(MAX_BODY))), "body is not well-formed JSON, or nested too deeply"),
        (fits("<xml ".to_owned() + &"a='".repeat(MAX_BODY)), "body is not one well-formed <xml> element, at byte 0"),
        (fits("<xml>".to_owned() + &"<a/>".repeat(MAX_BODY)), "body is not one well-formed <xml> element"),
        (fits("<xml>".to_owned() + &"&#65;".repeat(MAX_BODY)), "body is not one well-formed <xml> element"),
        (laughs.to_owned(), "body has a document type, which WeChat never sends, at byte 0"),
    ] {
        let start = testing::cpu_time();
        let error = error(&body);
        assert!(error.starts_with(sentence), "{error}");
        let took = testing::cpu_time() - start;
        assert!(took < Duration::from_secs(1), "{error}: {took:?}");
    }
}

#[test]
fn errors_and_debug_output_do_not_show_the_user() {
    let body = json(Event::Popup, r#"{"TemplateId":"t","SubscribeStatusString":"oUser"}"#);
    assert!(!format!("{:?}", pushed(&body)).contains("oUser"));
}
