//! A dispatcher that is killed at random moments. Its callers repeat their requests until they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::fixture::{APP, Fixture, LOST_ANSWERS, any_port, connect, reason, request, serving};
use sandbox::{FaultKind, Rule};
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{Outcome, SendTemplateRequest, SendTemplateResponse};
use testing::{Process, eventually, sized};
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Number of users, and number of callers. The callers bound the number of messages in flight at a kill.
const USERS: usize = 100;
const CALLERS: usize = 24;

/// Number of messages. At each kill some 24 of them are between the lease and the answer. More messages only mean more
/// time between two kills.
fn messages() -> usize {
    sized(600, 3000)
}

/// Number of times that the dispatcher is killed.
fn kills() -> usize {
    sized(6, 30)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_dispatcher_loses_and_repeats_no_message() {
    survive(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_and_kills_lose_and_repeat_no_message() {
    survive(&LOST_ANSWERS).await;
}

async fn survive(faults: &[FaultKind]) {
    let fixture = Fixture::new().await;
    fixture.inject_faults(faults);
    // A few more form ids than messages: no form id may be spent without a delivery.
    for user in 0..USERS {
        fixture.submit(&format!("oUser{user}"), messages() / USERS + 2).await;
    }

    let port = any_port();
    let process = fixture.process(port);
    let channel = connect(port).await;
    let next = Arc::new(AtomicUsize::new(0));
    let callers: JoinSet<()> = (0..CALLERS).map(|_| call(channel.clone(), Arc::clone(&next))).collect();
    let (_process, _) = tokio::join!(kill_often(&fixture, process, port, messages(), kills()), callers.join_all());

    let books = fixture.sandbox.books(Some(APP)).unwrap();
    assert_eq!(
        (books.delivered, books.messages, books.delivered_twice),
        (messages() as u64, messages() as u64, 0),
        "{books:?}"
    );
    eventually("no lease is left", Duration::from_secs(20), async || {
        fixture.store.ledger(&fixture.app()).await.unwrap().leased == 0
    })
    .await;
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.collected, ledger.consumed), ((messages() + 2 * USERS) as u64, messages() as u64), "{ledger:?}");
    assert_eq!((ledger.discarded, ledger.expired, ledger.dropped), (0, 0, 0), "{ledger:?}");
    fixture.assert_settled(0).await;
}

/// Kills a dispatcher `kills` times and restarts it each time. A kill follows after an equal share of the `messages`
/// was delivered, at a random moment for the other messages in flight.
pub async fn kill_often(fixture: &Fixture, mut process: Process, port: u16, messages: usize, kills: usize) -> Process {
    for number in 1..=kills {
        let delivered = (messages * number / (kills + 2)) as u64;
        eventually("more messages are delivered", Duration::from_secs(60), async || fixture.delivered() >= delivered)
            .await;
        process.kill();
        process = fixture.process(port);
    }
    process
}

/// Takes the next message and repeats its request until it is answered.
async fn call(channel: Channel, next: Arc<AtomicUsize>) {
    let mut client = DispatcherServiceClient::new(channel);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= messages() {
            return;
        }
        loop {
            let mut order = tonic::Request::new(request(
                &format!("oUser{}", number % USERS),
                &format!("{number}"),
                &format!("r{number}"),
            ));
            // The connection may lead to a dispatcher that was killed.
            order.set_timeout(Duration::from_secs(5));
            match client.send_template(order).await {
                Ok(answer) => {
                    assert_eq!(answer.into_inner().outcome(), Outcome::Delivered);
                    break;
                }
                Err(status) => {
                    let again = matches!(status.code(), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled)
                        // How tonic reports a connection that broke because of a kill.
                        || (status.code() == Code::Unknown && status.details().is_empty());
                    assert!(again, "{status:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// Starts a dispatcher as a process and sends a message; returns once the message is leased.
async fn under_way(
    fixture: &Fixture,
    order: SendTemplateRequest,
) -> (Process, JoinHandle<Result<SendTemplateResponse, Status>>) {
    let port = any_port();
    let process = fixture.process(port);
    let channel = connect(port).await;
    serving(channel.clone(), true).await;
    let mut client = DispatcherServiceClient::new(channel);
    let sending = tokio::spawn(async move { client.send_template(order).await.map(tonic::Response::into_inner) });
    eventually("the message is leased", Duration::from_secs(10), async || {
        fixture.store.ledger(&fixture.app()).await.unwrap().leased == 1
    })
    .await;
    (process, sending)
}

#[tokio::test]
async fn drain_finishes_sends_in_flight() {
    let fixture = Fixture::new().await;
    fixture.submit("oUser", 1).await;
    let slow = sandbox::Settings { latency_ms: 300, ..fixture.sandbox.settings() };
    fixture.sandbox.set_settings(slow).unwrap();
    let (mut process, sending) = under_way(&fixture, request("oUser", "last", "r1")).await;
    process.signal("TERM");
    assert_eq!(sending.await.unwrap().unwrap().outcome(), Outcome::Delivered);
    assert_eq!(process.wait(Duration::from_secs(10)).await, Some(0));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn dispatcher_without_redis_stops_immediately() {
    let mut fixture = Fixture::new().await;
    fixture.redis.kill();
    let port = any_port();
    let mut process = fixture.process(port);
    connect(port).await;
    process.signal("TERM");
    assert_eq!(process.wait(Duration::from_secs(10)).await, Some(0));
}

#[tokio::test]
async fn drain_finishes_a_send_whose_caller_disconnected() {
    let fixture = Fixture::new().await;
    fixture.submit("oUser", 1).await;
    let slow = sandbox::Settings { latency_ms: 300, ..fixture.sandbox.settings() };
    fixture.sandbox.set_settings(slow).unwrap();
    let (mut process, sending) = under_way(&fixture, request("oUser", "last", "r1")).await;
    sending.abort();
    process.signal("TERM");
    assert_eq!(process.wait(Duration::from_secs(10)).await, Some(0));
    assert_eq!(fixture.delivered(), 1);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn lease_of_a_dead_dispatcher_returns_to_stock_without_request_id() {
    let fixture = Fixture::new().await;
    fixture.submit("oUser", 1).await;
    let hang = Rule { times: Some(1), hang_ms: Some(60_000), ..Rule::new(FaultKind::HangBefore) };
    fixture.sandbox.add_faults(vec![hang]).unwrap();
    let (mut process, sending) = under_way(&fixture, crate::fixture::message("oUser", "lost")).await;
    process.kill();
    assert!(sending.await.unwrap().is_err());
    let dispatcher = fixture.dispatcher().await;
    eventually("the reaper returns the form id", Duration::from_secs(10), async || fixture.left("oUser").await == 1)
        .await;
    let answer = dispatcher.send(crate::fixture::message("oUser", "next")).await.unwrap();
    assert_eq!(answer.outcome(), Outcome::Delivered);
    fixture.assert_settled(0).await;
    assert!(reason(&dispatcher.send(crate::fixture::message("oUser", "more")).await.unwrap_err()) == "NO_CREDENTIAL");
}
