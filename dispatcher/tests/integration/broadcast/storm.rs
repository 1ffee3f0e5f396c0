//! Broadcasts under many failures: dispatchers that are killed, a Redis that restarts, and lost answers of WeChat.
//! Every user still gets one message, and no user gets two.
//!
//! The kills provide the evidence. Each kill affects a few hundred messages of two or three dispatchers, at every step
//! between lease and settlement. The audience only has to be so large that several buckets with several pages each are
//! left at the last kill. A larger one allows more kills: see `./deploy/test.sh --soak`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{look, tally, to_all, undelivered};
use crate::fixture::{APP, Fixture, LOST_ANSWERS, any_port, connect, serving};
use crate::subscription::{TEMPLATE, data};
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{BroadcastInfo, BroadcastRequest, BroadcastState};
use testing::{Process, Redis, eventually, sized};
use tonic::transport::Channel;

/// Enough buckets that another one can be processed while one waits for the leases of a dead dispatcher to expire.
fn buckets() -> u16 {
    sized(16, 64)
}

/// Three dispatcher processes, each on its own port.
struct Fleet {
    dispatchers: Vec<(u16, Process)>,
    clients: Vec<DispatcherServiceClient<Channel>>,
}

impl Fleet {
    async fn start(fixture: &Fixture) -> Self {
        let mut fleet = Self { dispatchers: Vec::new(), clients: Vec::new() };
        for _ in 0..3 {
            let port = any_port();
            fleet.dispatchers.push((port, fixture.process(port)));
            fleet.clients.push(DispatcherServiceClient::new(connect(port).await));
        }
        serving(connect(fleet.dispatchers[0].0).await, true).await;
        fleet
    }

    /// Kills a dispatcher and restarts it.
    fn strike(&mut self, fixture: &Fixture, number: usize) {
        let (port, process) = &mut self.dispatchers[number % 3];
        process.kill();
        *process = fixture.process(*port);
    }
}

/// Reads a broadcast through the first dispatcher that answers.
async fn look_through(clients: &mut [DispatcherServiceClient<Channel>], id: &str) -> Option<BroadcastInfo> {
    for client in clients {
        if let Ok(info) = look(client, id).await {
            return Some(info);
        }
    }
    None
}

/// Kills one dispatcher after the other, each time after a further share of the `users` has its message. The last kill
/// follows after three quarters.
async fn strike_often(fleet: &mut Fleet, fixture: &Fixture, users: usize) {
    let kills = sized(6, 40);
    for number in 0..kills {
        let delivered = (users * (number + 1) * 3 / (4 * kills)) as u64;
        eventually("more messages are delivered", Duration::from_secs(60), async || fixture.delivered() >= delivered)
            .await;
        fleet.strike(fixture, number);
    }
}

/// Waits until the broadcast is done.
async fn until_done(fleet: &Fleet, id: &str) -> BroadcastInfo {
    let (mut clients, mut done) = (fleet.clients.clone(), None);
    eventually("the broadcast is done", Duration::from_secs(60), async || {
        let Some(info) = look_through(&mut clients, id).await else { return false };
        assert_ne!(info.state(), BroadcastState::Paused, "the broadcast paused: {info:?}");
        let ended = info.state() == BroadcastState::Done;
        done = Some(info);
        ended
    })
    .await;
    done.unwrap()
}

