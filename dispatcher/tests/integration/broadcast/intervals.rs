//! `min_interval` and users who may have received a message that is not settled yet.

use std::time::Duration;

use super::{tally, to_all};
use crate::fixture::{Fixture, Running, any_port, connect, message, request, serving};
use crate::subscription::{self, TEMPLATE, data};
use sandbox::{FaultKind, Rule};
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{BroadcastRequest, BroadcastState, SendTemplateRequest};
use testing::{Process, eventually};
use tonic::transport::Channel;

const USERS: usize = 40;

/// Longer than a WeChat call may take, and short enough to wait until it expires.
const LEASE: [&str; 2] = ["--lease", "6s"];

fn openid(user: usize) -> String {
    format!("oUser{user}")
}

fn spring(template_id: &str) -> BroadcastRequest {
    BroadcastRequest { template_id: template_id.into(), data: data("thing1", "spring"), ..to_all() }
}

/// Broadcasts to the users without a message in the last ten minutes. Returns the number of delivered and of skipped
/// users.
async fn broadcast_to_the_rest(dispatcher: &Running, request: BroadcastRequest) -> (u64, u64) {
    let min_interval = Some(prost_types::Duration { seconds: 600, nanos: 0 });
    let id = dispatcher.broadcast(BroadcastRequest { min_interval, ..request }).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    (tally(&done).delivered, tally(&done).recently_messaged)
}

/// A dispatcher that gets no answers from WeChat, although WeChat delivers the messages.
async fn unanswered(fixture: &Fixture) -> (Process, DispatcherServiceClient<Channel>) {
    let hang = Rule { hang_ms: Some(60_000), endpoint: fixture.endpoint, ..Rule::new(FaultKind::HangAfter) };
    fixture.sandbox.add_faults(vec![hang]).unwrap();
    let port = any_port();
    let process = Process::start(&mut fixture.command(port, &LEASE));
    let channel = connect(port).await;
    serving(channel.clone(), true).await;
    (process, DispatcherServiceClient::new(channel))
}

/// Kills a dispatcher after WeChat has delivered a message to each user and before the dispatcher settles them.
async fn kill_before_it_settles(fixture: &Fixture, mut process: Process) {
    eventually("all messages are delivered", Duration::from_secs(20), async || fixture.delivered() == USERS as u64)
        .await;
    process.kill();
    fixture.sandbox.clear_faults();
}

/// Sends to each user through a dispatcher that is killed before it settles. Half of the messages have a request id.
async fn send_and_kill(
    fixture: &Fixture,
    message: fn(&str, &str) -> SendTemplateRequest,
    request: fn(&str, &str, &str) -> SendTemplateRequest,
) {
    let (process, client) = unanswered(fixture).await;
    for user in 0..USERS {
        let openid = openid(user);
        let order = if user % 2 == 0 { message(&openid, "single") } else { request(&openid, "single", "r1") };
        let mut client = client.clone();
        tokio::spawn(async move { client.send_template(order).await });
    }
    kill_before_it_settles(fixture, process).await;
}

/// A broadcast reaches only one further user while the leases last, and no user after they have expired.
async fn assert_skipped_at_any_time(fixture: &Fixture, request: BroadcastRequest) {
    let dispatcher = fixture.dispatcher_with(&LEASE).await;
    assert_eq!(broadcast_to_the_rest(&dispatcher, request.clone()).await, (1, USERS as u64), "while the leases last");
    eventually("the reaper settled the messages without a request id", Duration::from_secs(20), async || {
        fixture.store.ledger(&fixture.app()).await.unwrap().leased <= USERS as u64 / 2
    })
    .await;
    assert_eq!(broadcast_to_the_rest(&dispatcher, request).await, (0, USERS as u64 + 1), "after the leases expired");
    let received = fixture.received();
    assert_eq!((received.len(), received.values().max()), (USERS + 1, Some(&1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsettled_messages_of_a_killed_dispatcher_count() {
    let fixture = Fixture::patient().await;
    for _ in 0..2 {
        fixture.submit_crowd(0..USERS + 1).await;
    }
    send_and_kill(&fixture, message, request).await;
    assert_skipped_at_any_time(&fixture, BroadcastRequest { template_id: "template-2".into(), ..to_all() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsettled_subscription_messages_of_a_killed_dispatcher_count() {
    let fixture = Fixture::subscribing().await;
    fixture.accept_crowd(0..USERS + 1, TEMPLATE, 3).await;
    send_and_kill(&fixture, subscription::message, subscription::request).await;
    assert_skipped_at_any_time(&fixture, spring(TEMPLATE)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsettled_broadcast_messages_of_a_killed_dispatcher_count() {
    let fixture = Fixture::patient().await;
    for _ in 0..2 {
        fixture.submit_crowd(0..USERS).await;
    }
    let (process, mut client) = unanswered(&fixture).await;
    let id = client.broadcast(to_all()).await.unwrap().into_inner().broadcast.unwrap().broadcast_id;
    eventually("some messages are delivered", Duration::from_secs(20), async || fixture.delivered() > 0).await;
    let in_flight = fixture.delivered();
    drop(process);
    fixture.sandbox.clear_faults();
    let dispatcher = fixture.dispatcher_with(&LEASE).await;
    let later = BroadcastRequest { template_id: "template-2".into(), ..to_all() };
    let (delivered, skipped) = broadcast_to_the_rest(&dispatcher, later).await;
    assert!(skipped >= in_flight && delivered + skipped == USERS as u64, "{delivered} {skipped} {in_flight}");
    dispatcher.until(&id, BroadcastState::Done).await;
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_count_while_wechat_has_not_answered_yet() {
    let fixture = Fixture::patient().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    for _ in 0..2 {
        fixture.submit_crowd(0..USERS + 1).await;
    }
    let late = Rule { times: Some(USERS as u64), hang_ms: Some(2000), ..Rule::new(FaultKind::HangAfter) };
    fixture.sandbox.add_faults(vec![late]).unwrap();
    let sends: Vec<_> = (0..USERS)
        .map(|user| {
            let (mut client, order) = (dispatchers[0].client.clone(), message(&openid(user), "single"));
            tokio::spawn(async move { client.send_template(order).await })
        })
        .collect();
    eventually("all messages are delivered and unanswered", Duration::from_secs(20), async || {
        let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
        ledger.leased + ledger.consumed == USERS as u64 && fixture.delivered() == USERS as u64
    })
    .await;
    let later = BroadcastRequest { template_id: "template-2".into(), ..to_all() };
    assert_eq!(broadcast_to_the_rest(&dispatchers[1], later).await, (1, USERS as u64));
    for send in sends {
        send.await.unwrap().unwrap();
    }
    assert_eq!(fixture.received().values().max(), Some(&1));
    fixture.assert_settled(0).await;
}
