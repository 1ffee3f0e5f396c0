//! All messages that a quota or a canary permits are delivered before the broadcast pauses, by any of the dispatchers.
//! This includes the permits of a dispatcher that died.

use std::time::Duration;

use super::{tally, to_all};
use crate::fixture::{Fixture, Running, any_port, connect, serving};
use sandbox::{FaultKind, Rule};
use serde_json::json;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{BroadcastRequest, BroadcastState, PauseReason};
use testing::{Process, Redis, eventually};

/// More buckets than three dispatchers process concurrently.
const BUCKETS: u16 = 64;

const USERS: usize = 1200;

async fn fixture() -> Fixture {
    let mut fixture = Fixture::with_buckets(Redis::start(), BUCKETS).await.patiently();
    fixture.app_settings = "reserved_for_sends = 0.2\n".into();
    fixture.submit_crowd(0..USERS).await;
    fixture.change(json!({"daily_quota": 1000, "latency_ms": 40, "jitter_ms": 80}));
    fixture
}

/// WeChat is so slow that many messages are in flight or waiting when the last permits are granted.
async fn rig_with_a_slow_wechat() -> Fixture {
    let fixture = fixture().await;
    fixture.change(json!({"latency_ms": 600, "jitter_ms": 900}));
    fixture
}

/// The broadcast must pause by itself when `messages` are delivered and none is in flight.
async fn assert_pauses(fixture: &Fixture, dispatcher: &Running, id: &str, reason: PauseReason, messages: u64) {
    eventually("all messages are delivered or the broadcast has paused", Duration::from_secs(150), async || {
        fixture.delivered() >= messages || dispatcher.look(id).await.state() == BroadcastState::Paused
    })
    .await;
    let paused = dispatcher.until(id, BroadcastState::Paused).await;
    assert_eq!((paused.pause_reason(), paused.errcode), (reason, None), "{paused:?}");
    let counted = tally(&paused);
    assert_eq!((counted.delivered, counted.in_flight), (messages, 0), "{counted:?}");
    assert_eq!((fixture.delivered(), counted.left), (messages, USERS as u64 - messages));
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_dispatchers_deliver_the_whole_quota_before_the_pause() {
    let fixture = rig_with_a_slow_wechat().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await, fixture.dispatcher().await];
    let id = dispatchers[0].broadcast(to_all()).await.unwrap().broadcast_id;
    assert_pauses(&fixture, &dispatchers[1], &id, PauseReason::Quota, 800).await;
    // Nothing of the quota is left for the rest of the day.
    dispatchers[0].done("ResumeBroadcast", &id).await;
    assert_pauses(&fixture, &dispatchers[1], &id, PauseReason::Quota, 800).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_dispatchers_deliver_the_whole_canary_before_the_pause() {
    let fixture = rig_with_a_slow_wechat().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await, fixture.dispatcher().await];
    let request = BroadcastRequest { limit: 333, ..to_all() };
    let id = dispatchers[0].broadcast(request).await.unwrap().broadcast_id;
    assert_pauses(&fixture, &dispatchers[1], &id, PauseReason::Canary, 333).await;
}

/// A broadcast by three dispatchers, one of which is killed with messages in flight.
async fn pauses_after_a_kill(request: BroadcastRequest, reason: PauseReason, messages: u64) {
    let fixture = fixture().await;
    // Longer than a WeChat call may take, and short enough to wait until it expires.
    let flags = ["--lease", "6s"];
    let port = any_port();
    let mut process = Process::start(&mut fixture.command(port, &flags));
    serving(connect(port).await, true).await;
    let mut client = DispatcherServiceClient::new(connect(port).await);
    let id = client.broadcast(request).await.unwrap().into_inner().broadcast.unwrap().broadcast_id;
    eventually("many are in flight at once", Duration::from_secs(60), async || fixture.delivered() > 100).await;
    // The next messages of this dispatcher are delivered, but it gets no answers.
    let hang = Rule { times: Some(30), hang_ms: Some(60_000), ..Rule::new(FaultKind::HangAfter) };
    let before = fixture.delivered();
    fixture.sandbox.add_faults(vec![hang]).unwrap();
    eventually("the unanswered messages are delivered", Duration::from_secs(60), async || {
        fixture.delivered() >= before + 30
    })
    .await;
    process.kill();
    let dispatchers = [fixture.dispatcher_with(&flags).await, fixture.dispatcher_with(&flags).await];
    assert_pauses(&fixture, &dispatchers[1], &id, reason, messages).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quota_permits_of_a_killed_dispatcher_are_used_before_the_pause() {
    pauses_after_a_kill(to_all(), PauseReason::Quota, 800).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary_permits_of_a_killed_dispatcher_are_used_before_the_pause() {
    pauses_after_a_kill(BroadcastRequest { limit: 500, ..to_all() }, PauseReason::Canary, 500).await;
}
