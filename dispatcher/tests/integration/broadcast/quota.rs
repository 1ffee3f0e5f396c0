//! The daily quota and the rate limit: the part that broadcasts leave to single messages, and the limits of WeChat.

use std::time::{Duration, Instant};

use super::{tally, to_all};
use crate::fixture::{Fixture, message};
use dispatcher::clock::Clock;
use serde_json::json;
use server::proto::{BroadcastInfo, BroadcastRequest, BroadcastState, PauseReason};
use testing::eventually;

/// Sets all clocks to one minute into WeChat's next day.
fn next_day(fixture: &Fixture, clocks: &[&Clock]) {
    let ahead = Duration::from_millis(clocks[0].next_day_ms() - clocks[0].now_ms()) + Duration::from_secs(60);
    fixture.change(json!({"clock_ahead_seconds": ahead.as_secs()}));
    clocks.iter().for_each(|clock| clock.set_ahead(ahead));
}

/// The broadcast must be paused until WeChat's next day.
fn assert_used_up(info: &BroadcastInfo, errcode: Option<i32>, midnight_ms: u64) {
    assert_eq!((info.pause_reason(), info.errcode), (PauseReason::Quota, errcode), "{info:?}");
    let resume = info.resume_time.unwrap();
    assert_eq!(resume.seconds as u64 * 1000 + resume.nanos as u64 / 1_000_000, midnight_ms);
    assert_eq!((resume.seconds + 8 * 3600) % (24 * 3600), 0, "00:00 UTC+8");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_at_the_quota_resumes_by_itself_on_the_next_day() {
    let fixture = Fixture::patient().await;
    fixture.change(json!({"daily_quota": 130, "quota_get": false, "latency_ms": 2}));
    let (one, clock) = fixture.dispatcher_and_clock(&[]).await;
    let (_two, other_clock) = fixture.dispatcher_and_clock(&[]).await;
    fixture.submit_crowd(0..200).await;
    let id = one.broadcast(to_all()).await.unwrap().broadcast_id;
    let paused = one.until(&id, BroadcastState::Paused).await;
    assert_used_up(&paused, Some(45009), clock.next_day_ms());
    assert!(!paused.rid.is_empty());
    fixture.no_lease_left().await;
    assert_eq!((fixture.delivered(), tally(&one.look(&id).await).left), (130, 70));
    fixture.assert_settled(0).await;
    next_day(&fixture, &[&clock, &other_clock]);
    let done = one.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).failed.len()), (200, 0));
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_leaves_the_reserved_quota_to_single_messages() {
    let mut fixture = Fixture::patient().await;
    fixture.app_settings = "reserved_for_sends = 0.4\n".into();
    fixture.change(json!({"daily_quota": 100}));
    let (one, clock) = fixture.dispatcher_and_clock(&[]).await;
    let (two, other_clock) = fixture.dispatcher_and_clock(&[]).await;
    fixture.submit_crowd(0..150).await;
    fixture.submit("oSingle", 40).await;
    let id = one.broadcast(to_all()).await.unwrap().broadcast_id;
    let paused = one.until(&id, BroadcastState::Paused).await;
    assert_used_up(&paused, None, clock.next_day_ms());
    fixture.no_lease_left().await;
    assert_eq!(fixture.delivered(), 60);
    for number in 0..39 {
        let sender = if number % 2 == 0 { &one } else { &two };
        sender.send(message("oSingle", &format!("{number}"))).await.unwrap();
    }
    assert_eq!(fixture.sandbox.books(None).unwrap().answers.keys().collect::<Vec<_>>(), [&0], "WeChat refused nothing");
    // A broadcast that is resumed on the same day pauses again in the same way.
    one.done("ResumeBroadcast", &id).await;
    let paused = one.until(&id, BroadcastState::Paused).await;
    assert_used_up(&paused, None, clock.next_day_ms());
    assert_eq!(fixture.delivered(), 60 + 39);
    // The limit that WeChat returned applies on the next day, too.
    next_day(&fixture, &[&clock, &other_clock]);
    let paused = loop {
        // The clocks are set one after the other, so the first pause may still be that of the previous day.
        let info = one.until(&id, BroadcastState::Paused).await;
        if info.resume_time.unwrap().seconds as u64 * 1000 == clock.next_day_ms() {
            break info;
        }
    };
    assert_used_up(&paused, None, clock.next_day_ms());
    fixture.no_lease_left().await;
    assert_eq!(tally(&one.look(&id).await).delivered, 120);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn configured_quota_applies_if_wechat_returns_none() {
    let mut fixture = Fixture::patient().await;
    fixture.app_settings = "reserved_for_sends = 0.5\ndaily_quota = 100\n".into();
    fixture.change(json!({"quota_get": false}));
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..80).await;
    fixture.submit("oSingle", 30).await;
    for number in 0..10 {
        dispatcher.send(message("oSingle", &format!("{number}"))).await.unwrap();
    }
    // Slow enough that the single messages are counted before the broadcast approaches the limit.
    let id = dispatcher.broadcast(BroadcastRequest { messages_per_second: 40, ..to_all() }).await.unwrap().broadcast_id;
    let paused = dispatcher.until(&id, BroadcastState::Paused).await;
    assert_eq!((paused.pause_reason(), paused.errcode), (PauseReason::Quota, None));
    fixture.no_lease_left().await;
    assert_eq!(fixture.delivered(), 50);
    dispatcher.send(message("oSingle", "single messages are still sent")).await.unwrap();
    dispatcher.done("CancelBroadcast", &id).await;
    fixture.assert_settled(0).await;
}

