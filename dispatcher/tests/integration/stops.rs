//! Stops that an operator lists and lifts, and those that end early because the quota has a remainder again.

use std::time::Duration;

use domain::TemplateId;
use sandbox::{FaultKind, Rule};
use serde_json::json;
use server::proto::lift_stop_request::Target;
use server::proto::stop_scope::Scope;
use server::proto::{
    AllStops, BroadcastRequest, BroadcastState, CredentialKind, LiftStopRequest, ListStopsRequest, PauseReason,
    SendTemplateRequest, Stop, StopScope, WholeApp,
};
use store::stops::{Stop as StoredStop, StopScope as StoredScope};
use testing::{Redis, Scrape, eventually, now};
use tonic::Status;

use crate::broadcast::{tally, to_all};
use crate::fixture::{APP, Fixture, Running, connect, fact, fields, message, reason, serving};

const SOON: Duration = Duration::from_secs(20);

fn kind(kind: CredentialKind) -> Scope {
    Scope::Kind(kind.into())
}

impl Running {
    async fn stops(&self) -> Vec<Stop> {
        let request = ListStopsRequest { app_id: APP.into() };
        self.client.clone().list_stops(request).await.unwrap().into_inner().stops
    }

    async fn lift(&self, target: Option<Target>) -> Result<Vec<Stop>, Status> {
        let request = LiftStopRequest { app_id: APP.into(), target };
        self.client.clone().lift_stop(request).await.map(|response| response.into_inner().lifted)
    }

    async fn lift_scope(&self, scope: Scope) -> Vec<Stop> {
        self.lift(Some(Target::Scope(StopScope { scope: Some(scope) }))).await.unwrap()
    }

    /// The reason why a message cannot be sent; `None` if it was delivered.
    async fn refusal(&self, request: SendTemplateRequest) -> Option<String> {
        self.send(request).await.err().map(|status| reason(&status))
    }
}

fn scopes(stops: &[Stop]) -> Vec<Scope> {
    stops.iter().map(|stop| stop.scope.clone().unwrap().scope.unwrap()).collect()
}

