//! End to end: a sandbox that pushes its events to a team's callback endpoint, which forwards them to the collector,
//! and a dispatcher that sends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::post;
use clap::Parser as _;
use sandbox::{Decision, EventFormat, EventShape, Granting, Match, Push, SentFailure, Subscription};
use server::proto::collector_service_client::CollectorServiceClient;
use server::proto::{BroadcastRequest, BroadcastState, ReportEventsRequest};
use testing::eventually;
use tokio::net::TcpListener;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::broadcast::{tally, to_all};
use crate::fixture::{APP, Fixture, connect, reason};
use crate::subscription::{TEMPLATE, data, message, request};

const TOKEN: &str = "theCallbackToken";
const SOON: Duration = Duration::from_secs(20);

/// A collector in this process, on the Redis of a fixture.
pub struct Collector {
    pub address: SocketAddr,
    pub client: CollectorServiceClient<Channel>,
}

impl Collector {
    pub async fn start(fixture: &Fixture, flags: &[&str]) -> Self {
        let (url, buckets) = (fixture.redis.url(), fixture.store.buckets().len().to_string());
        let usual = ["collector", "--apps", APP, "--buckets", &buckets, "--redis-url", &url, "--drain-wait", "0s"];
        let usual = [&usual[..], &["--redis-timeout", "20s"]].concat();
        let flags = collector::settings::Args::parse_from(usual.iter().chain(flags));
        let settings = collector::settings::Settings::read(&flags).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(collector::run(listener, settings, std::future::pending()));
        let channel = connect(address.port()).await;
        eventually("the collector serves", SOON, async || {
            let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest { service: String::new() }).await;
            answer.is_ok_and(|answer| answer.into_inner().status == 1)
        })
        .await;
        Self { address, client: CollectorServiceClient::new(channel) }
    }
}

