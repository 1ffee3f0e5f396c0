//! What WeChat pushes: every shape and word, in any order, repeated, over two replicas. And users who are erased.

use server::proto::{EventAction, GetStockRequest};
use testing::Redis;

use crate::fixture::*;

use EventAction::{Duplicate, Erased, Granted, Ignored, Outdated, Refused, Voided};

/// A body in JSON with the common fields. The other fields are given as they are in JSON.
fn body(event: &str, created: i64, rest: &str) -> String {
    format!(
        r#"{{"ToUserName":"gh_1","FromUserName":"oUser","CreateTime":{created},"MsgType":"event","Event":"{event}",{rest}}}"#
    )
}

fn xml(event: &str, created: i64, rest: &str) -> String {
    format!(
        "<xml><ToUserName><![CDATA[gh_1]]></ToUserName><FromUserName><![CDATA[oUser]]></FromUserName>\
         <CreateTime>{created}</CreateTime><MsgType><![CDATA[event]]></MsgType><Event><![CDATA[{event}]]></Event>\
         {rest}</xml>"
    )
}

/// The messages that are available to the user, by template.
async fn messages(client: &mut Client) -> Vec<(String, u32)> {
    let kinds = inventory(client, "oUser").await.kinds;
    kinds.into_iter().map(|kind| (kind.template_id, kind.messages)).collect()
}

fn granted(grants: &[(&str, u32)]) -> Vec<(String, u32)> {
    grants.iter().map(|(template, messages)| ((*template).to_owned(), *messages)).collect()
}

