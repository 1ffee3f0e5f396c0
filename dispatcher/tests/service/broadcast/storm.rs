//! A broadcast in the worst of weathers: dispatchers that are killed, a Redis that restarts, a WeChat whose answers get
//! lost. Everyone gets one message all the same, and nobody two.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{look, tally, to_all, undelivered};
use crate::rig::{APP, LOST_ANSWERS, Rig, any_port, connect, serving};
use crate::subscription::{TEMPLATE, data};
use shared::proto::dispatcher_service_client::DispatcherServiceClient;
use shared::proto::{BroadcastInfo, BroadcastRequest, BroadcastState};
use testing::{Process, Redis, eventually};
use tonic::transport::Channel;

/// Enough that there is another bucket to go on with while one waits for the leases of a dead dispatcher to run out.
const BUCKETS: u16 = 64;

/// Three dispatchers, each a process on a port of its own.
struct Fleet {
    dispatchers: Vec<(u16, Process)>,
    clients: Vec<DispatcherServiceClient<Channel>>,
}

impl Fleet {
    async fn start(rig: &Rig) -> Self {
        let mut fleet = Self { dispatchers: Vec::new(), clients: Vec::new() };
        for _ in 0..3 {
            let port = any_port();
            fleet.dispatchers.push((port, rig.process(port)));
            fleet.clients.push(DispatcherServiceClient::new(connect(port).await));
        }
        serving(connect(fleet.dispatchers[0].0).await, true).await;
        fleet
    }

    /// Kills one and starts it again.
    fn strike(&mut self, rig: &Rig, number: usize) {
        let (port, process) = &mut self.dispatchers[number % 3];
        process.kill();
        *process = rig.process(*port);
    }
}

/// Looks at a broadcast through whoever answers.
async fn look_through(clients: &mut [DispatcherServiceClient<Channel>], id: &str) -> Option<BroadcastInfo> {
    for client in clients {
        if let Ok(info) = look(client, id).await {
            return Some(info);
        }
    }
    None
}

