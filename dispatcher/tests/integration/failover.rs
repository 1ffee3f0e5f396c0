//! A master is killed while messages are sent, and its replica is promoted. Replication is asynchronous, so the replica
//! may lack the last writes.
//!
//! Messages that were sent after those writes are sent again with the same form ids, which WeChat rejects (41029). They
//! are not sent again if their bucket was already finished. So every user gets the message and no user gets it twice,
//! but the affected messages count as failed or as left, or are not counted, although they arrived.
//!
//! The test needs one moment: the master dies with a few hundred messages in flight. There need only be enough other
//! messages for this moment to fall in the middle. `./deploy/test.sh --soak` sends more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::broadcast::{look, tally, to_all, undelivered};
use crate::fixture::{APP, Fixture, Running, reason, request};
use server::proto::{BroadcastState, Outcome};
use testing::{Redis, eventually, sized};
use tonic::Code;

const BUCKETS: u16 = 64;

/// Longer than a replica takes to be promoted, and than leases take to expire.
const FAILOVER: Duration = Duration::from_secs(60);

/// The maximum number of users that two dispatchers have taken from the audience and not settled when the master dies:
/// for each dispatcher, the messages in flight, and a page and a half in each of 4 buckets.
const TAKEN: u64 = 2 * (128 + 4 * 96);

/// Number of callers that send single messages.
const CALLERS: u64 = 16;

/// Timeouts of WeChat calls and Redis commands, and the lease. They are long enough that a message is settled after a
/// failover, and short enough to wait for.
const WAITS: [&str; 3] = ["5s", "2s", "7s"];

/// A key in the slot of the app's broadcasts, and a key of a bucket of users on another master.
fn keys(redis: &mut Redis) -> [String; 2] {
    let broadcasts = format!("formid:{{{APP}}}:broadcasts");
    let master = redis.master(&broadcasts).url();
    let mut buckets = (0..BUCKETS).map(|bucket| format!("formid:{{{APP}:{bucket}}}:users"));
    let other = buckets.find(|key| redis.master(key).url() != master);
    [broadcasts.clone(), other.unwrap_or(broadcasts)]
}

async fn fixture(redis: Redis) -> Fixture {
    let mut fixture = Fixture::with_buckets(redis, BUCKETS).await;
    fixture.waits = WAITS;
    fixture.change(serde_json::json!({ "latency_ms": 5, "jitter_ms": 10 }));
    fixture
}

/// The replica of the master that holds `key` stops receiving writes, as can happen at any time. Then the master dies
/// and the replica is promoted. Returns the maximum number of messages that the new master does not know of.
async fn fall_behind_and_die(fixture: &mut Fixture, key: &str) -> u64 {
    // The replica has all credentials first, so that only messages in flight are lost.
    fixture.redis.replicated_master(key);
    let before = fixture.delivered();
    fixture.redis.replicated_master(key).cut_off_replicas();
    eventually("more messages are sent", FAILOVER, async || fixture.delivered() > before + 200).await;
    fixture.redis.master(key).kill();
    // Messages that already had their credential were still sent. Wait until a new master answers.
    fixture.redis.master(key);
    fixture.delivered() - before
}