/// Seconds that two dispatchers take for a broadcast to this number of users.
async fn takes(fixture: &Fixture, users: usize, request: BroadcastRequest) -> f64 {
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    fixture.submit_crowd(0..users).await;
    let start = Instant::now();
    let id = dispatchers[0].broadcast(request).await.unwrap().broadcast_id;
    eventually("all users have the message", Duration::from_secs(20), async || fixture.delivered() >= users as u64)
        .await;
    let took = start.elapsed().as_secs_f64();
    let done = dispatchers[0].until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered), (users as u64, users as u64));
    fixture.assert_settled(0).await;
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requested_rate_holds_over_all_dispatchers() {
    let fixture = Fixture::patient().await;
    let took = takes(&fixture, 300, BroadcastRequest { messages_per_second: 100, ..to_all() }).await;
    // A burst of a fifth of a second is allowed. A busy machine takes longer. The benchmark measures that the rate is
    // used up fully.
    assert!(took > 2.3, "{took} s for 2.8 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_leaves_the_reserved_rate_to_single_messages() {
    let mut fixture = Fixture::patient().await;
    fixture.app_settings = "messages_per_second = 200\nreserved_for_sends = 0.5\n".into();
    let took = takes(&fixture, 300, to_all()).await;
    assert!(took > 2.3, "{took} s for 2.8 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_slows_down_on_45011_and_reaches_every_user_once() {
    let fixture = Fixture::patient().await;
    let flags = ["--backoff", "50ms"];
    let dispatchers = [fixture.dispatcher_with(&flags).await, fixture.dispatcher_with(&flags).await];
    fixture.submit_crowd(0..900).await;
    fixture.submit_crowd(0..900).await;
    fixture.change(json!({"per_second": 300, "latency_ms": 5}));
    // A busy machine may never reach this rate, so some calls are answered with 45011 in any case.
    fixture.answer(45011, 20);
    let id = dispatchers[0].broadcast(to_all()).await.unwrap().broadcast_id;
    let done = dispatchers[0].until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).failed.len()), (900, 0));
    let answers = fixture.sandbox.books(Some(crate::fixture::APP)).unwrap().answers;
    assert!(answers[&45011] > 0 && answers[&45011] < 900, "{answers:?}");
    assert_eq!(fixture.received().values().max(), Some(&1));
    fixture.assert_settled(0).await;
}
