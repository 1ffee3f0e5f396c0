//! What Redis may do to the store (lose its scripts, restart, be a cluster), and what the store may do in Redis.

use std::collections::HashSet;
use std::time::Duration;

use deadpool_redis::redis;
use domain::dependency::Dependency as _;
use domain::{AppId, GrantUses, OpenId};
use futures_util::StreamExt as _;
use store::broadcast::audience::Choice;
use store::broadcast::pages::{Next, Settlement};
use store::broadcast::permits::{Api, Bounds, Budget, Permits};
use store::broadcast::records::Move;
use store::broadcast::tasks::{Left, TakeTasks, Task};
use store::credentials::{OnceKey, Packed};
use store::delivery_failures::{LateFailure, MsgId};
use store::leases::{LeaseEnd, LeaseId, Leased, NewLease, Settle};
use store::stops::{Stop, StopScope};
use store::tokens::SharedToken;
use store::{Error, Store, StoreConfig};
use testing::{Redis, eventually, store_config};

use crate::broadcast::{draft, recipient, two_whole_broadcasts};
use crate::fixture::{
    BRIEF, DECIDED, Fixture, TERMS, any_kind, form_id, leased, next, prepay_id, request, template, user,
};

macro_rules! assert_unavailable {
    ($($call:expr),+ $(,)?) => {
        $(assert!(matches!($call.await, Err(Error::Unavailable(_))), "{}", stringify!($call));)+
    };
}

/// Runs every script at least once.
pub async fn a_whole_life(fixture: &Fixture) {
    let (anna, bob, message) = (user("oAnna"), user("oBob"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 1), form_id("f2", 2), prepay_id("p1", 3, 3), form_id("old", -1)]).await;
    leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, Some(&message)).await);
    fixture.reap(&TERMS).await;
    let over = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    let lease = next(fixture.settle_next(&anna, over.id, LeaseEnd::Discard, Some(&message), LeaseId::random()).await);
    fixture.settle_request(&anna, lease.id, LeaseEnd::Hold, None, &message).await;
    fixture.settle_request(&anna, lease.id, LeaseEnd::Consume, Some(b"ok"), &message).await;
    assert!(matches!(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await, Leased::Finished(_)));
    leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, None).await);
    fixture.reap(&TERMS).await;
    fixture.grant(&anna, "t1", GrantUses::Count(40), Some(OnceKey([1; 16]))).await;
    fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await;
    let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.settle(&anna, lease.id, LeaseEnd::Unknown).await;
    assert!(fixture.accept(&anna, "t1", OnceKey([3; 16]), DECIDED - 1).await);
    let voided = fixture.store.void(&fixture.app, &anna, &template("t1"), OnceKey([2; 16]), DECIDED).await.unwrap();
    assert_eq!(voided, Some(41));
    assert!(fixture.store.rejected_after(&fixture.app, &anna, &template("t1"), DECIDED - 1).await.unwrap());
    assert!(!fixture.accept(&anna, "t1", OnceKey([4; 16]), DECIDED - 1).await);
    assert!(!fixture.store.is_processed(&fixture.app, &anna, OnceKey([5; 16])).await.unwrap());
    fixture.store.set_processed(&fixture.app, &anna, OnceKey([5; 16])).await.unwrap();
    assert!(fixture.store.is_processed(&fixture.app, &anna, OnceKey([5; 16])).await.unwrap());
    for bucket in fixture.store.buckets() {
        fixture.store.sweep(&fixture.app, bucket, 0, Duration::ZERO).await.unwrap();
    }
    assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), 2);
    assert_eq!(fixture.ask(&bob, LeaseId::random(), &TERMS, None).await, Leased::None);
    assert!(!fixture.store.unlock_token(&fixture.app, "nobody").await.unwrap());
    two_whole_broadcasts(fixture).await;
    fixture.assert_sound().await;
}

#[tokio::test]
async fn scripts_that_redis_lost_are_loaded_again() {
    let fixture = Fixture::new().await;
    a_whole_life(&fixture).await;
    fixture.raw::<()>(&redis::cmd("FLUSHALL")).await;
    fixture.raw::<()>(redis::cmd("SCRIPT").arg("FLUSH")).await;
    a_whole_life(&fixture).await;
}