/// A team's callback endpoint for WeChat's events: it forwards each event to the collector, and answers after the
/// collector has stored it.
async fn callback(client: CollectorServiceClient<Channel>) -> String {
    async fn pass_on(
        State(mut client): State<CollectorServiceClient<Channel>>,
        Query(mut query): Query<HashMap<String, String>>,
        body: Bytes,
    ) -> StatusCode {
        let mut of = |name: &str| query.remove(name).unwrap_or_default();
        let (timestamp, nonce, signature) = (of("timestamp"), of("nonce"), of("signature"));
        let request = ReportEventsRequest { app_id: APP.into(), body: body.to_vec(), timestamp, nonce, signature };
        match client.report_events(request).await {
            Ok(_) => StatusCode::OK,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/callback", listener.local_addr().unwrap());
    let router = Router::new().route("/callback", post(pass_on)).with_state(client);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// A fixture whose sandbox pushes its events through a callback endpoint to a collector that verifies them.
async fn connected(format: EventFormat) -> (Fixture, Collector) {
    let fixture = Fixture::subscribing().await;
    let tokens = fixture.file("callback-tokens.toml", &format!("[callback_tokens]\n{APP} = \"{TOKEN}\"\n"));
    let collector = Collector::start(&fixture, &["--callback-tokens", &tokens, "--erase-on-revoke", APP]).await;
    let settings = sandbox::Settings {
        callback_url: callback(collector.client.clone()).await,
        callback_token: TOKEN.into(),
        callback_format: format,
        callback_retry_ms: 20,
        ..fixture.sandbox.settings()
    };
    fixture.sandbox.set_settings(settings).unwrap();
    (fixture, collector)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_deliver_user_decisions_and_delivery_failures() {
    for format in [EventFormat::Json, EventFormat::Xml] {
        let (fixture, _collector) = connected(format).await;
        let dispatcher = fixture.dispatcher().await;
        // The user accepts: the grant is stored, and a message spends it.
        fixture.sandbox.grant(APP, vec![Granting::new("oUser", TEMPLATE)]).unwrap();
        eventually("the grant is stored", SOON, async || fixture.granted("oUser", TEMPLATE).await == 1).await;
        let sent = dispatcher.send(request("oUser", "ready", "r1")).await.unwrap();
        // WeChat reports later that it could not deliver the next message.
        fixture.sandbox.grant(APP, vec![Granting::new("oGone", TEMPLATE)]).unwrap();
        eventually("the second grant is stored", SOON, async || fixture.granted("oGone", TEMPLATE).await == 1).await;
        let matching = Match { openid: Some("oGone".into()), ..Match::default() };
        let failure = SentFailure { error_code: 43101, error_status: "user refuse".into(), matching };
        fixture
            .sandbox
            .set_settings(sandbox::Settings { sent_failures: vec![failure], ..fixture.sandbox.settings() })
            .unwrap();
        let gone = dispatcher.send(request("oGone", "ready", "r1")).await.unwrap();
        assert!(gone.msgid > sent.msgid && sent.msgid > 0);
        eventually("the repeated request shows the delivery failure", SOON, async || {
            let again = dispatcher.send(request("oGone", "ready", "r1")).await.unwrap();
            again.late_failure.is_some_and(|late| (late.errcode, late.status.as_str()) == (43101, "user refuse"))
        })
        .await;
        assert_eq!(dispatcher.send(request("oUser", "ready", "r1")).await.unwrap().late_failure, None);
        // The user accepts another template and withdraws it.
        fixture.sandbox.grant(APP, vec![Granting::new("oUser", "another")]).unwrap();
        eventually("the third grant is stored", SOON, async || fixture.granted("oUser", "another").await == 1).await;
        fixture.sandbox.withdraw(APP, vec![Subscription::new("oUser", "another")]).unwrap();
        eventually("the third grant is revoked", SOON, async || fixture.granted("oUser", "another").await == 0).await;
        assert_eq!(reason(&dispatcher.send(message("oUser", "no")).await.unwrap_err()), "NO_CREDENTIAL");
        fixture.assert_settled(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shape_that_the_sandbox_pushes_is_understood() {
    let (fixture, _collector) = connected(EventFormat::Json).await;
    let formats = [(EventFormat::Json, false), (EventFormat::Json, true), (EventFormat::Xml, false)];
    let shapes = [EventShape::List, EventShape::Array, EventShape::Direct, EventShape::Nested, EventShape::Old];
    let all = formats.into_iter().flat_map(|format| shapes.map(|shape| (format, shape)));
    for (number, ((format, numbers), shape)) in all.enumerate() {
        let settings = fixture.sandbox.settings();
        let settings =
            sandbox::Settings { callback_format: format, callback_shape: shape, callback_numbers: numbers, ..settings };
        fixture.sandbox.set_settings(settings).unwrap();
        let user = format!("oUser{number}");
        let at = |seconds: i64| Some((testing::now() + seconds) as u64);
        let push = |event: &str, seconds, decisions: &[(&str, &str)]| {
            let decision = |(template, status): &(&str, &str)| Decision {
                template_id: (*template).into(),
                status: (*status).into(),
            };
            let decisions = decisions.iter().map(decision).collect();
            Push { created_at: at(seconds), decisions, times: 2, ..Push::new(event, &user) }
        };
        let (popup, change) = ("subscribe_msg_popup_event", "subscribe_msg_change_event");
        let events = vec![
            push(popup, -90, &[("t1", "accept"), ("t2", "acceptWithAlert"), ("t3", "ban"), ("t4", "nonsense")]),
            push(change, -80, &[("t1", "reject")]),
            // Older than what the user said last.
            push(popup, -85, &[("t1", "acceptWithAudio"), ("t2", "acceptWithForcePush")]),
            push(popup, -70, &[("last", "accept")]),
        ];
        fixture.sandbox.push(APP, events).unwrap();
        eventually("the last event is processed", SOON, async || fixture.granted(&user, "last").await == 1).await;
        for (template, messages) in [("t1", 0), ("t2", 2), ("t3", 0), ("t4", 0)] {
            assert_eq!(fixture.granted(&user, template).await, messages, "{template}, {format:?} {shape:?}");
        }
        fixture.sandbox.push(APP, vec![push("user_authorization_revoke", 0, &[])]).unwrap();
        eventually("the user is erased", SOON, async || fixture.granted(&user, "t2").await == 0).await;
    }
    assert_eq!(fixture.sandbox.books(Some(APP)).unwrap().events.given_up, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_counts_delivery_failures_in_any_order_of_events() {
    const USERS: usize = 300;
    let (fixture, _collector) = connected(EventFormat::Json).await;
    let dispatcher = fixture.dispatcher().await;
    let granting = |user| Granting::new(format!("oUser{user}"), TEMPLATE);
    fixture.sandbox.grant(APP, (0..USERS).map(granting).collect()).unwrap();
    eventually("all grants are stored", SOON, async || {
        fixture.store.stock(&fixture.app(), testing::now(), u64::MAX).await.unwrap().reachable == USERS as u64
    })
    .await;
    let failures = (0..USERS).step_by(10).map(|user| {
        let matching = Match { openid: Some(format!("oUser{user}")), ..Match::default() };
        SentFailure { error_code: 43101, error_status: "user refuse".into(), matching }
    });
    fixture
        .sandbox
        .set_settings(sandbox::Settings { sent_failures: failures.collect(), ..fixture.sandbox.settings() })
        .unwrap();
    let request = BroadcastRequest { template_id: TEMPLATE.into(), data: data("thing1", "spring"), ..to_all() };
    let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    dispatcher.until(&id, BroadcastState::Done).await;
    eventually("all failures are counted", SOON, async || {
        let info = dispatcher.look(&id).await;
        let failed: u64 = tally(&info).failed.iter().map(|one| one.count).sum();
        (tally(&info).delivered, failed) == (270, 30)
    })
    .await;
    let undelivered = dispatcher.undelivered(&id).await;
    assert_eq!(undelivered.len(), 30);
    assert!(undelivered.values().all(|why| *why == ("FAILED_LATER".into(), Some(43101))), "{undelivered:?}");
    let books = fixture.sandbox.books(Some(APP)).unwrap();
    assert_eq!((books.delivered, books.undelivered), (270, 30), "{books:?}");
}
