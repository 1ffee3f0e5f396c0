//! WeChat outages, lost answers and rejected tokens during a broadcast.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{tally, to_all};
use crate::fixture::{APP, Fixture, Running, any_port, message};
use dispatcher::wechat::client::Client;
use sandbox::{FaultKind, Rule};
use serde_json::json;
use server::proto::{BroadcastRequest, BroadcastState};
use testing::{eventually, now};
use tokio::net::TcpListener;

/// Every user got exactly one message, and none failed.
async fn assert_everyone_once(fixture: &Fixture, dispatcher: &Running, id: &str, users: u64) {
    let done = dispatcher.until(id, BroadcastState::Done).await;
    let counted = tally(&done);
    assert_eq!((counted.audience, counted.delivered, counted.unknown), (users, users, 0));
    assert!(counted.failed.is_empty(), "{counted:?}");
    let received = fixture.received();
    assert_eq!((received.len() as u64, received.values().max()), (users, Some(&1)));
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wechat_outage_is_waited_out_with_few_calls() {
    let fixture = Fixture::patient().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    fixture.submit_crowd(0..800).await;
    fixture.submit_crowd(0..800).await;
    fixture.change(json!({"latency_ms": 5}));
    let request = BroadcastRequest { messages_per_second: 400, ..to_all() };
    let id = dispatchers[0].broadcast(request).await.unwrap().broadcast_id;
    dispatchers[0].until_delivered(&id, 100).await;
    fixture.sandbox.add_faults(vec![Rule::new(FaultKind::Http500Before)]).unwrap();
    // Each message in flight is retried a few times. Only the calls after that are measured.
    eventually("the dispatchers have met the outage", Duration::from_secs(5), async || {
        fixture.sandbox.books(Some(APP)).unwrap().unprocessed >= 10
    })
    .await;
    // The length of the outage. It has no event to wait for.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, since) = (fixture.calls(), Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let tried = (fixture.calls() - before) as f64 / since.elapsed().as_secs_f64();
    assert!(tried < 60.0, "{tried} calls a second in an outage");
    fixture.sandbox.clear_faults();
    assert_everyone_once(&fixture, &dispatchers[0], &id, 800).await;
}

#[tokio::test]
async fn refused_connections_are_waited_out_and_nothing_is_unknown() {
    let mut fixture = Fixture::patient().await;
    fixture.submit_crowd(0..60).await;
    let warm = fixture.dispatcher().await;
    assert!(warm.send(message("oNobody", "fetches the shared token")).await.is_err());
    let port = any_port();
    fixture.base_url = format!("http://127.0.0.1:{port}");
    let dispatcher = fixture.dispatcher().await;
    drop(warm);
    let id = dispatcher.broadcast(to_all()).await.unwrap().broadcast_id;
    eventually("the broadcast is running", Duration::from_secs(5), async || {
        dispatcher.look(&id).await.state() == BroadcastState::Running
    })
    .await;
    // The length of the outage, as above.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(sandbox::serve(listener, fixture.sandbox.clone(), std::future::pending()));
    assert_everyone_once(&fixture, &dispatcher, &id, 60).await;
    assert_eq!(fixture.calls(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_are_resolved_and_every_user_is_reached_once() {
    for attempts in ["5", "1"] {
        let fixture = Fixture::new().await;
        let flags = ["--attempts", attempts];
        let dispatchers = [fixture.dispatcher_with(&flags).await, fixture.dispatcher_with(&flags).await];
        fixture.submit_crowd(0..120).await;
        fixture.submit_crowd(0..120).await;
        let losses = [FaultKind::Http500After, FaultKind::CutAfter, FaultKind::CutMid, FaultKind::NotJsonBefore];
        let rules = losses.iter().zip(1..).map(|(kind, seed)| Rule {
            probability: Some(0.03),
            seed: Some(seed),
            ..Rule::new(*kind)
        });
        fixture.sandbox.add_faults(rules.collect()).unwrap();
        let id = dispatchers[0].broadcast(to_all()).await.unwrap().broadcast_id;
        assert_everyone_once(&fixture, &dispatchers[0], &id, 120).await;
        assert!(fixture.sandbox.books(Some(APP)).unwrap().faults.len() > 2);
    }
}

#[tokio::test]
async fn unanswered_messages_by_prepay_id_are_unknown_and_listed() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let payers = 12;
    for user in 0..payers {
        fixture.pay(&format!("oPayer{user}"), now() - 600).await;
    }
    fixture.fault(FaultKind::Http500After, 2);
    fixture.fault(FaultKind::CutBefore, 2);
    let id = dispatcher.broadcast(to_all()).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).unknown, tally(&done).failed.len()), (payers - 4, 4, 0));
    let listed = dispatcher.undelivered(&id).await;
    assert_eq!((listed.len(), fixture.delivered()), (4, payers - 2));
    assert!(listed.values().all(|why| *why == ("UNKNOWN".to_owned(), None)), "{listed:?}");
    for user in 0..payers {
        assert_eq!(fixture.left(&format!("oPayer{user}")).await, 2);
    }
    fixture.assert_settled(0).await;
    // With `retry_unknown`, which allows a second message, no outcome is unknown.
    fixture.fault(FaultKind::CutBefore, 3);
    let bold = BroadcastRequest { retry_unknown: true, template_id: "template-2".into(), ..to_all() };
    let id = dispatcher.broadcast(bold).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).unknown), (payers, 0));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn unknown_messages_keep_form_ids_on_pause_and_lose_them_on_cancel() {
    let fixture = Fixture::new().await;
    let dispatcher = fixture.dispatcher_with(&["--attempts", "1"]).await;
    fixture.submit_crowd(0..30).await;
    let [resumed, cancelled] = ["template-1", "template-2"].map(|template_id| BroadcastRequest {
        template_id: template_id.into(),
        limit: 3,
        ..to_all()
    });
    let id = in_doubt(&fixture, &dispatcher, resumed).await;
    fixture.assert_settled(3).await;
    dispatcher.done("ResumeBroadcast", &id).await;
    assert_everyone_once(&fixture, &dispatcher, &id, 30).await;
    assert!(fixture.sandbox.books(Some(APP)).unwrap().answers[&41029] >= 3, "the first attempts had delivered them");

    fixture.submit_crowd(0..30).await;
    let id = in_doubt(&fixture, &dispatcher, cancelled).await;
    dispatcher.done("CancelBroadcast", &id).await;
    fixture.no_lease_left().await;
    let ended = dispatcher.until(&id, BroadcastState::Cancelled).await;
    assert_eq!((tally(&ended).unknown, tally(&ended).left, tally(&ended).delivered), (3, 27, 0));
    assert_eq!(dispatcher.undelivered(&id).await.len(), 3);
    fixture.assert_settled(0).await;
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.consumed, ledger.unknown, ledger.available()), (30 + 3, 3, 27), "{ledger:?}");
    // Their form ids are gone, so that they cannot make messages of the next broadcast unknown.
    fixture.fault(FaultKind::CutAfter, 3);
    let next = BroadcastRequest { template_id: "template-3".into(), ..to_all() };
    let id = dispatcher.broadcast(next).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).unknown), (27, 0));
    fixture.assert_settled(0).await;
}