#[tokio::test]
async fn store_survives_a_restart_of_redis_with_all_its_data() {
    let mut fixture = Fixture::on(Redis::durable_alone(), 120).await;
    let (anna, message) = (user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 9), form_id("f2", 9)]).await;
    let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    let before = fixture.everything().await;
    fixture.redis.kill();
    assert!(fixture.store.ping().await.is_err());
    assert!(fixture.store.records(&fixture.app, &anna).await.is_err());
    fixture.redis.resume();
    let mut tries = 0;
    eventually("the store reaches Redis again", Duration::from_secs(5), async || {
        tries += 1;
        fixture.store.ping().await.is_ok()
    })
    .await;
    assert!(tries <= 4, "a broken connection is detected once: {tries} tries");
    fixture.reconnect().await;
    assert_eq!(fixture.everything().await, before);
    let settled = fixture.settle_request(&anna, lease.id, LeaseEnd::Consume, Some(b"ok"), &message).await;
    assert_eq!(settled, store::leases::SettleReply::Done { messages_left: 1 });
    fixture.lease(&anna).await;
    fixture.assert_sound().await;
}

#[tokio::test]
async fn different_number_of_buckets_is_refused() {
    let fixture = Fixture::new().await;
    let with = |buckets| Store::new(&StoreConfig { buckets, ..store_config(fixture.redis.url()) }).unwrap();
    let refused = with(8).prepare().await;
    assert!(matches!(refused, Err(Error::BucketCount { found: 4, wanted: 8 })), "{refused:?}");
    with(4).prepare().await.unwrap();
}

/// Asserts that all calls for broadcasts fail as unavailable too.
async fn assert_no_broadcast(store: &Store, app: &AppId, anna: &OpenId) {
    let (draft, owner, bucket) = (draft(true), LeaseId::random(), store.bucket_of(anna));
    let (id, everyone, day) = (&draft.id, true, Duration::from_secs(86400));
    let choice = Choice { wanted: any_kind(), min_interval: 0 };
    let list = [recipient(anna)];
    let users = std::slice::from_ref(anna);
    let settlement =
        Settlement { openid: anna.clone(), owner, verdict: LeaseEnd::Return, next: Next::Again, msgid: None };
    let task = Task { entry: "1-1".into(), broadcast: id.clone(), bucket };
    let bounds = Bounds { app_rate: 0, broadcast_rate: 0, daily_quota: 1, broadcast_share: 1 };
    let budget = Budget { api: Api::Template, day: 1 };
    let part = store.part(app, id, bucket);
    let take = TakeTasks { consumer: "c1", count: 1, silence: day, most: 1 };
    assert_unavailable!(
        store.create_broadcast(app, &draft, None),
        store.broadcast(app, id),
        store.broadcast_state(app, id),
        store.broadcasts(app, None, 1),
        store.move_broadcast(app, id, &Move::Start { everyone }, 0),
        store.due_broadcasts(app, 0),
        store.lengthen_streak(app, id),
        store.end_streak(app, id),
        part.add_recipients(&list, &[]),
        part.add_recipients(&[], users),
        part.snapshot(&choice, &TERMS),
        store.preview_all(app, bucket, &choice, &TERMS),
        store.preview_list(app, bucket, users, &choice, &TERMS),
        store.has_users(app),
        store.has_recipients(app, id),
        part.close(false),
        part.take_page(owner, 1, 1, &choice, &TERMS),
        part.in_flight(),
        part.take_over(owner, users, &TERMS),
        part.settle(&[settlement], &choice, &TERMS),
        part.permit(&Permits::default(), 1, 0, &bounds, budget),
        part.permits(0, true),
        store.count_messages(app, budget, 1),
        store.ended_messages(app, budget),
        store.set_quota(app, budget, 1, 1, 1),
        store.quota(app, budget),
        store.may_ask_quota(app, budget.api, day),
        store.may_recount_quota(app, budget.api, day),
        store.take_tasks(app, id, &take),
        store.keep_task(app, "c1", &task),
        store.leave_task(app, &task, Left::Done),
    );
}

