//! The metrics of a dispatcher, compared with the records of the sandbox and the store.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use dispatcher::wechat::errcode::TABLE;
use sandbox::{FaultKind, Submission};
use server::proto::collector_service_client::CollectorServiceClient;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{
    BroadcastRequest, BroadcastState, CollectRequest, Delivery, Outcome, SendTemplateRequest, WatchBroadcastRequest,
};
use testing::readme::text;
use testing::{Scrape, eventually, now};
use tonic::{Code, Request};

use crate::broadcast::{tally, to_list};
use crate::fixture::{APP, Fixture, Running, connect, message, reason, request};
use crate::subscription;

const SOON: Duration = Duration::from_secs(20);

/// A dispatcher, and the address of its metrics.
async fn measured(fixture: &Fixture, extra: &[&str]) -> (Running, SocketAddr) {
    let dispatcher = fixture.dispatcher_with(extra).await;
    let metrics = dispatcher.metrics;
    (dispatcher, metrics)
}

fn counts<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// A user of the app with form ids that WeChat does not know.
async fn dead(fixture: &Fixture, openid: &str, count: usize) {
    fixture.sandbox.submit(APP, vec![Submission::form(openid)]).unwrap();
    fixture.collect_dead(openid, count).await;
}

fn by_grant(openid: &str, text: &str) -> SendTemplateRequest {
    SendTemplateRequest { delivery: Delivery::Subscription.into(), ..subscription::message(openid, text) }
}

