//! Broadcasts that pause automatically when further messages would fail.

use std::time::Duration;

use super::{tally, to_all};
use crate::fixture::{Fixture, Running};
use sandbox::{Endpoint, FaultKind, Rule, Submission};
use serde_json::json;
use server::proto::{BroadcastInfo, BroadcastRequest, BroadcastState, PauseReason};
use testing::now;

/// The stock is unchanged but for the delivered messages.
async fn assert_nothing_spent(fixture: &Fixture, users: u64) {
    fixture.no_lease_left().await;
    let stock = fixture.store.stock(&fixture.app(), now(), u64::MAX).await.unwrap();
    assert_eq!(stock.reachable, users - fixture.delivered());
    fixture.assert_settled(0).await;
}

fn failed(info: &BroadcastInfo) -> Vec<(&str, Option<i32>, u64)> {
    tally(info).failed.iter().map(|one| (one.reason.as_str(), one.errcode, one.count)).collect()
}

async fn paused(dispatcher: &Running, id: &str, reason: PauseReason) -> BroadcastInfo {
    let info = dispatcher.until(id, BroadcastState::Paused).await;
    assert_eq!(info.pause_reason(), reason, "{info:?}");
    info
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_template_pauses_after_few_messages_over_all_dispatchers() {
    let fixture = Fixture::patient().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await, fixture.dispatcher().await];
    let dispatcher = &dispatchers[0];
    fixture.submit_crowd(0..500).await;
    fixture.change(json!({"templates": ["template-2"], "latency_ms": 10}));
    let id = dispatcher.broadcast(to_all()).await.unwrap().broadcast_id;
    let stopped = paused(dispatcher, &id, PauseReason::MessageRefused).await;
    assert_eq!((stopped.errcode, stopped.rid.is_empty(), stopped.resume_time), (Some(40037), false, None));
    assert_nothing_spent(&fixture, 500).await;
    let attempts = fixture.calls();
    assert!((5..=20).contains(&attempts), "{attempts} attempts");
    let stopped = dispatcher.look(&id).await;
    assert_eq!(failed(&stopped), [("MESSAGE_REFUSED", Some(40037), attempts)]);
    assert!(dispatcher.undelivered(&id).await.values().all(|why| *why == ("MESSAGE_REFUSED".into(), Some(40037))));
    // The template exists now. The remaining users get their message, and those with a refused message stay failed.
    fixture.change(json!({"templates": []}));
    dispatcher.done("ResumeBroadcast", &id).await;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, failed(&done)[0].2), (500 - attempts, attempts));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn few_refusals_among_deliveries_do_not_pause() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..200).await;
    let rule = Rule { probability: Some(0.1), errcode: Some(40037), seed: Some(1), ..Rule::new(FaultKind::Answer) };
    fixture.sandbox.add_faults(vec![rule]).unwrap();
    let id = dispatcher.broadcast(to_all()).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    let refused = failed(&done)[0].2;
    assert!((5..40).contains(&refused), "{done:?}");
    assert_eq!(tally(&done).delivered, 200 - refused);
    assert_nothing_spent(&fixture, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_stops_the_app_pauses_immediately() {
    let fixture = Fixture::patient().await;
    let (dispatcher, clock) = fixture.dispatcher_and_clock(&[]).await;
    fixture.submit_crowd(0..400).await;
    fixture.change(json!({"latency_ms": 5}));
    let id =
        dispatcher.broadcast(BroadcastRequest { messages_per_second: 200, ..to_all() }).await.unwrap().broadcast_id;
    dispatcher.until_delivered(&id, 50).await;
    fixture.change(json!({"answer": 48001}));
    let stopped = paused(&dispatcher, &id, PauseReason::AppStopped).await;
    assert_eq!((stopped.errcode, stopped.rid.is_empty(), stopped.resume_time), (Some(48001), false, None));
    assert_nothing_spent(&fixture, 400).await;
    assert!(failed(&dispatcher.look(&id).await).is_empty());
    // While the app is stopped, a resumed broadcast pauses again without a call to WeChat.
    fixture.change(json!({"answer": 0}));
    let calls = fixture.calls();
    dispatcher.done("ResumeBroadcast", &id).await;
    let again = paused(&dispatcher, &id, PauseReason::AppStopped).await;
    assert_eq!((again.errcode, again.rid.is_empty(), fixture.calls()), (Some(48001), false, calls));
    clock.set_ahead(Duration::from_secs(601));
    dispatcher.done("ResumeBroadcast", &id).await;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, done.errcode, done.rid.as_str()), (400, None, ""));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn stopped_source_pauses_before_users_count_as_unreachable() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    for user in 0..10 {
        fixture.pay(&format!("oPayer{user}"), now() - 600).await;
    }
    fixture.answer(41035, 1);
    let id = dispatcher.broadcast(to_all()).await.unwrap().broadcast_id;
    let stopped = paused(&dispatcher, &id, PauseReason::AppStopped).await;
    assert_eq!(stopped.errcode, Some(41035));
    fixture.no_lease_left().await;
    let stopped = dispatcher.look(&id).await;
    assert_eq!((tally(&stopped).no_credential, tally(&stopped).left), (0, 10 - fixture.delivered()));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn too_many_failures_pause_until_a_caller_resumes() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..50).await;
    // Users whom WeChat knows, with form ids that it does not know.
    fixture
        .sandbox
        .submit(crate::fixture::APP, (0..250).map(|user| Submission::form(format!("oDead{user}"))).collect())
        .unwrap();
    for user in 0..250 {
        fixture.collect_dead(&format!("oDead{user}"), 1).await;
    }
    let id = dispatcher.broadcast(to_all()).await.unwrap().broadcast_id;
    let stopped = paused(&dispatcher, &id, PauseReason::FailureRatio).await;
    assert_eq!((stopped.errcode, stopped.resume_time), (None, None));
    fixture.no_lease_left().await;
    let stopped = dispatcher.look(&id).await;
    assert!(tally(&stopped).left > 0 && fixture.calls() >= 100, "{stopped:?}");
    assert_eq!(failed(&stopped), [("CREDENTIALS_DEAD", Some(41028), fixture.calls() - fixture.delivered())]);
    // Resuming resets the count of failures.
    let mut rounds = 0;
    let done = loop {
        dispatcher.done("ResumeBroadcast", &id).await;
        rounds += 1;
        assert!(rounds < 4);
        let request = [BroadcastState::Paused, BroadcastState::Done];
        let info = dispatcher.until_any(&id, &request).await;
        if info.state() == BroadcastState::Done {
            break info;
        }
        fixture.no_lease_left().await;
    };
    assert_eq!((tally(&done).delivered, failed(&done)), (50, vec![("CREDENTIALS_DEAD", Some(41028), 250)]));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn refused_token_pauses_until_a_caller_resumes() {
    let fixture = Fixture::patient().await;
    let rule = Rule { endpoint: Endpoint::Token, errcode: Some(40164), ..Rule::new(FaultKind::Answer) };
    fixture.sandbox.add_faults(vec![rule]).unwrap();
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..10).await;
    let id = dispatcher.broadcast(BroadcastRequest { limit: 3, ..to_all() }).await.unwrap().broadcast_id;
    let stopped = paused(&dispatcher, &id, PauseReason::TokenRefused).await;
    assert_eq!((stopped.errcode, stopped.rid.is_empty()), (Some(40164), false));
    assert_nothing_spent(&fixture, 10).await;
    assert_eq!(fixture.calls(), 0);
}