/// Waits for the end of a broadcast, doing something again and again meanwhile.
async fn until_done(
    fleet: &mut Fleet,
    id: &str,
    every: Duration,
    mut meanwhile: impl AsyncFnMut(&mut Fleet, usize),
) -> (BroadcastInfo, usize) {
    let begun = Instant::now();
    let (mut times, mut last) = (0, Instant::now());
    loop {
        let info = look_through(&mut fleet.clients.clone(), id).await;
        if let Some(info) = info.as_ref().filter(|info| info.state() == BroadcastState::Done) {
            return (info.clone(), times);
        }
        let paused = info.as_ref().is_some_and(|info| info.state() == BroadcastState::Paused);
        assert!(!paused, "it paused: {info:?}");
        assert!(begun.elapsed() < Duration::from_secs(120), "it never ends: {info:?}");
        if last.elapsed() >= every {
            meanwhile(fleet, times).await;
            (times, last) = (times + 1, Instant::now());
        }
        // Not a wait for anything: the pace at which somebody looks.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What must hold at the end: one message each, by every account.
async fn assert_everyone_got_one(rig: &Rig, done: &BroadcastInfo, users: u64, spare: u64) {
    rig.no_lease_left().await;
    let ledger = rig.store.ledger(&rig.app()).await.unwrap();
    let tally = tally(done);
    assert_eq!((tally.audience, tally.delivered, tally.left), (users, users, 0), "{tally:?} {ledger:?}");
    let books = rig.sandbox.books(Some(APP)).unwrap();
    assert_eq!((books.delivered, books.delivered_twice), (users, 0), "{books:?}");
    assert_eq!((ledger.collected, ledger.consumed), (users + spare, users), "{ledger:?}");
    assert_eq!((ledger.discarded, ledger.expired, ledger.dropped), (0, 0, 0), "{ledger:?}");
    rig.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_dispatchers_and_lost_answers_cost_nobody_a_message_and_give_nobody_two() {
    const USERS: usize = 20_000;
    let rig = Rig::with_buckets(Redis::start(), BUCKETS).await;
    rig.submit_crowd(0..USERS).await;
    rig.weather(&LOST_ANSWERS);
    let mut fleet = Fleet::start(&rig).await;
    let started = fleet.clients[0].broadcast(to_all()).await.unwrap().into_inner().broadcast.unwrap();
    let (done, kills) = until_done(&mut fleet, &started.broadcast_id, Duration::from_secs(1), async |fleet, number| {
        fleet.strike(&rig, number);
    })
    .await;
    assert!(kills >= 3, "it was over after {kills} kills");
    assert_everyone_got_one(&rig, &done, USERS as u64, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_restarts_costs_nobody_a_message_and_gives_nobody_two() {
    const USERS: usize = 20_000;
    let mut rig = Rig::with_buckets(Redis::durable(), BUCKETS).await;
    rig.submit_crowd(0..USERS).await;
    rig.weather(&LOST_ANSWERS);
    let mut fleet = Fleet::start(&rig).await;
    let started = fleet.clients[0].broadcast(to_all()).await.unwrap().into_inner().broadcast.unwrap();
    for part in [0.2, 0.5] {
        let mut clients = fleet.clients.clone();
        eventually("it is some way on", Duration::from_secs(60), async || {
            let info = look_through(&mut clients, &started.broadcast_id).await;
            info.is_some_and(|info| tally(&info).delivered as f64 > part * USERS as f64)
        })
        .await;
        rig.redis.kill();
        fleet.strike(&rig, 0);
        rig.redis.resume();
    }
    let nothing = async |_: &mut Fleet, _| {};
    let (done, _) = until_done(&mut fleet, &started.broadcast_id, Duration::from_secs(1), nothing).await;
    assert_everyone_got_one(&rig, &done, USERS as u64, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn form_ids_that_arrive_meanwhile_cause_no_second_message_and_are_kept() {
    const USERS: usize = 4000;
    let rig = Arc::new(Rig::with_buckets(Redis::start(), BUCKETS).await);
    rig.submit_crowd(0..USERS).await;
    rig.weather(&LOST_ANSWERS);
    let mut fleet = Fleet::start(&rig).await;
    let over = Arc::new(AtomicBool::new(false));
    let collecting = tokio::spawn({
        let (rig, over) = (Arc::clone(&rig), Arc::clone(&over));
        async move {
            let mut more = 0;
            while !over.load(Ordering::Relaxed) && more < 4 * USERS {
                let from = more % USERS;
                rig.submit_crowd(from..from + 100).await;
                more += 100;
            }
            more
        }
    });
    let started = fleet.clients[0].broadcast(to_all()).await.unwrap().into_inner().broadcast.unwrap();
    let (done, _) = until_done(&mut fleet, &started.broadcast_id, Duration::from_secs(1), async |fleet, number| {
        fleet.strike(&rig, number);
    })
    .await;
    over.store(true, Ordering::Relaxed);
    let more = collecting.await.unwrap() as u64;
    assert!(more > 0, "nothing arrived meanwhile");
    assert_everyone_got_one(&rig, &done, USERS as u64, more).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_grants_nobody_gets_two_and_whoever_may_have_got_none_is_counted_and_listed() {
    const USERS: usize = 4000;
    let rig = Rig::with_buckets(Redis::start(), BUCKETS).await.subscribed();
    rig.accept_crowd(0..USERS, TEMPLATE, 2).await;
    rig.weather(&LOST_ANSWERS);
    let mut fleet = Fleet::start(&rig).await;
    let request = BroadcastRequest { template_id: TEMPLATE.into(), data: data("thing1", "spring"), ..to_all() };
    let started = fleet.clients[0].broadcast(request).await.unwrap().into_inner().broadcast.unwrap();
    let (done, kills) =
        until_done(&mut fleet, &started.broadcast_id, Duration::from_millis(700), async |fleet, number| {
            fleet.strike(&rig, number);
        })
        .await;
    assert!(kills >= 2, "it was over after {kills} kills");
    rig.no_lease_left().await;
    let tally = tally(&done);
    let users = USERS as u64;
    assert_eq!((tally.audience, tally.delivered + tally.unknown, tally.left), (users, users, 0), "{tally:?}");
    assert!(tally.unknown > 0 && tally.unknown < users / 2, "{tally:?}");
    let books = rig.sandbox.books(Some(APP)).unwrap();
    assert_eq!((books.delivered_twice, books.overlaps), (0, 0), "{books:?}");
    assert!((tally.delivered..=users).contains(&books.delivered), "{tally:?} {books:?}");
    let ledger = rig.store.ledger(&rig.app()).await.unwrap();
    assert_eq!((ledger.collected, ledger.consumed, ledger.unknown), (2 * users, users, tally.unknown), "{ledger:?}");
    let received = rig.received();
    assert!(received.values().all(|count| *count == 1));
    let mut client = fleet.clients.remove(0);
    let listed = undelivered(&mut client, &started.broadcast_id).await;
    assert_eq!(listed.len() as u64, tally.unknown);
    for user in 0..USERS {
        let user = format!("oUser{user}");
        assert!(received.contains_key(&user) || listed.contains_key(&user), "{user} is neither reached nor listed");
    }
    rig.assert_settled(0).await;
}
