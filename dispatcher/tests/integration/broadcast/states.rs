//! The states of a broadcast: the transitions that each permits, and what the final state keeps.

use std::time::Duration;

use super::{assert_wrong_state, tally, to_all, to_list};
use crate::fixture::{APP, Fixture};
use prost_types::Timestamp;
use server::proto::{BroadcastRequest, BroadcastState, PauseReason, WatchBroadcastRequest};
use testing::{eventually, now};

const MOVES: [&str; 5] = ["AddRecipients", "StartBroadcast", "PauseBroadcast", "ResumeBroadcast", "CancelBroadcast"];

#[tokio::test]
async fn illegal_transition_names_the_state_and_a_repeat_changes_nothing() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..50).await;
    let start = async |request| dispatcher.broadcast(request).await.unwrap().broadcast_id;
    // Tries all transitions but those in `others`. Those in `repeats` led to the state: repeating them succeeds and
    // changes nothing.
    let permits = async |id: &str, state: &str, repeats: &[&str], others: &[&str]| {
        for name in MOVES.iter().filter(|name| !others.contains(name)) {
            match dispatcher.call(name, APP, id).await {
                Ok(()) => assert!(repeats.contains(name), "{name} in state {state}"),
                Err(status) => {
                    assert!(!repeats.contains(name), "{name} in state {state}: {status:?}");
                    assert_wrong_state(&status, state);
                }
            }
            let found = dispatcher.look(id).await.state();
            assert_eq!(found.as_str_name().strip_prefix("BROADCAST_STATE_"), Some(state), "after {name}");
        }
    };
    let held = start(BroadcastRequest { hold: true, ..to_list(&["oUser1"]) }).await;
    permits(&held, "PENDING", &[], &["AddRecipients", "StartBroadcast", "CancelBroadcast"]).await;
    let later = Some(Timestamp { seconds: now() + 3600, nanos: 0 });
    let scheduled = start(BroadcastRequest { not_before: later, ..to_list(&["oUser1"]) }).await;
    permits(&scheduled, "PENDING", &["StartBroadcast"], &["CancelBroadcast"]).await;
    assert_eq!(dispatcher.look(&scheduled).await.not_before, later);

    let slow = start(BroadcastRequest { messages_per_second: 5, ..to_all() }).await;
    let repeats = ["StartBroadcast", "ResumeBroadcast"];
    permits(&slow, "RUNNING", &repeats, &["PauseBroadcast", "CancelBroadcast"]).await;
    dispatcher.done("PauseBroadcast", &slow).await;
    permits(&slow, "PAUSED", &["PauseBroadcast"], &["ResumeBroadcast", "CancelBroadcast"]).await;
    for id in [&slow, &scheduled, &held] {
        dispatcher.done("CancelBroadcast", id).await;
        let ended = dispatcher.until(id, BroadcastState::Cancelled).await;
        permits(id, "CANCELLED", &["CancelBroadcast"], &[]).await;
        assert_eq!(dispatcher.look(id).await.end_time, ended.end_time);
    }
    let done = start(to_list(&["oNobody"])).await;
    dispatcher.until(&done, BroadcastState::Done).await;
    permits(&done, "DONE", &["StartBroadcast"], &[]).await;
    // A pause by the service is no pause by a caller: it may end by itself or wait for a review. So PauseBroadcast is
    // refused here.
    let canary = start(BroadcastRequest { limit: 1, ..to_list(&["oUser1", "oUser2"]) }).await;
    dispatcher.until(&canary, BroadcastState::Paused).await;
    permits(&canary, "PAUSED", &[], &["ResumeBroadcast", "CancelBroadcast"]).await;
    assert_eq!(dispatcher.look(&canary).await.pause_reason(), PauseReason::Canary);
    fixture.no_lease_left().await;
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn cancelled_broadcast_is_final_and_keeps_its_tally() {
    let fixture = Fixture::patient().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    fixture.submit_crowd(0..1000).await;
    fixture.change(serde_json::json!({"latency_ms": 5}));
    let dispatcher = &dispatchers[0];
    let request = BroadcastRequest { messages_per_second: 500, ..to_all() };
    let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    dispatcher.until_delivered(&id, 100).await;
    dispatchers[1].done("CancelBroadcast", &id).await;
    fixture.no_lease_left().await;
    let ended = dispatcher.until(&id, BroadcastState::Cancelled).await;
    assert!(ended.end_time.is_some() && ended.pause_reason() == PauseReason::Unspecified);
    let (delivered, left) = (tally(&ended).delivered, tally(&ended).left);
    assert_eq!((delivered, tally(&ended).in_flight), (fixture.delivered(), 0));
    assert_eq!((delivered + left, left > 0), (tally(&ended).audience, true));
    nothing_to_look_after(&fixture).await;
    // Another broadcast reaches exactly the remaining users, so none of their form ids was lost.
    let other = BroadcastRequest { template_id: "template-2".into(), ..to_all() };
    let other = dispatcher.broadcast(other).await.unwrap().broadcast_id;
    let done = dispatcher.until(&other, BroadcastState::Done).await;
    assert_eq!(tally(&done).delivered, 1000 - delivered);
    assert_eq!(dispatcher.look(&id).await, ended);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn paused_and_waiting_broadcasts_can_be_cancelled() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..300).await;
    fixture.change(serde_json::json!({"latency_ms": 5}));
    let request = BroadcastRequest { messages_per_second: 150, ..to_all() };
    let paused = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    dispatcher.until_delivered(&paused, 20).await;
    dispatcher.done("PauseBroadcast", &paused).await;
    // Cancelled immediately: a replica may know only of the pause.
    dispatcher.done("CancelBroadcast", &paused).await;
    let later = Some(Timestamp { seconds: now() + 3600, nanos: 0 });
    let mut waiting = Vec::new();
    for request in [
        BroadcastRequest { hold: true, ..to_list(&[]) },
        BroadcastRequest { hold: true, ..to_list(&["oUser1", "oUser2"]) },
        BroadcastRequest { hold: true, ..to_all() },
        BroadcastRequest { not_before: later, ..to_all() },
        BroadcastRequest { not_before: later, ..to_list(&["oUser1", "oUser2"]) },
    ] {
        let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
        dispatcher.done("CancelBroadcast", &id).await;
        let ended = dispatcher.until(&id, BroadcastState::Cancelled).await;
        assert_eq!((tally(&ended).delivered, tally(&ended).left), (0, tally(&ended).audience));
        waiting.push(tally(&ended).left);
    }
    assert_eq!(waiting, [0, 2, 0, 0, 2]);
    fixture.no_lease_left().await;
    let ended = dispatcher.look(&paused).await;
    assert_eq!(ended.state(), BroadcastState::Cancelled);
    assert_eq!(tally(&ended).delivered, fixture.delivered());
    nothing_to_look_after(&fixture).await;
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn watch_ends_with_the_cancellation() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let held = dispatcher.broadcast(BroadcastRequest { hold: true, ..to_list(&["oA"]) }).await.unwrap();
    let watch = WatchBroadcastRequest { app_id: APP.into(), broadcast_id: held.broadcast_id.clone(), interval: None };
    let mut updates = dispatcher.client.clone().watch_broadcast(watch).await.unwrap().into_inner();
    assert_eq!(updates.message().await.unwrap().unwrap().broadcast.unwrap(), held);
    dispatcher.done("CancelBroadcast", &held.broadcast_id).await;
    let last = updates.message().await.unwrap().unwrap().broadcast.unwrap();
    assert_eq!(last.state(), BroadcastState::Cancelled);
    assert!(updates.message().await.unwrap().is_none());
}

/// Waits until the replicas have no active broadcast left.
async fn nothing_to_look_after(fixture: &Fixture) {
    eventually("no broadcast is active", Duration::from_secs(10), async || {
        fixture.store.running_broadcasts(&fixture.app()).await.unwrap().is_empty()
    })
    .await;
}