/// Number of 41029 answers: form ids that had already been used.
fn spent(fixture: &Fixture) -> u64 {
    fixture.sandbox.books(Some(APP)).unwrap().answers.get(&41029).copied().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_outlives_the_master_that_has_its_tasks() {
    broadcast_through_a_failover(Redis::cluster(), 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_outlives_a_master_that_has_a_third_of_its_users() {
    broadcast_through_a_failover(Redis::cluster(), 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_outlives_the_master_under_sentinels() {
    broadcast_through_a_failover(Redis::sentinel(), 0).await;
}

async fn broadcast_through_a_failover(redis: Redis, which: usize) {
    let users: u64 = sized(2500, 6000);
    let mut fixture = fixture(redis).await;
    fixture.submit_crowd(0..users as usize).await;
    let running = [fixture.dispatcher().await, fixture.dispatcher().await];
    let id = running[0].answer(to_all()).await.unwrap().broadcast.unwrap().broadcast_id;
    let key = keys(&mut fixture.redis)[which].clone();
    eventually("a quarter of the users has the message", FAILOVER, async || fixture.delivered() > users / 4).await;
    let lost = fall_behind_and_die(&mut fixture, &key).await + TAKEN;
    let mut done = None;
    eventually("the broadcast ends", FAILOVER, async || {
        let info = look(&mut running[1].client.clone(), &id).await.ok();
        done = info.filter(|info| info.state() == BroadcastState::Done);
        done.is_some()
    })
    .await;
    let done = done.unwrap();

    let (books, tally) = (fixture.sandbox.books(Some(APP)).unwrap(), tally(&done));
    let dead: u64 = tally.failed.iter().map(|failure| failure.count).sum();
    // Every user got the message, and no user got it twice.
    assert_eq!((books.delivered, books.delivered_twice), (users, 0), "{books:?}");
    assert_eq!(fixture.received().len() as u64, users);
    assert!(spent(&fixture) <= lost, "at most {lost} may be lost: {books:?}");
    // The tally is consistent. It lacks no more deliveries than the new master may have lost.
    assert_eq!(tally.audience, tally.delivered + dead + tally.left, "{tally:?}");
    assert!(tally.audience <= users && tally.delivered + lost >= users, "{tally:?}");
    assert!(tally.failed.iter().all(|failure| failure.errcode == Some(41029)), "{tally:?}");
    assert_eq!(undelivered(&mut running[1].client.clone(), &id).await.len() as u64, dead);
    // The ledger is consistent, too. A lease whose bucket was already finished stays for as long as a request is kept.
    eventually("only leases of finished buckets are left", FAILOVER, async || {
        fixture.store.ledger(&fixture.app()).await.is_ok_and(|ledger| ledger.leased <= tally.left)
    })
    .await;
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.collected, ledger.consumed, ledger.discarded), (users, tally.delivered, dead), "{ledger:?}");
    fixture.assert_settled(ledger.leased).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_messages_outlive_a_master_of_a_cluster() {
    send_through_a_failover(Redis::cluster()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_messages_outlive_the_master_under_sentinels() {
    send_through_a_failover(Redis::sentinel()).await;
}

/// Takes the next user, sends a message and repeats the request until it is answered. Returns the number of delivered
/// messages, and the number that were rejected because their form id was already used.
async fn caller(running: Arc<Running>, next: Arc<AtomicUsize>, users: usize) -> (usize, usize) {
    let (mut delivered, mut dead) = (0, 0);
    loop {
        let user = next.fetch_add(1, Ordering::Relaxed);
        if user >= users {
            return (delivered, dead);
        }
        let message = request(&format!("oUser{user}"), "hello", &format!("r{user}"));
        loop {
            match running.send(message.clone()).await {
                Ok(answer) if answer.outcome() == Outcome::Delivered => delivered += 1,
                // The message had been sent, and the record of its outcome was lost.
                Err(status) if reason(&status) == "CREDENTIALS_DEAD" => dead += 1,
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                other => panic!("{other:?}"),
            }
            break;
        }
    }
}

async fn send_through_a_failover(redis: Redis) {
    let users: usize = sized(1500, 4000);
    let mut fixture = fixture(redis).await;
    fixture.submit_crowd(0..users).await;
    let running = Arc::new(fixture.dispatcher().await);
    let next = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> =
        (0..CALLERS).map(|_| tokio::spawn(caller(Arc::clone(&running), Arc::clone(&next), users))).collect();
    let key = keys(&mut fixture.redis)[1].clone();
    eventually("a quarter of the messages is sent", FAILOVER, async || fixture.delivered() > users as u64 / 4).await;
    let lost = fall_behind_and_die(&mut fixture, &key).await + CALLERS;
    let (mut delivered, mut dead) = (0, 0);
    for caller in callers {
        let (its, not) = caller.await.unwrap();
        (delivered, dead) = (delivered + its, dead + not);
    }
    assert_eq!(delivered + dead, users);
    // A repeated request is answered from its record. Requests whose record was lost count as new.
    let (_, forgotten) = caller(Arc::clone(&running), Arc::new(AtomicUsize::new(0)), users).await;
    let books = fixture.sandbox.books(Some(APP)).unwrap();
    assert_eq!((books.delivered, books.delivered_twice), (users as u64, 0), "{books:?}");
    assert!(
        spent(&fixture) > 0 && (forgotten as u64) <= spent(&fixture) && spent(&fixture) <= lost,
        "{lost}: {books:?}"
    );
    fixture.no_lease_left().await;
    fixture.assert_settled(0).await;
}