#[tokio::test]
async fn every_shape_of_an_event_grants_and_voids() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let (popup, change) = ("subscribe_msg_popup_event", "subscribe_msg_change_event");
    let items = r#"[{"TemplateId":"t1","SubscribeStatusString":"accept","PopupScene":"0"},
                    {"TemplateId":"t2","SubscribeStatusString":"accept","PopupScene":0}]"#;
    let of = |id: &str, word: &str| {
        format!("<List><TemplateId>{id}</TemplateId><SubscribeStatusString>{word}</SubscribeStatusString></List>")
    };
    let two = of("t1", "accept") + &of("t2", "accept");
    let accepts = [
        |at, items: &str, _: &str| body("subscribe_msg_popup_event", at, &format!(r#""List":{items}"#)),
        |at, items: &str, _: &str| {
            body("subscribe_msg_popup_event", at, &format!(r#""SubscribeMsgPopupEvent":{items}"#))
        },
        |at, items: &str, _: &str| {
            body("subscribe_msg_popup_event", at, &format!(r#""SubscribeMsgPopupEvent":{{"List":{items}}}"#))
        },
        |at, _: &str, two: &str| {
            let list = format!("<SubscribeMsgPopupEvent>{two}</SubscribeMsgPopupEvent>");
            xml("subscribe_msg_popup_event", at, &list)
        },
    ];
    let item = r#"{"TemplateId":"t1","SubscribeStatusString":"reject"}"#;
    let rejects: [(&str, String); 7] = [
        (change, format!(r#""List":{item}"#)),
        (change, format!(r#""List":[{item}]"#)),
        (change, format!(r#""SubscribeMsgChangeEvent":[{item}]"#)),
        (change, format!(r#""SubscribeMsgPopupEvent":[{item}]"#)),
        (popup, format!(r#""SubscribeMsgPopupEvent":[{item}]"#)),
        (change, format!("<SubscribeMsgChangeEvent>{}</SubscribeMsgChangeEvent>", of("t1", "reject"))),
        (change, format!("<SubscribeMsgPopupEvent>{}</SubscribeMsgPopupEvent>", of("t1", "reject"))),
    ];
    let start = testing::now() - 1000;
    for ((event, rest), at) in rejects.iter().zip((start..).step_by(10)) {
        for (accept, at) in accepts.iter().zip(at..) {
            let told = report(&mut client, &accept(at, items, &two)).await.unwrap();
            assert_eq!(actions(&told), [(Granted, 1), (Granted, 1)], "{at}");
        }
        let reject = if rest.starts_with('<') { xml(event, at + 5, rest) } else { body(event, at + 5, rest) };
        for expected in [(Voided, 4), (Duplicate, 0)] {
            let told = report(&mut client, &reject).await.unwrap();
            assert_eq!((told.event.as_str(), actions(&told)), (*event, vec![expected]), "{reject}");
        }
    }
    assert_eq!(messages(&mut client).await, granted(&[("t2", 28)]));
    let ledger = client.get_stock(GetStockRequest { app_id: APP.into() }).await.unwrap().into_inner().ledger.unwrap();
    assert_eq!((ledger.collected, ledger.discarded, ledger.available), (56, 28, 28));
}

#[tokio::test]
async fn every_acceptance_grants_and_what_wechat_decides_changes_nothing() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let now = testing::now();
    let words = ["accept", "acceptWithAudio", "acceptWithAlert", "acceptWithForcePush", "ban", "filter", "maybe"];
    let items: Vec<_> = words.iter().map(|word| (*word, *word)).collect();
    let told = report(&mut client, &popup(now, &items)).await.unwrap();
    let accepted = [(Granted, 1); 4];
    assert_eq!(actions(&told), [&accepted[..], &[(Ignored, 0), (Ignored, 0), (Refused, 0)]].concat());
    assert_eq!(told.results[4].template_id, "ban");
    assert!(told.results[6].message.contains("SubscribeStatusString"), "{told:?}");
    let again = [&[(Duplicate, 0); 4][..], &[(Ignored, 0), (Ignored, 0), (Refused, 0)]].concat();
    assert_eq!(actions(&report(&mut client, &popup(now, &items)).await.unwrap()), again);
    // A template that the user accepted before is neither added to nor revoked.
    let told = report(&mut client, &popup(now, &[("accept", "ban"), ("acceptWithAudio", "filter")])).await.unwrap();
    assert_eq!(actions(&told), [(Ignored, 0), (Ignored, 0)]);
    let stored = inventory(&mut client, "oUser").await;
    assert_eq!((stored.messages, stored.kinds.len()), (4, 4));
}

#[tokio::test]
async fn decisions_count_by_their_time_in_any_order_of_arrival() {
    let redis = Redis::start();
    let (_first, mut first) = collector(&redis, &[]).await;
    let (_second, mut second) = collector(&redis, &[]).await;
    let start = testing::now() - 600;
    let accept = |at: i64| popup(start + at, &[("t", "accept")]);
    let reject = |at: i64| popup(start + at, &[("t", "reject")]);
    // The rejection arrives first.
    assert_eq!(actions(&report(&mut first, &reject(20)).await.unwrap()), [(Voided, 0)]);
    for _ in 0..2 {
        assert_eq!(actions(&report(&mut second, &accept(10)).await.unwrap()), [(Outdated, 0)]);
        assert_eq!(actions(&report(&mut first, &accept(10)).await.unwrap()), [(Outdated, 0)]);
    }
    assert!(messages(&mut first).await.is_empty());
    // Two newer acceptances arrive before a rejection that was created in between.
    assert_eq!(actions(&report(&mut second, &accept(50)).await.unwrap()), [(Granted, 1)]);
    assert_eq!(actions(&report(&mut first, &accept(30)).await.unwrap()), [(Granted, 1)]);
    assert_eq!(actions(&report(&mut first, &reject(40)).await.unwrap()), [(Voided, 1)]);
    assert_eq!(messages(&mut second).await, granted(&[("t", 1)]));
    // WeChat repeats all of them, to either replica.
    for client in [&mut first, &mut second] {
        for repeated in [accept(30), accept(10)] {
            assert_eq!(actions(&report(client, &repeated).await.unwrap()), [(Outdated, 0)]);
        }
        for repeated in [reject(20), accept(50), reject(40)] {
            assert_eq!(actions(&report(client, &repeated).await.unwrap()), [(Duplicate, 0)]);
        }
    }
    assert_eq!(messages(&mut second).await, granted(&[("t", 1)]));
    // A change event is a rejection like one in the popup.
    let item = r#""SubscribeMsgChangeEvent":[{"TemplateId":"t","SubscribeStatusString":"reject"}]"#;
    let change = body("subscribe_msg_change_event", start + 60, item);
    assert_eq!(actions(&report(&mut second, &change).await.unwrap()), [(Voided, 1)]);
    assert_eq!(actions(&report(&mut first, &accept(55)).await.unwrap()), [(Outdated, 0)]);
    assert!(messages(&mut first).await.is_empty());
}

#[tokio::test]
async fn user_who_takes_back_an_authorization_is_erased_if_the_app_says_so() {
    let redis = Redis::start();
    let (_erasing, mut erasing) = collector(&redis, &["--erase-on-revoke", APP]).await;
    let (_keeping, mut keeping) = collector(&redis, &[]).await;
    let now = testing::now();
    let user = r#""OpenID":"oUser","RevokeInfo":"1""#;
    for (event, at) in [("user_authorization_revoke", now), ("user_authorization_cancellation", now - 1)] {
        collect(&mut erasing, vec![form("oUser", "f1"), prepay("oUser", "wx1"), form("oOther", "f2")]).await.unwrap();
        report(&mut erasing, &popup(at - 10, &[(event, "accept")])).await.unwrap();
        let revoked = body(event, at, user);
        let ignored = report(&mut keeping, &revoked).await.unwrap();
        assert_eq!((ignored.event.as_str(), ignored.results.len()), (event, 0), "the app does not say so");
        assert_eq!(inventory(&mut keeping, "oUser").await.messages, 5);
        let told = report(&mut erasing, &revoked).await.unwrap();
        assert_eq!((told.event.as_str(), actions(&told)), (event, vec![(Erased, 5)]));
        assert_eq!(inventory(&mut erasing, "oUser").await.messages, 0);
        assert_eq!(inventory(&mut erasing, "oOther").await.messages, 1);
        // The event is repeated after the user has come back.
        collect(&mut erasing, vec![form("oUser", "f3")]).await.unwrap();
        let again = xml(event, at, "<OpenID><![CDATA[oUser]]></OpenID>");
        assert_eq!(actions(&report(&mut erasing, &again).await.unwrap()), [(Duplicate, 0)]);
        assert_eq!(inventory(&mut erasing, "oUser").await.messages, 1);
        let other = body(event, at, r#""OpenID":"oOther""#);
        assert_eq!(actions(&report(&mut erasing, &other).await.unwrap()), [(Erased, 1)]);
        let last = body(event, at - 2, user);
        assert_eq!(actions(&report(&mut erasing, &last).await.unwrap()), [(Erased, 1)]);
    }
    for (bad, field) in [
        (body("user_authorization_revoke", now, r#""Open":1"#), "body.OpenID"),
        (body("user_authorization_revoke", now - 25 * 3600, user), "body.CreateTime"),
    ] {
        let refused = report(&mut erasing, &bad).await.unwrap_err();
        assert_eq!((reason(&refused).as_str(), bad_fields(&refused)), ("INVALID_FIELDS", vec![field.to_owned()]));
        assert!(report(&mut keeping, &bad).await.unwrap().results.is_empty());
    }
}

#[tokio::test]
async fn whatever_else_wechat_pushes_is_ignored() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    for (body, event) in [
        (
            r#"{"FromUserName":"oUser","CreateTime":1,"MsgType":"event","Event":"user_enter_tempsession"}"#,
            "user_enter_tempsession",
        ),
        ("<xml><FromUserName>oUser</FromUserName><MsgType>text</MsgType><Content>hi</Content></xml>", "text"),
        (r#"{"MsgType":"event","Event":"user_info_modified","OpenID":"oUser"}"#, "user_info_modified"),
        ("", ""),
    ] {
        let told = report(&mut client, body).await.unwrap();
        assert_eq!((told.event.as_str(), told.results.len()), (event, 0), "{body}");
    }
}

#[tokio::test]
async fn verification_of_the_url_is_checked_by_its_signature() {
    let (redis, folder) = (Redis::start(), tempfile::tempdir().unwrap());
    let tokens = folder.path().join("tokens.toml");
    std::fs::write(&tokens, format!("[callback_tokens]\n{APP} = 'AAAAA'")).unwrap();
    let (_collector, mut client) = collector(&redis, &["--callback-tokens", tokens.to_str().unwrap()]).await;
    let (timestamp, nonce) = (testing::now().to_string(), "7".to_owned());
    let signed = server::proto::ReportEventsRequest {
        app_id: APP.into(),
        signature: signature("AAAAA", &timestamp, &nonce),
        body: Vec::new(),
        timestamp,
        nonce,
    };
    assert!(client.report_events(signed.clone()).await.unwrap().into_inner().results.is_empty());
    let forged = server::proto::ReportEventsRequest { nonce: "8".into(), ..signed };
    assert_eq!(reason(&client.report_events(forged).await.unwrap_err()), "BAD_SIGNATURE");
}
