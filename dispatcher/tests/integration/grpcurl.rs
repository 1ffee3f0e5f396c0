//! Manual sends with grpcurl and buf curl, through reflection, without proto files.

use serde_json::{Value, json};
use testing::{buf_curl, complained, grpcurl, now, printed};

use crate::fixture::{APP, Fixture};

const SEND: &str = "formid.v1.DispatcherService/SendTemplate";

#[tokio::test]
async fn grpcurl_lists_describes_and_sends() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 1).await;
    let address = dispatcher.address.to_string();
    let list = printed(grpcurl(&[&address, "list"]).await);
    assert!(list.contains("formid.v1.DispatcherService") && list.contains("grpc.health.v1.Health"), "{list}");
    let described = printed(grpcurl(&[&address, "describe", "formid.v1.DispatcherService"]).await);
    assert!(described.contains("rpc SendTemplate"), "{described}");
    let message = printed(grpcurl(&[&address, "describe", "formid.v1.SendTemplateRequest"]).await);
    assert!(message.contains("template_id"), "{message}");

    // `data` is copied verbatim from WeChat's documentation.
    let body = json!({
        "app_id": APP, "openid": "oUser", "template_id": "order-ready", "page": "index?foo=bar",
        "data": {"keyword1": {"value": "339208499"}, "keyword2": {"value": "2015年01月05日 12:30", "color": "#173177"}},
        "emphasis_keyword": "keyword1.DATA",
    });
    let sent: Value =
        serde_json::from_str(&printed(grpcurl(&["-d", &body.to_string(), &address, SEND]).await)).unwrap();
    assert_eq!((&sent["outcome"], &sent["attempts"]), (&json!("OUTCOME_DELIVERED"), &json!(1)));
    let deliveries = fixture.sandbox.deliveries(APP, &sandbox::Reading::default()).unwrap();
    assert_eq!(deliveries[0].data["keyword2"].value, "2015年01月05日 12:30");
    assert_eq!(deliveries[0].emphasis_keyword.as_deref(), Some("keyword1.DATA"));
}

#[tokio::test]
async fn buf_curl_sends() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 1).await;
    let body = json!({"app_id": APP, "openid": "oUser", "template_id": "t", "data": {"keyword1": {"value": "x"}}});
    let url = format!("http://{}/{SEND}", dispatcher.address);
    let sent = printed(buf_curl(&["--data", &body.to_string(), &url]).await);
    assert!(sent.contains("OUTCOME_DELIVERED"), "{sent}");
}

#[tokio::test]
async fn grpcurl_shows_why_a_send_failed() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.collect("oUser", "made-up", domain::Kind::FormId, 1, now()).await;
    let address = dispatcher.address.to_string();
    let send = async |body: Value| {
        let output = grpcurl(&["-d", &body.to_string(), &address, SEND]).await;
        assert!(!output.status.success());
        complained(&output)
    };
    let empty = send(json!({"app_id": APP, "openid": "oUser", "page": "p".repeat(2000)})).await;
    for part in ["InvalidArgument", "template_id must not be empty", "page must not be longer than 1024 bytes"] {
        assert!(empty.contains(part), "{part} in {empty}");
    }
    let nothing = send(json!({"app_id": APP, "openid": "oNobody", "template_id": "t"})).await;
    assert!(
        nothing.contains("FailedPrecondition") && nothing.contains("no credential in stock for this user"),
        "{nothing}"
    );
    assert!(nothing.contains(r#""reason":"NO_CREDENTIAL""#), "{nothing}");
    let refused = send(json!({"app_id": APP, "openid": "oUser", "template_id": "t"})).await;
    assert!(refused.contains("WeChat refused") && refused.contains("40003"), "{refused}");
    let stranger = send(json!({"app_id": "wxfeedfeedfeedfeed", "openid": "oUser", "template_id": "t"})).await;
    assert!(stranger.contains("NotFound") && stranger.contains("app_id"), "{stranger}");
}

#[tokio::test]
async fn values_are_strings_and_neither_numbers_nor_null() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    let address = dispatcher.address.to_string();
    for (value, told) in [(json!(7), "expecting string"), (json!(null), "data.number1.value must not be empty")] {
        let data = json!({"number1": {"value": value}});
        let body = json!({"app_id": APP, "openid": "oUser", "template_id": "t", "data": data});
        let output = grpcurl(&["-d", &body.to_string(), &address, SEND]).await;
        assert!(!output.status.success() && complained(&output).contains(told), "{}", complained(&output));
    }
}

#[tokio::test]
async fn grpcurl_broadcasts_watches_and_lists_the_undelivered() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oReached", 1).await;
    fixture.submit("oRefused", 1).await;
    let mut rule = sandbox::Rule { errcode: Some(43101), ..sandbox::Rule::new(sandbox::FaultKind::Answer) };
    rule.matching.openid = Some("oRefused".into());
    fixture.sandbox.add_faults(vec![rule]).unwrap();
    let address = dispatcher.address.to_string();
    let call = async |method: &str, body: Value| {
        let method = format!("formid.v1.DispatcherService/{method}");
        printed(grpcurl(&["-d", &body.to_string(), &address, &method]).await)
    };
    let body = json!({
        "app_id": APP, "name": "spring", "template_id": "t", "data": {"keyword1": {"value": "春"}},
        "all_reachable": {}, "min_interval": "3600s",
    });
    let started: Value = serde_json::from_str(&call("Broadcast", body).await).unwrap();
    let id = started["broadcast"]["broadcastId"].as_str().unwrap();
    let named = json!({"app_id": APP, "broadcast_id": id});
    let watch = json!({"app_id": APP, "broadcast_id": id, "interval": "0.2s"});
    let watched = call("WatchBroadcast", watch).await;
    assert!(watched.contains("BROADCAST_STATE_DONE") && watched.contains(r#""refusedByUser": "1""#), "{watched}");
    assert!(watched.contains(r#""name": "spring""#) && watched.contains(r#""delivered": "1""#), "{watched}");
    let listed: Value = serde_json::from_str(&call("ListUndelivered", named).await).unwrap();
    assert_eq!(listed, json!({"undelivered": [{"openid": "oRefused", "reason": "USER_REFUSED", "errcode": 43101}]}));
}
