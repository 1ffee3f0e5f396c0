//! The shapes in which WeChat's documents, old and new, show its events.

use super::*;

/// A body in JSON with the common fields, and the others as they are given.
fn body(event: &str, rest: &str) -> String {
    format!(
        r#"{{"ToUserName":"gh_123456789abc","FromUserName":"oUser","CreateTime":1610969440,"MsgType":"event",
            "Event":"{event}",{rest}}}"#
    )
}

#[test]
fn popup_event_has_the_same_items_in_every_shape() {
    let one = r#"{"TemplateId":"t1","SubscribeStatusString":"accept","PopupScene":"0"}"#;
    let two = r#"{"TemplateId":"t2","SubscribeStatusString":"reject","PopupScene":1}"#;
    let xml_of = |id: &str, word: &str, scene: u8| {
        format!(
            "<List><TemplateId><![CDATA[{id}]]></TemplateId><SubscribeStatusString><![CDATA[{word}]]>\
             </SubscribeStatusString><PopupScene>{scene}</PopupScene></List>"
        )
    };
    let (xml_one, xml_two) = (xml_of("t1", "accept", 0), xml_of("t2", "reject", 1));
    let json = |rest: &str| body("subscribe_msg_popup_event", rest);
    let items = [decision("t1", Status::Accept, 0), decision("t2", Status::Reject, 1)];
    for (shape, count) in [
        (xml(Event::Popup, &xml_one), 1),
        (xml(Event::Popup, &format!("{xml_one}\n{xml_two}")), 2),
        (json(&format!(r#""List":{one}"#)), 1),
        (json(&format!(r#""List":[{one}]"#)), 1),
        (json(&format!(r#""List":[{one},{two}]"#)), 2),
        (json(&format!(r#""SubscribeMsgPopupEvent":[{one},{two}]"#)), 2),
        (json(&format!(r#""SubscribeMsgPopupEvent":{one}"#)), 1),
        (json(&format!(r#""SubscribeMsgPopupEvent":{{"List":{one}}}"#)), 1),
        (json(&format!(r#""SubscribeMsgPopupEvent":{{"List":[{one},{two}]}}"#)), 2),
        (json(r#""SubscribeMsgPopupEvent":[]"#), 0),
    ] {
        let pushed = pushed(&shape);
        assert_eq!(pushed.items, items[..count], "{shape}");
        assert_eq!((pushed.event, pushed.openid.as_str(), pushed.created), (Event::Popup, "oUser", 1_610_969_440));
    }
}

#[test]
fn change_event_may_be_named_as_the_popup_event() {
    let one = r#"{"TemplateId":"t","SubscribeStatusString":"reject"}"#;
    let xml_one = "<List><TemplateId>t</TemplateId><SubscribeStatusString>reject</SubscribeStatusString></List>";
    let json = |rest: String| body("subscribe_msg_change_event", &rest);
    let new = xml(Event::Change, xml_one);
    let old = new.replace("SubscribeMsgChangeEvent", "SubscribeMsgPopupEvent");
    assert_ne!(new, old);
    for (shape, count) in [
        (new.clone(), 1),
        (old.clone(), 1),
        (old.replace(xml_one, &xml_one.repeat(3)), 3),
        (json(format!(r#""List":{one}"#)), 1),
        (json(format!(r#""List":[{one},{one}]"#)), 2),
        (json(format!(r#""SubscribeMsgChangeEvent":[{one},{one}]"#)), 2),
        (json(format!(r#""SubscribeMsgPopupEvent":[{one}]"#)), 1),
        (json(format!(r#""SubscribeMsgPopupEvent":{{"List":[{one}]}}"#)), 1),
        (json(format!(r#""SubscribeMsgPopupEvent":[],"SubscribeMsgChangeEvent":[{one}]"#)), 1),
    ] {
        let pushed = pushed(&shape);
        assert_eq!(pushed.items, vec![decision("t", Status::Reject, None); count], "{shape}");
        assert_eq!(pushed.event, Event::Change, "{shape}");
    }
    // Only of a change event.
    let popup = body("subscribe_msg_popup_event", &format!(r#""SubscribeMsgChangeEvent":[{one}]"#));
    assert_eq!(error(popup), "body.List is missing");
}

#[test]
fn sent_event_has_its_result_in_every_shape() {
    let json = |rest: &str| body("subscribe_msg_sent_event", rest);
    let texts = r#"{"TemplateId":"t","MsgID":"1700827132819554304","ErrorCode":"43101","ErrorStatus":"refused"}"#;
    let numbers = r#"{"TemplateId":"t","MsgID":1700827132819554304,"ErrorCode":43101,"ErrorStatus":"refused"}"#;
    let from_xml = xml(
        Event::Sent,
        "<List><TemplateId><![CDATA[t]]></TemplateId><MsgID>1700827132819554304</MsgID><ErrorCode>43101</ErrorCode>\
         <ErrorStatus><![CDATA[refused]]></ErrorStatus></List>",
    );
    let outcome = Item::Outcome {
        template: template("t"),
        msgid: 1_700_827_132_819_554_304,
        error_code: 43101,
        error_status: "refused".into(),
    };
    let mut shapes = vec![from_xml];
    for item in [texts, numbers] {
        shapes.extend([
            json(&format!(r#""List":{item}"#)),
            json(&format!(r#""List":[{item}]"#)),
            json(&format!(r#""SubscribeMsgSentEvent":{{"List":{item}}}"#)),
            json(&format!(r#""SubscribeMsgSentEvent":{{"List":[{item}]}}"#)),
            json(&format!(r#""SubscribeMsgSentEvent":[{item}]"#)),
        ]);
    }
    for shape in shapes {
        assert_eq!(pushed(&shape).items, [Ok(outcome.clone())], "{shape}");
    }
}

#[test]
fn revocation_names_its_user_in_both_formats() {
    let expected = Revoked { openid: OpenId::parse("oReal").unwrap(), created: 1_610_969_440 };
    for name in REVOCATIONS {
        let json = body(name, r#""OpenID":"oReal","RevokeInfo":"1","AppID":"wx1""#);
        let xml = format!(
            "<xml><ToUserName><![CDATA[gh_1]]></ToUserName><FromUserName><![CDATA[oUser]]></FromUserName>\
             <CreateTime>1610969440</CreateTime><MsgType><![CDATA[event]]></MsgType><Event><![CDATA[{name}]]></Event>\
             <OpenID><![CDATA[oReal]]></OpenID><RevokeInfo><![CDATA[1]]></RevokeInfo></xml>"
        );
        for shape in [&json, &xml] {
            assert_eq!(parse(shape.as_bytes()), Ok(Report::Revocation { name, of: Ok(expected.clone()) }), "{shape}");
        }
        let old = json.replace("oReal", "undefined");
        let Ok(Report::Revocation { of: Ok(revoked), .. }) = parse(old.as_bytes()) else { panic!("{old}") };
        assert_eq!(revoked.openid.as_str(), "undefined", "a user whom an older release took in");
        for (from, to, sentence) in [
            ("\"OpenID\"", "\"Openid\"", "body.OpenID is missing"),
            ("oReal", "o Real", "body.OpenID must consist of visible ASCII characters, without spaces"),
            ("1610969440", "\"soon\"", "body.CreateTime is not a whole number"),
        ] {
            let Ok(Report::Revocation { of, .. }) = parse(json.replace(from, to).as_bytes()) else { panic!("{to}") };
            assert_eq!(of.unwrap_err().to_string(), sentence);
        }
    }
}

#[test]
fn whatever_else_wechat_pushes_is_reported_by_its_name() {
    let other = |name: &str| Ok(Report::Other { name: Some(name.into()) });
    for (body, name) in [
        ("<xml><FromUserName>o</FromUserName><MsgType><![CDATA[text]]></MsgType><Content>hi</Content></xml>", "text"),
        (r#"{"FromUserName":"o","MsgType":"image","PicUrl":"http://a/b","MediaId":"m"}"#, "image"),
        (r#"{"FromUserName":"o","MsgType":"event","Event":"user_enter_tempsession"}"#, "user_enter_tempsession"),
        (r#"{"FromUserName":"o","MsgType":"event","Event":"user_info_modified"}"#, "user_info_modified"),
    ] {
        assert_eq!(parse(body.as_bytes()), other(name));
    }
    for verification in ["", " \n", "\u{feff}"] {
        assert_eq!(parse(verification.as_bytes()), Ok(Report::Other { name: None }));
    }
}

#[test]
fn user_that_stands_for_a_missing_value_is_refused() {
    for (text, sentence) in [
        ("undefined", "body.FromUserName must not be \"undefined\", which programs write for a missing value"),
        ("null", "body.FromUserName must not be \"null\", which programs write for a missing value"),
    ] {
        assert_eq!(error(json(Event::Popup, "[]").replace("oUser", text)), sentence);
    }
    let item = r#"{"TemplateId":"NaN","SubscribeStatusString":"accept"}"#;
    let sentence = "body.List[0].TemplateId must not be \"NaN\", which programs write for a missing value";
    assert_eq!(item_error(&json(Event::Popup, item)), sentence);
}