#[tokio::test]
async fn metrics_match_the_sandbox_and_the_ledger_after_a_known_load() {
    let fixture = Fixture::patient().await;
    let (dispatcher, metrics) = measured(&fixture, &[]).await;
    fixture.submit("oUser", 30).await;
    for n in 0..20 {
        dispatcher.send(message("oUser", &n.to_string())).await.unwrap();
    }
    for repeated in [false, true, true] {
        assert_eq!(dispatcher.send(request("oUser", "once", "r1")).await.unwrap().repeated, repeated);
    }
    fixture.fault(FaultKind::Http500After, 1);
    assert_eq!(dispatcher.send(message("oUser", "lost")).await.unwrap().errcode, Some(41029));
    for (errcode, id) in [(40037, "r2"), (77777, "r3")] {
        fixture.answer(errcode, 1);
        // The second call is answered from the record.
        for _ in 0..2 {
            let status = dispatcher.send(request("oUser", "wrong", id)).await.unwrap_err();
            assert_eq!(reason(&status), "MESSAGE_REFUSED");
        }
    }
    dead(&fixture, "oDead", 2).await;
    assert_eq!(reason(&dispatcher.send(message("oDead", "x")).await.unwrap_err()), "CREDENTIALS_DEAD");
    assert_eq!(reason(&dispatcher.send(message("oNobody", "x")).await.unwrap_err()), "NO_CREDENTIAL");
    fixture.pay("oPayer", now() - 60).await;
    fixture.fault(FaultKind::CutAfter, 1);
    assert_eq!(dispatcher.send(message("oPayer", "paid")).await.unwrap().outcome(), Outcome::Unknown);
    fixture.accept("oGiver", subscription::TEMPLATE, 2).await;
    for n in 0..2 {
        dispatcher.send(by_grant("oGiver", &n.to_string())).await.unwrap();
    }

    let scrape = Scrape::of(metrics).await;
    let sends = |label| scrape.by("formid_sends_total", label);
    let outcomes =
        [("delivered", 24), ("unknown", 1), ("message_refused", 2), ("credentials_dead", 1), ("no_credential", 1)];
    assert_eq!(sends("outcome"), counts(outcomes));
    let codes = [("0", 23), ("41029", 1), ("40037", 1), ("other", 1), ("41028", 1), ("", 2)];
    assert_eq!(sends("errcode"), counts(codes));
    assert_eq!(sends("delivery"), counts([("form_id", 27), ("subscription", 2)]));

    let books = fixture.sandbox.books(Some(APP)).unwrap();
    let of_grants = books.subscribe_calls;
    let expected = counts([("form_id", books.calls - of_grants), ("subscription", of_grants)]);
    assert_eq!(scrape.by("formid_send_attempts_total", "delivery"), expected);
    let calls = |endpoint| scrape.value("formid_wechat_seconds_count", &[("app", APP), ("endpoint", endpoint)]);
    assert_eq!((calls("template_send"), calls("subscribe_send")), (books.calls - of_grants, of_grants));
    assert_eq!(calls("token"), books.token_fetches);
    assert_eq!(scrape.by("formid_token_fetches_total", "result"), counts([("ok", books.token_fetches)]));
    // The message with an unknown outcome was delivered. Only the sandbox knows that.
    assert_eq!(books.delivered, 24 + 1);

    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.consumed, ledger.unknown, ledger.discarded), (24 + 1, 1, 2));
    fixture.assert_settled(0).await;

    let handled = scrape.by("grpc_server_handled_total", "grpc_code");
    assert_eq!(handled, counts([("OK", 20 + 3 + 1 + 1 + 2), ("FailedPrecondition", 4 + 2)]));
    assert_eq!(scrape.sum("grpc_server_started_total", &[("grpc_method", "SendTemplate")]), 33);
    assert_eq!(scrape.sum("grpc_server_handling_seconds_count", &[]), 33);
    assert_eq!(scrape.value("formid_requests_in_flight", &[]), 0);
    // A lease for each message that reached Redis. The next credential of oDead takes no further lease: settling
    // includes it.
    let of_redis = |command| scrape.sum("formid_redis_seconds_count", &[("command", command)]);
    assert_eq!((of_redis("lease.lua"), of_redis("settle.lua"), of_redis("other")), (33, 29, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_endings_are_counted_once_over_all_replicas() {
    let fixture = Fixture::patient().await;
    let (first, first_metrics) = measured(&fixture, &[]).await;
    let (_second, second_metrics) = measured(&fixture, &[]).await;
    let names = |start: &str, count| (0..count).map(|n| format!("{start}{n}")).collect::<Vec<_>>();
    let (good, empty, lost) = (names("oGood", 120), names("oNone", 7), names("oDead", 5));
    for openid in &good {
        fixture.submit(openid, 1).await;
    }
    for openid in &lost {
        dead(&fixture, openid, 1).await;
    }
    fixture.answer(40003, 2);
    let audience: Vec<_> = [good, empty, lost].concat();
    let list = to_list(&audience.iter().map(String::as_str).collect::<Vec<_>>());
    let id = first.broadcast(list).await.unwrap().broadcast_id;
    let done = first.until(&id, BroadcastState::Done).await;

    let mut sum = BTreeMap::new();
    for metrics in [first_metrics, second_metrics] {
        for (ending, count) in Scrape::of(metrics).await.by("formid_broadcast_messages_total", "ending") {
            *sum.entry(ending).or_default() += count;
        }
    }
    let tally = tally(&done);
    let mut expected = counts([("delivered", tally.delivered), ("no_credential", tally.no_credential)]);
    for failed in &tally.failed {
        *expected.entry(failed.reason.to_lowercase()).or_default() += failed.count;
    }
    assert_eq!(sum, expected);
    assert_eq!(sum.values().sum::<u64>(), audience.len() as u64);
    assert_eq!((sum["no_credential"], sum["user_refused"]), (7, 2));
    eventually("no broadcast is running", SOON, async || {
        Scrape::of(first_metrics).await.value("formid_broadcasts_running", &[("app", APP)]) == 0
    })
    .await;
    // One broadcast is paused as a canary, one by a caller. All replicas report both.
    let paused = async |metrics| Scrape::of(metrics).await.by("formid_broadcasts_paused", "reason");
    let late = names("oLate", 4);
    for openid in &late {
        fixture.submit(openid, 2).await;
    }
    let late = || to_list(&late.iter().map(String::as_str).collect::<Vec<_>>());
    let canary = first.broadcast(BroadcastRequest { limit: 1, ..late() }).await.unwrap().broadcast_id;
    let slow = BroadcastRequest { messages_per_second: 1, ..late() };
    let slow = first.broadcast(slow).await.unwrap().broadcast_id;
    first.until(&canary, BroadcastState::Paused).await;
    first.done("PauseBroadcast", &slow).await;
    for metrics in [first_metrics, second_metrics] {
        let both = counts([("canary", 1), ("caller", 1)]);
        eventually("both paused broadcasts are counted", SOON, async || paused(metrics).await == both).await;
    }
    first.done("CancelBroadcast", &canary).await;
    eventually("one paused broadcast is left", SOON, async || paused(first_metrics).await == counts([("caller", 1)]))
        .await;
    // Messages of broadcasts do not count as sends of SendTemplate.
    let scrape = Scrape::of(first_metrics).await;
    assert_eq!((scrape.sum("formid_sends_total", &[]), scrape.sum("formid_send_attempts_total", &[])), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_left_in_open_broadcasts_are_shown_until_the_end() {
    let fixture = Fixture::patient().await;
    let (dispatcher, metrics) = measured(&fixture, &[]).await;
    let users: Vec<_> = (0..10).map(|n| format!("oUser{n}")).collect();
    for openid in &users {
        fixture.submit(openid, 1).await;
    }
    let list = || to_list(&users.iter().map(String::as_str).collect::<Vec<_>>());
    let becomes = async |audience: u64, left: u64| {
        eventually(&format!("{left} of {audience} are left"), 4 * SOON, async || {
            let scrape = Scrape::of(metrics).await;
            let users = |name| scrape.value(name, &[("app", APP)]);
            scrape.has("formid_broadcast_left_users")
                && (users("formid_broadcast_audience_users"), users("formid_broadcast_left_users")) == (audience, left)
        })
        .await;
    };
    // A broadcast that has not begun is not counted.
    dispatcher.broadcast(BroadcastRequest { hold: true, ..list() }).await.unwrap();
    becomes(0, 0).await;
    let canary = dispatcher.broadcast(BroadcastRequest { limit: 4, ..list() }).await.unwrap().broadcast_id;
    dispatcher.until(&canary, BroadcastState::Paused).await;
    becomes(10, 6).await;
    dispatcher.done("ResumeBroadcast", &canary).await;
    dispatcher.until(&canary, BroadcastState::Done).await;
    becomes(0, 0).await;
}

#[tokio::test]
async fn calls_are_counted_by_the_code_that_they_end_with() {
    let fixture = Fixture::patient().await;
    let (dispatcher, metrics) = measured(&fixture, &[]).await;
    let handled = async |method, code| {
        let labels = [("grpc_method", method), ("grpc_code", code)];
        Scrape::of(metrics).await.sum("grpc_server_handled_total", &labels)
    };
    let wrong = SendTemplateRequest::default();
    assert_eq!(dispatcher.send(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(handled("SendTemplate", "InvalidArgument").await, 1);
    let stranger = SendTemplateRequest { app_id: "wxStranger".into(), ..message("oUser", "x") };
    assert_eq!(dispatcher.send(stranger).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(handled("SendTemplate", "NotFound").await, 1);

    // A deadline, regardless of whether the client or the server notices it first.
    fixture.submit("oUser", 1).await;
    fixture.change(serde_json::json!({"latency_ms": 4000}));
    let mut late = Request::new(message("oUser", "late"));
    late.set_timeout(Duration::from_millis(150));
    assert!(dispatcher.client.clone().send_template(late).await.is_err());
    eventually("the deadline is counted", SOON, async || handled("SendTemplate", "DeadlineExceeded").await == 1).await;
    fixture.change(serde_json::json!({"latency_ms": 0}));

    // A stream that the client cancels, one that ends normally, and one that ends with an error.
    let held = BroadcastRequest { hold: true, ..to_list(&["oNobody"]) };
    let id = dispatcher.broadcast(held).await.unwrap().broadcast_id;
    let watch = |id: &str| WatchBroadcastRequest { app_id: APP.into(), broadcast_id: id.into(), interval: None };
    let mut client = dispatcher.client.clone();
    let mut watching = client.watch_broadcast(watch(&id)).await.unwrap().into_inner();
    watching.message().await.unwrap().unwrap();
    let in_flight = Scrape::of(metrics).await.value("formid_requests_in_flight", &[]);
    assert_eq!(in_flight, 1);
    drop(watching);
    eventually("the cancelled stream is counted", SOON, async || handled("WatchBroadcast", "Canceled").await == 1)
        .await;
    let mut watching = client.watch_broadcast(watch(&id)).await.unwrap().into_inner();
    dispatcher.done("StartBroadcast", &id).await;
    while watching.message().await.unwrap().is_some() {}
    assert_eq!(handled("WatchBroadcast", "OK").await, 1);
    assert_eq!(client.watch_broadcast(watch("1a2046afe69-00000000")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(handled("WatchBroadcast", "NotFound").await, 1);

    let scrape = Scrape::of(metrics).await;
    assert_eq!(scrape.sum("grpc_server_started_total", &[("grpc_type", "server_stream")]), 3);
    assert_eq!(scrape.value("formid_requests_in_flight", &[]), 0);
    // Health checks were made, too. They are not counted.
    assert_eq!(scrape.by("grpc_server_started_total", "grpc_service").len(), 1);
}

#[tokio::test]
async fn input_and_wechat_answers_add_no_labels_and_no_text() {
    let fixture = Fixture::patient().await;
    let (dispatcher, metrics) = measured(&fixture, &["--stop", "1ms"]).await;
    fixture.submit("oSecretUser", 200).await;
    dispatcher.send(message("oSecretUser", "x")).await.unwrap();
    let before = Scrape::of(metrics).await.series();
    let channel = connect(dispatcher.address.port()).await;
    for n in 0..100_u32 {
        let app_id = format!("wx{:016x}", rand::random::<u64>());
        let strange = SendTemplateRequest { app_id, ..message("oSecretUser", "x") };
        dispatcher.send(strange).await.unwrap_err();
        let path = format!("http://x/{n}").parse().unwrap();
        let mut lost = DispatcherServiceClient::with_origin(channel.clone(), path);
        lost.send_template(message("oSecretUser", "x")).await.unwrap_err();
        let errcode = rand::random_range(50_000..1_000_000);
        fixture.answer(errcode, 1);
        let _ = dispatcher.send(request("oSecretUser", "x", &format!("secret-request-{n}"))).await;
    }
    CollectorServiceClient::new(channel.clone()).collect(CollectRequest::default()).await.unwrap_err();

    let scrape = Scrape::of(metrics).await;
    let codes: Vec<_> = TABLE.iter().map(|row| row.errcode.to_string()).collect();
    for (name, labels) in scrape.series().difference(&before) {
        // The label of a Redis command appears with its first use.
        if name.starts_with("formid_redis_seconds") && labels["command"] != "other" {
            continue;
        }
        assert_eq!(name, "formid_sends_total");
        let errcode = &labels["errcode"];
        assert!(errcode == "other" || codes.contains(errcode), "{labels:?}");
    }
    assert_eq!(scrape.by("formid_sends_total", "app").into_keys().collect::<Vec<_>>(), [APP]);
    for secret in ["oSecretUser", "secret-request", "template-1", crate::fixture::SECRET, "CollectorService"] {
        assert!(!scrape.text.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn metrics_are_read_while_redis_is_down_and_say_so() {
    let mut fixture = Fixture::patient().await;
    let (dispatcher, metrics) = measured(&fixture, &["--redis-timeout", "5s"]).await;
    assert_eq!(Scrape::of(metrics).await.value("formid_redis_up", &[]), 1);
    let failures = async || Scrape::of(metrics).await.value("formid_redis_errors_total", &[]);
    let before = failures().await;
    fixture.redis.kill();
    let up = async || Scrape::of(metrics).await.value("formid_redis_up", &[]);
    eventually("formid_redis_up is 0", SOON, async || up().await == 0).await;
    assert!(failures().await > before);
    assert_eq!(reason(&dispatcher.send(message("oUser", "x")).await.unwrap_err()), "REDIS_UNAVAILABLE");
    let failed = [("outcome", "redis_unavailable")];
    assert_eq!(Scrape::of(metrics).await.sum("formid_sends_total", &failed), 1);

    // A dispatcher that starts without Redis.
    let second = Running::start(fixture.settings(&[])).await;
    let scrape = Scrape::of(second.metrics).await;
    assert_eq!(scrape.value("formid_redis_up", &[]), 0);
    // A number that was never read is absent rather than 0.
    assert!(!scrape.has("formid_quota_used"));
    fixture.redis.resume();
    eventually("formid_redis_up is 1", SOON, async || up().await == 1).await;
}

#[tokio::test]
async fn app_stops_and_the_daily_quota_are_shown() {
    let fixture = Fixture::patient().await;
    let (dispatcher, metrics) = measured(&fixture, &["--stop", "4s"]).await;
    fixture.submit("oUser", 3).await;
    dispatcher.send(message("oUser", "x")).await.unwrap();
    fixture.accept("oGiver", subscription::TEMPLATE, 2).await;
    for n in 0..2 {
        dispatcher.send(by_grant("oGiver", &n.to_string())).await.unwrap();
    }
    let stopped = async || Scrape::of(metrics).await.by("formid_app_stopped", "source");
    assert!(stopped().await.is_empty());
    fixture.answer(41032, 1);
    dispatcher.send(message("oUser", "y")).await.unwrap_err();
    assert_eq!(stopped().await, counts([("form_id", 1)]));
    eventually("the stop has ended", SOON, async || stopped().await.is_empty()).await;
    let used = counts([("form_id", 1), ("subscription", 2)]);
    eventually("the quota of both generations is shown", SOON, async || {
        Scrape::of(metrics).await.by("formid_quota_used", "delivery") == used
    })
    .await;
    let scrape = Scrape::of(metrics).await;
    let limits = counts([("form_id", 1_000_000), ("subscription", 10_000_000)]);
    assert_eq!(scrape.by("formid_quota_limit", "delivery"), limits);
    for name in scrape.families() {
        assert!(text("deploy/README.md").contains(&format!("`{name}`")), "{name} is not in deploy/README.md");
    }
}
