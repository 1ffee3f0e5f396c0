//! The events that WeChat posts to the app's server, and how it repeats them.
#![allow(clippy::unwrap_used, reason = "a failed step of a test should end it")]

mod fixture;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use fixture::*;
use sandbox::{Decision, EventCounts, EventFormat, EventShape, Granting, Push, Reading, Settings, Subscription};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// One request that the app's server received.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    query: BTreeMap<String, String>,
    content_type: String,
    body: String,
}

/// The app's server. It stores the requests it receives, and refuses the first `refusals` of them.
#[derive(Default)]
struct Server {
    told: Mutex<Vec<Told>>,
    refusals: Mutex<u32>,
    slow: Duration,
}

impl Server {
    async fn start(self) -> (Arc<Self>, String) {
        let server = Arc::new(self);
        let router = Router::new().route("/events", post(listen)).with_state(Arc::clone(&server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/events?from=sandbox", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (server, url)
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    fn bodies(&self) -> Vec<Value> {
        self.told().iter().map(|told| serde_json::from_str(&told.body).unwrap()).collect()
    }
}

async fn listen(
    State(server): State<Arc<Server>>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    let content_type = headers["content-type"].to_str().unwrap().to_owned();
    server.told.lock().unwrap().push(Told { query, content_type, body });
    tokio::time::sleep(server.slow).await;
    let mut refusals = server.refusals.lock().unwrap();
    if *refusals == 0 {
        return StatusCode::NO_CONTENT;
    }
    *refusals -= 1;
    StatusCode::INTERNAL_SERVER_ERROR
}

/// A sandbox that posts its events to this server.
async fn telling(server: Server, more: Value) -> (WeChat, Arc<Server>) {
    let (server, url) = server.start().await;
    let mut fields = json!({"callback_url": url, "callback_token": "AAAAA", "callback_retry_ms": 10});
    fields.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
    (wechat(settings(fields)).await, server)
}

fn taken(wechat: &WeChat, pushed: u64) -> bool {
    wechat.books().events.pushed == pushed
}

#[tokio::test]
async fn app_gets_events_of_its_users_answers_and_of_its_messages() {
    let (wechat, server) = telling(Server::default(), json!({})).await;
    let token = wechat.stable_token(false).await;
    let templates = |ids: [&str; 2]| ids.map(|id| Granting::new(USER, id)).to_vec();
    wechat.sandbox.grant(APP, templates(["template", "other"])).unwrap();
    let answer = wechat.subscribe_answer(&token, wechat.subscription(USER)).await;
    wechat.sandbox.reject(APP, vec![Subscription::new(USER, "other")]).unwrap();
    wechat.sandbox.withdraw(APP, vec![Subscription::new(USER, "template")]).unwrap();
    eventually("all events are accepted", || taken(&wechat, 4)).await;

    let bodies = server.bodies();
    let events: Vec<&str> = bodies.iter().map(|body| body["Event"].as_str().unwrap()).collect();
    let expected = [
        "subscribe_msg_popup_event",
        "subscribe_msg_sent_event",
        "subscribe_msg_popup_event",
        "subscribe_msg_change_event",
    ];
    assert_eq!(events, expected, "the events of one user arrive in order");
    for body in &bodies {
        assert_eq!((&body["FromUserName"], &body["MsgType"]), (&json!(USER), &json!("event")));
        assert!(body["ToUserName"].as_str().unwrap().starts_with("gh_"), "{body}");
        assert!(unix_seconds() - body["CreateTime"].as_str().unwrap().parse::<u64>().unwrap() < 10);
    }
    let item = |template: &str, status: &str| json!({"TemplateId": template, "SubscribeStatusString": status, "PopupScene": "0"});
    assert_eq!(bodies[0]["List"], json!([item("template", "accept"), item("other", "accept")]));
    let msgid = answer["msgid"].to_string();
    let sent = json!({"TemplateId": "template", "MsgID": msgid, "ErrorCode": "0", "ErrorStatus": "success"});
    assert_eq!(bodies[1]["List"], sent);
    assert_eq!(bodies[2]["List"], item("other", "reject"));
    assert_eq!(bodies[3]["List"], json!({"TemplateId": "template", "SubscribeStatusString": "reject"}));
}

#[tokio::test]
async fn stored_events_equal_posted_ones_and_need_no_callback() {
    let (wechat, server) = telling(Server::default(), json!({"callback_format": "xml"})).await;
    wechat.grant("a", 1);
    wechat.grant("b", 1);
    eventually("both events are accepted", || taken(&wechat, 2)).await;
    let events = wechat.sandbox.events(APP, &Reading::default()).unwrap();
    let mut told = server.told();
    told.sort_by_key(|told| told.body.contains("CDATA[b]"));
    assert_eq!((events.len(), told.len()), (2, 2));
    for (event, told) in events.iter().zip(&told) {
        assert_eq!((event.format, &event.body), (EventFormat::Xml, &told.body));
        let timestamp = event.timestamp.to_string();
        let expected =
            [("from", "sandbox"), ("nonce", &event.nonce), ("signature", &event.signature), ("timestamp", &timestamp)];
        assert_eq!(told.query, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert!(told.content_type.starts_with("text/xml"), "{told:?}");
    }

    wechat.sandbox.set_settings(settings(json!({"keep_events": 1}))).unwrap();
    wechat.grant("c", 2);
    let answer = wechat.get(&format!("/sandbox/events?app_id={APP}&after=2")).await;
    let events = answer["events"].as_array().unwrap();
    assert_eq!((events.len(), &events[0]["number"], &events[0]["format"]), (1, &json!(4), &json!("json")));
    assert_eq!((wechat.books().events.made, server.told().len()), (4, 2));
}

#[tokio::test]
async fn asked_events_are_posted_as_they_are_and_change_nothing_else() {
    let (wechat, server) =
        telling(Server::default(), json!({"callback_shape": "direct", "callback_numbers": true})).await;
    let popup = json!({"event": "subscribe_msg_popup_event", "openid": USER, "created_at": 7, "times": 2, "decisions": [
        {"template_id": "template", "status": "acceptWithAudio"}, {"template_id": "other", "status": "ban"}]});
    let revoked = json!({"event": "user_authorization_revoke", "openid": USER});
    let answer = wechat.post("/sandbox/events", json!({"app_id": APP, "events": [popup, revoked]})).await;
    assert_eq!(answer, json!({}));
    eventually("all events are accepted", || taken(&wechat, 3)).await;
    let bodies = server.bodies();
    let item = |id: &str, status: &str| json!({"TemplateId": id, "SubscribeStatusString": status, "PopupScene": 0});
    let items = json!([item("template", "acceptWithAudio"), item("other", "ban")]);
    assert_eq!((&bodies[0]["SubscribeMsgPopupEvent"], &bodies[0]["CreateTime"]), (&items, &json!(7)));
    assert_eq!(bodies[1], bodies[0]);
    assert_eq!((&bodies[2]["Event"], &bodies[2]["OpenID"]), (&json!("user_authorization_revoke"), &json!(USER)));

    let token = wechat.stable_token(false).await;
    assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 40003, "the user did nothing in the sandbox");
    let decisions = vec![Decision { template_id: "t".into(), status: "reject".into() }];
    let change = Push { decisions, ..Push::new("subscribe_msg_change_event", USER) };
    wechat.sandbox.set_settings(Settings { callback_shape: EventShape::Old, ..Settings::default() }).unwrap();
    wechat.sandbox.push(APP, vec![change]).unwrap();
    let events = wechat.sandbox.events(APP, &Reading::default()).unwrap();
    let body: Value = serde_json::from_str(&events.last().unwrap().body).unwrap();
    let item = json!({"TemplateId": "t", "SubscribeStatusString": "reject"});
    assert_eq!((events.len(), &body["SubscribeMsgPopupEvent"]["List"]), (4, &json!([item])));
}

#[tokio::test]
async fn each_accept_gives_its_own_event() {
    let wechat = wechat(Settings::default()).await;
    let grants = [("a", "t", 2), ("b", "t", 1), ("a", "s", 1)];
    let granting = |(openid, template_id, count)| Granting { count, ..Granting::new(openid, template_id) };
    wechat.sandbox.grant(APP, grants.map(granting).to_vec()).unwrap();
    let of_a = Reading { openid: Some("a".into()), ..Reading::default() };
    let lists: Vec<Value> = (wechat.sandbox.events(APP, &of_a).unwrap().iter())
        .map(|event| serde_json::from_str::<Value>(&event.body).unwrap()["List"].clone())
        .collect();
    assert_eq!((lists.len(), lists[0].as_array().unwrap().len(), &lists[1]["TemplateId"]), (2, 2, &json!("t")));
}

#[tokio::test]
async fn refused_event_is_posted_twice_more_and_then_given_up() {
    for (refusals, requests, expected) in [
        (2, 3, EventCounts { made: 1, pushed: 1, ..EventCounts::default() }),
        (9, 3, EventCounts { made: 1, given_up: 1, ..EventCounts::default() }),
    ] {
        let (wechat, server) = telling(Server { refusals: Mutex::new(refusals), ..Server::default() }, json!({})).await;
        wechat.grant(USER, 1);
        eventually("the event is accepted or given up", || wechat.books().events == expected).await;
        let told = server.told();
        assert_eq!(told.len(), requests);
        assert!(told.iter().all(|one| *one == told[0]), "each attempt posts the same event: {told:?}");
    }
}

#[tokio::test]
async fn slow_or_absent_callback_server_delays_no_send() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let absent = json!({"callback_url": format!("http://{nobody}/")});
    let slow = || Server { slow: Duration::from_secs(3600), ..Server::default() };
    for (server, more) in [(Server::default(), absent), (slow(), json!({}))] {
        let (wechat, _server) = telling(server, more).await;
        let token = wechat.stable_token(false).await;
        wechat.grant(USER, 100);
        for _ in 0..100 {
            assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 0);
        }
        assert_eq!(wechat.books().events.made, 200);
    }
}

#[tokio::test]
async fn message_can_be_accepted_and_fail_afterwards() {
    let failures = json!([{"error_code": 43101, "error_status": "user_refuse", "match": {"openid": "refuses"}}]);
    let wechat = wechat(settings(json!({"sent_failures": failures}))).await;
    let token = wechat.stable_token(false).await;
    for openid in ["refuses", "reads"] {
        wechat.grant(openid, 1);
        assert_eq!(wechat.subscribe(&token, wechat.subscription(openid)).await, 0);
    }
    let books = wechat.books();
    assert_eq!((books.delivered, books.undelivered, books.grants.spent), (1, 1, 2));
    assert_eq!(wechat.sandbox.deliveries(APP, &Reading::default()).unwrap()[0].openid, "reads");
    let last_of = |openid: &str| {
        let reading = Reading { openid: Some(openid.into()), ..Reading::default() };
        let events = wechat.sandbox.events(APP, &reading).unwrap();
        serde_json::from_str::<Value>(&events.last().unwrap().body).unwrap()["List"].clone()
    };
    assert_eq!((&last_of("refuses")["ErrorCode"], &last_of("reads")["ErrorCode"]), (&json!("43101"), &json!("0")));
    assert_eq!(last_of("refuses")["ErrorStatus"], "user_refuse");
}

#[tokio::test]
async fn template_messages_have_no_events() {
    let wechat = wechat(Settings::default()).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 0);
    assert_eq!(wechat.books().events, EventCounts::default());
}
