//! Dispatchers that die while they send a subscription message: each message is delivered at most once, and its outcome
//! is reported correctly.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sandbox::{Endpoint, FaultKind, Rule};
use server::proto::Outcome;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use testing::eventually;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use super::{TEMPLATE, message, request};
use crate::crash::kill_often;
use crate::fixture::{APP, Fixture, LOST_ANSWERS, any_port, connect, serving};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_of_a_dead_dispatcher_is_spent_and_unknown() {
    for repeatable in [true, false] {
        let fixture = Fixture::new().await.subscribed();
        fixture.accept("oUser", TEMPLATE, 2).await;
        let rule = Rule { hang_ms: Some(400), endpoint: Endpoint::Subscribe, ..Rule::new(FaultKind::HangAfter) };
        fixture.sandbox.add_faults(vec![Rule { times: Some(1), ..rule }]).unwrap();
        let port = any_port();
        let mut process = fixture.process(port);
        let mut client = DispatcherServiceClient::new(connect(port).await);
        serving(connect(port).await, true).await;
        let order = if repeatable { request("oUser", "ready", "r1") } else { message("oUser", "ready") };
        let mut caller = client.clone();
        let sent = order.clone();
        let call = tokio::spawn(async move { caller.send_template(sent).await });
        eventually("WeChat has delivered the message", Duration::from_secs(10), async || fixture.delivered() == 1)
            .await;
        process.kill();
        assert!(call.await.unwrap().is_err());
        let _process = fixture.process(port);
        serving(connect(port).await, true).await;
        if repeatable {
            let repeated = loop {
                match client.send_template(order.clone()).await {
                    Ok(sent) => break sent.into_inner(),
                    Err(status) => {
                        assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{status:?}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            };
            assert_eq!((repeated.outcome(), repeated.attempts), (Outcome::Unknown, 0));
        }
        eventually("no lease is left", Duration::from_secs(20), async || {
            fixture.store.ledger(&fixture.app()).await.unwrap().leased == 0
        })
        .await;
        let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
        assert_eq!((ledger.consumed, ledger.unknown, ledger.available()), (1, 1, 1), "{ledger:?}");
        assert_eq!((fixture.granted("oUser", TEMPLATE).await, fixture.delivered()), (1, 1));
        // A second message uses the second grant.
        eventually("the second message is delivered", Duration::from_secs(10), async || {
            client.clone().send_template(message("oUser", "next")).await.is_ok()
        })
        .await;
        assert_eq!(fixture.delivered(), 2);
        fixture.assert_settled(0).await;
    }
}

const MESSAGES: usize = 400;
const USERS: usize = 80;
const CALLERS: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_lost_answers_send_no_message_twice() {
    let fixture = Fixture::new().await.subscribed();
    fixture.inject_faults(&LOST_ANSWERS);
    for user in 0..USERS {
        fixture.accept(&format!("oUser{user}"), TEMPLATE, (MESSAGES / USERS) as u16 + 2).await;
    }
    let port = any_port();
    let process = fixture.process(port);
    let channel = connect(port).await;
    let (next, delivered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let callers: JoinSet<()> =
        (0..CALLERS).map(|_| call(channel.clone(), Arc::clone(&next), Arc::clone(&delivered))).collect();
    let (_process, _) = tokio::join!(kill_often(&fixture, process, port, MESSAGES, 5), callers.join_all());
    eventually("no lease is left", Duration::from_secs(20), async || {
        fixture.store.ledger(&fixture.app()).await.unwrap().leased == 0
    })
    .await;
    let (ledger, books) =
        (fixture.store.ledger(&fixture.app()).await.unwrap(), fixture.sandbox.books(Some(APP)).unwrap());
    let delivered = delivered.load(Ordering::Relaxed) as u64;
    // Each message spent one grant, was delivered at most once, and was answered with its outcome as far as it is
    // known.
    assert_eq!((ledger.consumed, ledger.unknown), (MESSAGES as u64, MESSAGES as u64 - delivered), "{ledger:?}");
    assert_eq!((books.delivered_twice, books.overlaps), (0, 0), "{books:?}");
    assert!((delivered..=MESSAGES as u64).contains(&books.delivered), "{delivered} {books:?}");
    fixture.assert_settled(0).await;
}

/// Takes the next message and repeats its request until it is answered.
async fn call(channel: Channel, next: Arc<AtomicUsize>, delivered: Arc<AtomicUsize>) {
    let mut client = DispatcherServiceClient::new(channel);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= MESSAGES {
            return;
        }
        loop {
            let user = format!("oUser{}", number % USERS);
            match client.send_template(request(&user, &number.to_string(), &format!("r{number}"))).await {
                Ok(sent) => {
                    let sent = sent.into_inner();
                    delivered.fetch_add(usize::from(sent.outcome() == Outcome::Delivered), Ordering::Relaxed);
                    break;
                }
                Err(status) => {
                    let again = matches!(status.code(), Code::Unavailable | Code::Aborted | Code::Cancelled)
                        // How tonic reports a connection that broke because of a kill.
                        || (status.code() == Code::Unknown && status.details().is_empty());
                    assert!(again, "{status:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}
