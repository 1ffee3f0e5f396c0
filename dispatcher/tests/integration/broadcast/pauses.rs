//! Pauses by a caller, and the canary.

use super::{tally, to_all, to_list};
use crate::fixture::{Fixture, Running};
use serde_json::json;
use server::proto::{BroadcastRequest, BroadcastState, PauseReason};

/// Every user got exactly one message.
async fn assert_everyone_once(fixture: &Fixture, dispatcher: &Running, id: &str, users: u64) {
    let done = dispatcher.until(id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered), (users, users));
    let received = fixture.received();
    assert_eq!((received.len() as u64, received.values().max()), (users, Some(&1)));
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_takes_effect_soon_and_nothing_is_sent_until_it_ends() {
    let fixture = Fixture::patient().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    let dispatcher = &dispatchers[0];
    // A second form id for each user would allow a second message, which no user may get.
    fixture.submit_crowd(0..1000).await;
    fixture.submit_crowd(0..1000).await;
    fixture.change(json!({"latency_ms": 5}));
    let request = BroadcastRequest { messages_per_second: 400, ..to_all() };
    let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    dispatcher.until_delivered(&id, 100).await;
    dispatchers[1].done("PauseBroadcast", &id).await;
    fixture.no_lease_left().await;
    let paused = dispatcher.look(&id).await;
    assert_eq!((paused.state(), paused.pause_reason()), (BroadcastState::Paused, PauseReason::Caller));
    assert!(paused.resume_time.is_none() && paused.errcode.is_none());
    let so_far = fixture.delivered();
    assert_eq!((tally(&paused).delivered, tally(&paused).in_flight), (so_far, 0));
    assert!(so_far < 1000, "the broadcast was done before the pause");
    // Another broadcast runs from start to end during the pause.
    fixture.submit("oOther", 1).await;
    let other = dispatcher.broadcast(to_list(&["oOther", "oNobody"])).await.unwrap().broadcast_id;
    dispatcher.until(&other, BroadcastState::Done).await;
    assert_eq!(fixture.delivered(), so_far + 1);
    dispatcher.done("ResumeBroadcast", &id).await;
    dispatcher.until(&id, BroadcastState::Done).await;
    let received = fixture.received();
    assert_eq!((received.len(), received.values().max()), (1001, Some(&1)));
    assert_eq!(tally(&dispatcher.look(&id).await).delivered, 1000);
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_pauses_lose_no_user() {
    let fixture = Fixture::patient().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    fixture.submit_crowd(0..1000).await;
    fixture.submit_crowd(0..1000).await;
    fixture.change(json!({"latency_ms": 10, "jitter_ms": 20}));
    let request = BroadcastRequest { messages_per_second: 300, ..to_all() };
    let id = dispatchers[0].broadcast(request).await.unwrap().broadcast_id;
    for round in 1..=8 {
        dispatchers[0].until_delivered(&id, round * 50).await;
        dispatchers[1].done("PauseBroadcast", &id).await;
        if round % 2 == 0 {
            // Replicas know of the pause. They may learn of its end only after they get tasks again.
            fixture.no_lease_left().await;
        }
        dispatchers[0].done("ResumeBroadcast", &id).await;
    }
    assert_everyone_once(&fixture, &dispatchers[0], &id, 1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary_sends_its_limit_and_waits_to_be_resumed() {
    let fixture = Fixture::patient().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    let dispatcher = &dispatchers[0];
    fixture.submit_crowd(0..400).await;
    let id = dispatcher.broadcast(BroadcastRequest { limit: 37, ..to_all() }).await.unwrap().broadcast_id;
    let paused = dispatcher.until(&id, BroadcastState::Paused).await;
    assert_eq!((paused.pause_reason(), paused.limit), (PauseReason::Canary, 37));
    fixture.no_lease_left().await;
    assert_eq!((fixture.delivered(), fixture.calls()), (37, 37));
    dispatcher.done("ResumeBroadcast", &id).await;
    assert_eq!(dispatcher.look(&id).await.limit, 0);
    assert_everyone_once(&fixture, dispatcher, &id, 400).await;
}

#[tokio::test]
async fn canary_counts_messages_not_users_or_returned_messages() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..60).await;
    let openids: Vec<String> = (0..120).map(|user| format!("oUser{user}")).collect();
    let list = to_list(&openids.iter().map(String::as_str).collect::<Vec<_>>());
    // The first messages are returned to the audience: WeChat is busy for longer than one message is retried.
    fixture.answer(-1, 12);
    let request = BroadcastRequest { limit: 25, ..list };
    let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    dispatcher.until_delivered(&id, 10).await;
    // A pause in the middle does not count toward the limit.
    dispatcher.done("PauseBroadcast", &id).await;
    fixture.no_lease_left().await;
    dispatcher.done("ResumeBroadcast", &id).await;
    let paused = dispatcher.until(&id, BroadcastState::Paused).await;
    assert_eq!((paused.pause_reason(), paused.limit, fixture.delivered()), (PauseReason::Canary, 25, 25));
    dispatcher.done("ResumeBroadcast", &id).await;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).no_credential), (60, 60));
    fixture.assert_settled(0).await;
}