/// Two dispatchers that look for a remainder of the quota ten times a second.
async fn impatient(fixture: &Fixture) -> [Running; 2] {
    let start = async || {
        let mut settings = fixture.settings(&[]);
        settings.limits.await_quota = Duration::from_millis(100);
        let running = Running::start(settings).await;
        serving(connect(running.address.port()).await, true).await;
        running
    };
    [start().await, start().await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lifted_stop_is_over_on_all_replicas() {
    let fixture = Fixture::patient().await;
    let (one, two) = (fixture.dispatcher().await, fixture.dispatcher().await);
    fixture.submit("oUser", 3).await;
    fixture.answer(48001, 1);
    assert_eq!(one.refusal(message("oUser", "x")).await.as_deref(), Some("APP_STOPPED"));
    let stops = two.stops().await;
    let both = [kind(CredentialKind::FormId), kind(CredentialKind::PrepayId)];
    assert_eq!(scopes(&stops), both);
    for stop in &stops {
        assert_eq!((stop.errcode, stop.rid.is_empty(), stop.address.as_str()), (48001, false, ""));
        assert!(stop.description.contains("lift the stop"), "{}", stop.description);
        assert!(stop.until.unwrap().seconds > now(), "{stop:?}");
    }
    assert_eq!(two.refusal(message("oUser", "x")).await.as_deref(), Some("APP_STOPPED"));

    assert_eq!(two.lift_scope(both[0].clone()).await, stops[..1]);
    two.send(message("oUser", "sent by the replica that lifted the stop")).await.unwrap();
    eventually("the other replica sends too", SOON, async || one.refusal(message("oUser", "y")).await.is_none()).await;
    assert_eq!(scopes(&one.stops().await), both[1..]);
    // There is no such stop any more: nothing changes.
    assert_eq!(two.lift_scope(both[0].clone()).await, []);
    assert_eq!(two.lift_scope(Scope::WholeApp(WholeApp {})).await, []);
    assert_eq!(scopes(&one.lift(Some(Target::All(AllStops {}))).await.unwrap()), both[1..]);
    assert_eq!((one.stops().await, two.stops().await), (vec![], vec![]));

    // WeChat's next refusal is a new stop.
    fixture.answer(48001, 1);
    assert_eq!(one.refusal(message("oUser", "x")).await.as_deref(), Some("APP_STOPPED"));
    assert_eq!(scopes(&two.stops().await), both);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn stop_of_a_template_is_listed_and_lifted() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 2).await;
    let stop = StoredStop {
        until_ms: (now() as u64 + 600) * 1000,
        errcode: 43116,
        rid: "5f-1".into(),
        address: Some("203.0.113.7".parse().unwrap()),
    };
    for template in ["template-1", "template-2"] {
        let scope = StoredScope::Template(TemplateId::parse(template).unwrap());
        fixture.store.stop(&fixture.app(), &scope, &stop).await.unwrap();
    }
    let [first, second] = ["template-1", "template-2"].map(|template| Scope::TemplateId(template.into()));
    let stops = dispatcher.stops().await;
    assert_eq!(scopes(&stops), [first.clone(), second.clone()]);
    assert_eq!((stops[0].errcode, stops[0].rid.as_str(), stops[0].address.as_str()), (43116, "5f-1", "203.0.113.7"));
    assert_eq!(stops[0].until.unwrap().seconds as u64 * 1000, stop.until_ms);
    assert_eq!(dispatcher.refusal(message("oUser", "x")).await.as_deref(), Some("TEMPLATE_STOPPED"));
    let other = SendTemplateRequest { template_id: "template-3".into(), ..message("oUser", "x") };
    dispatcher.send(other).await.unwrap();
    let stopped = async || {
        let source = [("source", "template")];
        Scrape::of(dispatcher.metrics).await.sum("formid_app_stopped", &source)
    };
    assert_eq!(stopped().await, 2);
    assert_eq!(scopes(&dispatcher.lift_scope(first).await), scopes(&stops[..1]));
    dispatcher.send(message("oUser", "x")).await.unwrap();
    assert_eq!((scopes(&dispatcher.stops().await), stopped().await), (vec![second], 1));
}

#[tokio::test]
async fn lift_without_a_valid_scope_is_refused_by_field() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    for (scope, field) in [
        (None, "target"),
        (Some(StopScope { scope: None }), "scope"),
        (Some(StopScope { scope: Some(Scope::Kind(9)) }), "scope.kind"),
        (Some(StopScope { scope: Some(Scope::TemplateId(String::new())) }), "scope.template_id"),
    ] {
        let status = dispatcher.lift(scope.map(Target::Scope)).await.unwrap_err();
        assert_eq!((reason(&status).as_str(), fields(&status)), ("INVALID_FIELDS", vec![field.to_owned()]));
    }
    let request = ListStopsRequest { app_id: "wx0000000000000000".into() };
    let status = dispatcher.client.clone().list_stops(request).await.unwrap_err();
    assert_eq!(reason(&status), "UNKNOWN_APP");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quota_stop_ends_on_all_replicas_when_wechat_reports_a_remainder() {
    let fixture = Fixture::patient().await;
    fixture.change(json!({"daily_quota": 1}));
    let [one, two] = impatient(&fixture).await;
    fixture.submit("oUser", 4).await;
    one.send(message("oUser", "the last of the day")).await.unwrap();
    assert_eq!(one.refusal(message("oUser", "x")).await.as_deref(), Some("QUOTA_REACHED"));
    eventually("the other replica knows", SOON, async || two.stops().await.len() == 2).await;
    let queries = async || fixture.sandbox.books(Some(APP)).unwrap().quota_queries;
    eventually("WeChat was asked a few times", SOON, async || queries().await >= 5).await;
    for dispatcher in [&one, &two] {
        let status = dispatcher.send(message("oUser", "x")).await.unwrap_err();
        assert_eq!((reason(&status), fact(&status, "errcode")), ("QUOTA_REACHED".into(), Some("45009".into())));
    }
    assert!(one.stops().await.iter().all(|stop| stop.description.contains("clear_quota")));

    // As an operator does with clear_quota.
    fixture.change(json!({"daily_quota": 4}));
    for (dispatcher, text) in [(&one, "y"), (&two, "z")] {
        eventually("the stop has ended", SOON, async || dispatcher.refusal(message("oUser", text)).await.is_none())
            .await;
    }
    assert_eq!(one.stops().await, []);
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_for_another_reason_outlasts_a_remainder_of_the_quota() {
    let fixture = Fixture::patient().await;
    let [one, two] = impatient(&fixture).await;
    fixture.submit("oUser", 2).await;
    fixture.accept("oUser", crate::subscription::TEMPLATE, 1).await;
    fixture.answer(48001, 1);
    assert_eq!(one.refusal(message("oUser", "x")).await.as_deref(), Some("APP_STOPPED"));
    let stop = StoredStop { until_ms: (now() as u64 + 600) * 1000, errcode: 45009, rid: String::new(), address: None };
    let grants = StoredScope::Kind(domain::Kind::Grant);
    fixture.store.stop(&fixture.app(), &grants, &stop).await.unwrap();
    let left = [kind(CredentialKind::FormId), kind(CredentialKind::PrepayId)];
    eventually("only the quota stop has ended", SOON, async || scopes(&two.stops().await) == left).await;
    assert_eq!(two.refusal(message("oUser", "x")).await.as_deref(), Some("APP_STOPPED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_that_waits_for_the_quota_resumes_when_the_stop_ends_early() {
    let fixture = Fixture::patient().await;
    fixture.change(json!({"daily_quota": 130, "quota_get": false, "latency_ms": 2}));
    let [one, two] = impatient(&fixture).await;
    fixture.submit_crowd(0..200).await;
    let id = one.broadcast(to_all()).await.unwrap().broadcast_id;
    let paused = one.until(&id, BroadcastState::Paused).await;
    assert_eq!((paused.pause_reason(), paused.errcode), (PauseReason::Quota, Some(45009)));
    fixture.no_lease_left().await;
    // Without quota/get, the broadcast waits for midnight.
    let queries = fixture.sandbox.books(Some(APP)).unwrap().quota_queries;
    eventually("WeChat was asked in vain", SOON, async || {
        fixture.sandbox.books(Some(APP)).unwrap().quota_queries >= queries + 4
    })
    .await;
    assert_eq!(two.look(&id).await.state(), BroadcastState::Paused);
    fixture.change(json!({"quota_get": true, "daily_quota": 130}));
    let done = two.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).failed.len()), (200, 0));
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_ends_although_quota_stops_come_and_go() {
    let fixture = Fixture::patient().await;
    fixture.change(json!({"latency_ms": 2}));
    let [one, _two] = impatient(&fixture).await;
    fixture.submit_crowd(0..300).await;
    // WeChat reports a remainder all the time, so a stop may be lifted while broadcasts pause because of it.
    let rule = Rule { times: Some(10), probability: Some(0.1), errcode: Some(45009), ..Rule::new(FaultKind::Answer) };
    fixture.sandbox.add_faults(vec![rule]).unwrap();
    let id = one.broadcast(to_all()).await.unwrap().broadcast_id;
    let done = one.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).failed.len()), (300, 0));
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_resumes_after_an_operator_has_lifted_its_stop() {
    let fixture = Fixture::patient().await;
    let (one, two) = (fixture.dispatcher().await, fixture.dispatcher().await);
    // The stop must not end by itself.
    fixture.change(json!({"quota_get": false}));
    fixture.submit_crowd(0..50).await;
    // A stop for the quota: the broadcast resumes by itself.
    fixture.answer(45009, 1);
    let id = one.broadcast(to_all()).await.unwrap().broadcast_id;
    one.until(&id, BroadcastState::Paused).await;
    fixture.no_lease_left().await;
    assert!(!two.lift(Some(Target::All(AllStops {}))).await.unwrap().is_empty());
    let done = one.until(&id, BroadcastState::Done).await;
    assert_eq!(tally(&done).delivered, 50);
    // Another stop: somebody resumes the broadcast, at once on any replica.
    fixture.submit_crowd(0..50).await;
    fixture.answer(48001, 1);
    let other = BroadcastRequest { template_id: "template-2".into(), ..to_all() };
    let id = one.broadcast(other).await.unwrap().broadcast_id;
    let paused = one.until(&id, BroadcastState::Paused).await;
    assert_eq!(paused.pause_reason(), PauseReason::AppStopped);
    fixture.no_lease_left().await;
    assert!(!two.lift(Some(Target::All(AllStops {}))).await.unwrap().is_empty());
    assert_eq!(one.look(&id).await.state(), BroadcastState::Paused);
    two.done("ResumeBroadcast", &id).await;
    let ended = two.until_any(&id, &[BroadcastState::Done, BroadcastState::Paused]).await;
    assert_eq!((ended.state(), tally(&ended).delivered), (BroadcastState::Done, 50));
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_that_redis_did_not_take_is_shared_later() {
    let mut fixture = Fixture::on(Redis::durable_alone()).await.patiently();
    let (one, two) = (fixture.dispatcher().await, fixture.dispatcher().await);
    fixture.submit("oUser", 2).await;
    one.send(message("oUser", "to have a token")).await.unwrap();
    fixture.change(json!({"latency_ms": 3000}));
    fixture.answer(48001, 1);
    let client = one.client.clone();
    let sent = tokio::spawn(async move { client.clone().send_template(message("oUser", "x")).await });
    eventually("the message is leased", SOON, async || fixture.store.ledger(&fixture.app()).await.unwrap().leased == 1)
        .await;
    fixture.redis.kill();
    eventually("the stop could not be stored", SOON, async || {
        Scrape::of(one.metrics).await.sum("formid_retries_total", &[("operation", "stop_share")]) > 0
    })
    .await;
    fixture.redis.resume();
    assert_eq!(reason(&sent.await.unwrap().unwrap_err()), "APP_STOPPED");
    eventually("the other replica knows", SOON, async || {
        two.client
            .clone()
            .list_stops(ListStopsRequest { app_id: APP.into() })
            .await
            .is_ok_and(|response| response.into_inner().stops.len() == 2)
    })
    .await;
    assert_eq!(two.lift(Some(Target::All(AllStops {}))).await.unwrap().len(), 2);
    fixture.change(json!({"latency_ms": 0}));
    eventually("both replicas send again", SOON, async || one.refusal(message("oUser", "x")).await.is_none()).await;
}