/// Asserts at the end: one message per user in the tally, the ledger and the sandbox.
async fn assert_everyone_got_one(fixture: &Fixture, done: &BroadcastInfo, users: u64, spare: u64) {
    fixture.no_lease_left().await;
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    let tally = tally(done);
    assert_eq!((tally.audience, tally.delivered, tally.left), (users, users, 0), "{tally:?} {ledger:?}");
    let books = fixture.sandbox.books(Some(APP)).unwrap();
    assert_eq!((books.delivered, books.delivered_twice), (users, 0), "{books:?}");
    assert_eq!((ledger.collected, ledger.consumed), (users + spare, users), "{ledger:?}");
    assert_eq!((ledger.discarded, ledger.expired, ledger.dropped), (0, 0, 0), "{ledger:?}");
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_lost_answers_lose_no_message_and_send_none_twice() {
    let users = sized(2000, 20_000);
    let fixture = Fixture::with_buckets(Redis::start(), buckets()).await;
    fixture.submit_crowd(0..users).await;
    fixture.inject_faults(&LOST_ANSWERS);
    let mut fleet = Fleet::start(&fixture).await;
    let started = fleet.clients[0].broadcast(to_all()).await.unwrap().into_inner().broadcast.unwrap();
    strike_often(&mut fleet, &fixture, users).await;
    let done = until_done(&fleet, &started.broadcast_id).await;
    assert_everyone_got_one(&fixture, &done, users as u64, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restart_loses_no_message_and_sends_none_twice() {
    let users = sized(2000, 20_000);
    let mut fixture = Fixture::with_buckets(Redis::durable(), buckets()).await;
    fixture.submit_crowd(0..users).await;
    fixture.inject_faults(&LOST_ANSWERS);
    let mut fleet = Fleet::start(&fixture).await;
    let started = fleet.clients[0].broadcast(to_all()).await.unwrap().into_inner().broadcast.unwrap();
    for part in [0.2, 0.5] {
        let enough = (part * users as f64) as u64;
        eventually("enough messages are delivered", Duration::from_secs(60), async || fixture.delivered() > enough)
            .await;
        fixture.redis.kill();
        fleet.strike(&fixture, 0);
        fixture.redis.resume();
    }
    let done = until_done(&fleet, &started.broadcast_id).await;
    assert_everyone_got_one(&fixture, &done, users as u64, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn form_ids_that_arrive_meanwhile_cause_no_second_message_and_are_kept() {
    let users = sized(2000, 4000);
    let fixture = Arc::new(Fixture::with_buckets(Redis::start(), buckets()).await);
    fixture.submit_crowd(0..users).await;
    fixture.inject_faults(&LOST_ANSWERS);
    let mut fleet = Fleet::start(&fixture).await;
    let over = Arc::new(AtomicBool::new(false));
    let collecting = tokio::spawn({
        let (fixture, over) = (Arc::clone(&fixture), Arc::clone(&over));
        async move {
            let mut more = 0;
            while !over.load(Ordering::Relaxed) && more < 2 * users {
                let from = more % users;
                fixture.submit_crowd(from..from + 100).await;
                more += 100;
            }
            more
        }
    });
    let started = fleet.clients[0].broadcast(to_all()).await.unwrap().into_inner().broadcast.unwrap();
    strike_often(&mut fleet, &fixture, users).await;
    let done = until_done(&fleet, &started.broadcast_id).await;
    over.store(true, Ordering::Relaxed);
    let more = collecting.await.unwrap() as u64;
    assert!(more > 0, "no form id was collected during the broadcast");
    assert_everyone_got_one(&fixture, &done, users as u64, more).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_grants_nobody_gets_two_and_whoever_may_have_got_none_is_counted_and_listed() {
    let users = sized(2000, 4000);
    let fixture = Fixture::with_buckets(Redis::start(), buckets()).await.subscribed();
    fixture.accept_crowd(0..users, TEMPLATE, 2).await;
    fixture.inject_faults(&LOST_ANSWERS);
    let mut fleet = Fleet::start(&fixture).await;
    let request = BroadcastRequest { template_id: TEMPLATE.into(), data: data("thing1", "spring"), ..to_all() };
    let started = fleet.clients[0].broadcast(request).await.unwrap().into_inner().broadcast.unwrap();
    strike_often(&mut fleet, &fixture, users).await;
    let done = until_done(&fleet, &started.broadcast_id).await;
    fixture.no_lease_left().await;
    let tally = tally(&done);
    let all = users as u64;
    assert_eq!((tally.audience, tally.delivered + tally.unknown, tally.left), (all, all, 0), "{tally:?}");
    assert!(tally.unknown > 0 && tally.unknown < all / 2, "{tally:?}");
    let books = fixture.sandbox.books(Some(APP)).unwrap();
    assert_eq!((books.delivered_twice, books.overlaps), (0, 0), "{books:?}");
    assert!((tally.delivered..=all).contains(&books.delivered), "{tally:?} {books:?}");
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.collected, ledger.consumed, ledger.unknown), (2 * all, all, tally.unknown), "{ledger:?}");
    let received = fixture.received();
    assert!(received.values().all(|count| *count == 1));
    let mut client = fleet.clients.remove(0);
    let listed = undelivered(&mut client, &started.broadcast_id).await;
    assert_eq!(listed.len() as u64, tally.unknown);
    for user in 0..users {
        let user = format!("oUser{user}");
        assert!(received.contains_key(&user) || listed.contains_key(&user), "{user} is neither reached nor listed");
    }
    fixture.assert_settled(0).await;
}