#[tokio::test]
async fn unprepared_store_answers_only_pings_and_writes_nothing() {
    let fixture = Fixture::new().await;
    let (app, anna, message, id) = (&fixture.app, user("oAnna"), request("r1", 1), LeaseId::random());
    fixture.collect(&anna, &[form_id("f1", 1)]).await;
    let before = fixture.everything().await;
    let store = Store::new(&StoreConfig { buckets: 8, ..store_config(fixture.redis.url()) }).unwrap();
    // With another number of buckets than this Redis has, the store never becomes usable.
    for prepare in [false, true] {
        assert!(!prepare || store.prepare().await.is_err());
        store.ping().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), store.prepared()).await.is_err());
        let credentials = [Packed::new(anna.clone(), &form_id("f2", 1))];
        let (bucket, some, day) = (store.bucket_of(&anna), Some(&message), Duration::from_secs(86400));
        let (token, wanted) = (SharedToken { token: "t".into(), ends_ms: 0 }, any_kind());
        let new = NewLease { id, request: some, wanted: &wanted };
        let settle = Settle { id, request: some, end: LeaseEnd::Consume, outcome: Some(b"ok"), next: None };
        let failure = LateFailure { errcode: 1, status: String::new() };
        let stop = Stop { errcode: 45009, rid: String::new(), until_ms: 0, address: None };
        assert_unavailable!(
            store.collect(app, bucket, &credentials),
            store.records(app, &anna),
            store.touched(app, &anna),
            store.inventory(app, &anna, 0, 0),
            store.void(app, &anna, &template("t1"), OnceKey([1; 16]), DECIDED),
            store.rejected_after(app, &anna, &template("t1"), DECIDED),
            store.is_processed(app, &anna, OnceKey([1; 16])),
            store.set_processed(app, &anna, OnceKey([1; 16])),
            store.fail_late(app, &anna, MsgId(1), &failure),
            store.late_failure(app, &anna, MsgId(1)),
            store.erase(app, &anna),
            store.lease(app, &anna, &new, &TERMS),
            store.recorded(app, &anna, &message),
            store.settle(app, &anna, &settle, &TERMS),
            store.reap(app, bucket, &TERMS, 10),
            store.sweep(app, bucket, 0, Duration::ZERO),
            store.claim_sweep(app, bucket, day),
            store.users(app),
            store.stock(app, 0, 10),
            store.ledger(app),
            store.token(app),
            store.put_token(app, &token, day),
            store.drop_token(app, &token),
            store.lock_token(app, "me", day),
            store.permit_forced_token(app, day),
            store.unlock_token(app, "me"),
            store.stops(app),
            store.stop(app, &StopScope::App, &stop),
            store.lift_stops(app, &[StopScope::App]),
        );
        assert_no_broadcast(&store, app, &anna).await;
        assert_eq!(fixture.everything().await, before);
    }
    let store = Store::new(&store_config(fixture.redis.url())).unwrap();
    store.prepare().await.unwrap();
    store.prepared().await;
    assert_eq!(store.records(app, &anna).await.unwrap().len(), 1);
}

#[tokio::test]
async fn keys_of_every_script_are_in_one_slot_of_a_cluster() {
    let redis = Redis::alone_with(&["--save", "", "--appendonly", "no", "--cluster-enabled", "yes"]);
    let client = redis::Client::open(redis.url()).unwrap();
    let mut raw = client.get_multiplexed_async_connection().await.unwrap();
    let mut slots = redis::cmd("CLUSTER");
    slots.arg("ADDSLOTSRANGE").arg(0).arg(16383).exec_async(&mut raw).await.unwrap();
    eventually("the cluster is up", Duration::from_secs(10), async || {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut raw.clone()).await.unwrap();
        info.contains("cluster_state:ok")
    })
    .await;
    a_whole_life(&Fixture::on(redis, 120).await).await;
}

#[tokio::test]
async fn scripts_access_only_the_keys_they_are_given() {
    let fixture = Fixture::new().await;
    let client = redis::Client::open(fixture.redis.url()).unwrap();
    let monitor = client.get_async_monitor().await.unwrap();
    a_whole_life(&fixture).await;
    fixture.raw::<()>(redis::cmd("ECHO").arg("the end")).await;
    let mut lines = monitor.into_on_message::<String>();
    let (mut given, mut scripts, mut touched) = (HashSet::new(), HashSet::new(), 0);
    loop {
        // 1700000000.000000 [0 127.0.0.1:50000] "EVALSHA" "sha" "2" "key" "key" "argument"
        // 1700000000.000000 [0 lua] "HGET" "key" "field"
        let line = lines.next().await.unwrap();
        let (head, command) = line.split_once("] \"").unwrap();
        let words: Vec<_> = command.trim_end_matches('"').split("\" \"").map(str::to_owned).collect();
        match words[0].as_str() {
            "EVALSHA" => {
                let count: usize = words[2].parse().unwrap();
                given = words[3..3 + count].iter().cloned().collect();
                scripts.insert(words[1].clone());
            }
            "ECHO" => break,
            "TIME" | "INFO" => {}
            _ if head.ends_with("lua") => {
                // XGROUP CREATE key
                let key = if words[0] == "XGROUP" { &words[2] } else { &words[1] };
                assert!(given.contains(key), "{} {key}", words[0]);
                touched += 1;
            }
            _ => {}
        }
    }
    assert_eq!(scripts.len(), 27, "not every script ran");
    assert!(touched > 50);
}