/// Starts a broadcast that pauses after its first three messages. They were delivered, but the dispatcher does not know
/// it.
async fn in_doubt(fixture: &Fixture, dispatcher: &Running, request: BroadcastRequest) -> String {
    fixture.sandbox.add_faults(vec![Rule::new(FaultKind::CutAfter)]).unwrap();
    let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    // The broadcast waits for a few leases for the outcomes to become known before the canary counts as reached.
    eventually("three outcomes are unknown and no other message is in flight", Duration::from_secs(60), async || {
        let info = dispatcher.look(&id).await;
        info.state() == BroadcastState::Paused && tally(&info).in_flight == 3
    })
    .await;
    fixture.sandbox.clear_faults();
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_rejected_during_a_broadcast_is_fetched_once_for_all() {
    let fixture = Fixture::patient().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await, fixture.dispatcher().await];
    fixture.submit_crowd(0..900).await;
    fixture.change(json!({"latency_ms": 10}));
    let request = BroadcastRequest { messages_per_second: 400, ..to_all() };
    let id = dispatchers[0].broadcast(request).await.unwrap().broadcast_id;
    dispatchers[0].until_delivered(&id, 200).await;
    // Another client forces a new token, which invalidates the current one.
    let app = std::sync::Arc::clone(fixture.settings(&[]).apps.get(&fixture.app()).unwrap());
    let before = fixture.sandbox.books(Some(APP)).unwrap();
    Client::new(app, None).unwrap().fetch_token(true).await.unwrap();
    assert_everyone_once(&fixture, &dispatchers[0], &id, 900).await;
    let after = fixture.sandbox.books(Some(APP)).unwrap();
    assert_eq!(after.token_fetches - before.token_fetches, 2, "one by the other client and one by a dispatcher");
    let stale: BTreeMap<_, _> =
        fixture.sandbox.books(None).unwrap().answers.into_iter().filter(|(code, _)| *code != 0).collect();
    assert_eq!(stale.keys().collect::<Vec<_>>(), [&40001]);
}
