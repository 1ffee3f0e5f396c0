//! Delivery failures: messages that WeChat accepted but could not deliver. Each is counted once, whether its report
//! comes before or after its end.

use deadpool_redis::redis;
use domain::{GrantUses, OpenId};
use store::broadcast::tallies::{DELIVERED, Undelivered};
use store::delivery_failures::{LateFailure, MsgId};
use store::eligibility::Eligibility;
use store::leases::LeaseId;

use crate::broadcast::Broadcast;
use crate::fixture::{Fixture, TERMS, template, user};

const FAILED: &str = "FAILED_LATER 43101";

/// A broadcast of subscription messages that are all in flight.
async fn sending<'a>(fixture: &'a Fixture, users: &[OpenId], owner: LeaseId) -> Broadcast<'a> {
    for user in users {
        fixture.grant(user, "t1", GrantUses::Count(1), None).await;
    }
    let mut broadcast = Broadcast::to(fixture, users).await;
    broadcast.choice.wanted = Eligibility::grants(template("t1"));
    assert_eq!(broadcast.take_all(owner, &TERMS).await.len(), users.len());
    broadcast
}

/// How many are counted as delivered and as failed later. Asserts that the tally adds up.
async fn counts(broadcast: &Broadcast<'_>) -> (u64, u64) {
    let tally = broadcast.tally().await;
    let (_, flight, _) = broadcast.places().await;
    assert_eq!(tally.left(), flight.len() as u64);
    (tally.ended(DELIVERED), tally.ended(FAILED))
}

async fn undelivered(broadcast: &Broadcast<'_>) -> Vec<String> {
    let all = broadcast.undelivered(10).await;
    all.into_iter().map(|Undelivered { openid, ending }| format!("{openid} {ending}")).collect()
}

#[tokio::test]
async fn failure_reads_back_for_two_days() {
    let (fixture, anna, msgid) = (Fixture::new().await, user("oAnna"), MsgId(u64::MAX));
    let failure = |errcode, status: &str| LateFailure { errcode, status: status.to_owned() };
    let read = async || fixture.store.late_failure(&fixture.app, &anna, msgid).await.unwrap();
    let report = async |failure| fixture.store.fail_late(&fixture.app, &anna, msgid, &failure).await.unwrap();
    assert_eq!(read().await, None);
    for first in [failure(43101, "user refuse"), failure(-1, "")] {
        assert!(report(first.clone()).await);
        assert_eq!(read().await, Some(first.clone()));
        assert!(!report(failure(1, "something else")).await, "reported before");
        assert_eq!(read().await, Some(first));
        assert_eq!(fixture.store.late_failure(&fixture.app, &anna, MsgId(1)).await.unwrap(), None);
        fixture.advance(47).await;
        assert!(read().await.is_some());
        fixture.assert_sound().await;
        fixture.advance(1).await;
        assert_eq!(read().await, None);
    }
}

#[tokio::test]
async fn failure_after_the_end_turns_delivered_into_failed_once() {
    let (fixture, anna, owner) = (Fixture::new().await, user("oAnna"), LeaseId::random());
    let bob = fixture.neighbour(&anna);
    let broadcast = sending(&fixture, &[anna.clone(), bob.clone()], owner).await;
    broadcast.deliver(&anna, owner, MsgId(1)).await;
    broadcast.deliver(&bob, owner, MsgId(2)).await;
    assert_eq!(counts(&broadcast).await, (2, 0));
    assert!(broadcast.fail_late(&anna, MsgId(1)).await);
    for _ in 0..2 {
        assert_eq!(counts(&broadcast).await, (1, 1));
        assert_eq!(undelivered(&broadcast).await, [format!("oAnna {FAILED}")]);
        let before = fixture.everything().await;
        assert!(!broadcast.fail_late(&anna, MsgId(1)).await, "reported twice");
        broadcast.deliver(&anna, owner, MsgId(1)).await;
        assert_eq!(fixture.everything().await, before);
    }
    assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap().consumed, 2, "the grant stays spent");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn failure_before_the_end_becomes_the_ending() {
    let (fixture, anna, owner) = (Fixture::new().await, user("oAnna"), LeaseId::random());
    let bob = fixture.neighbour(&anna);
    let broadcast = sending(&fixture, &[anna.clone(), bob.clone()], owner).await;
    assert!(broadcast.fail_late(&anna, MsgId(1)).await);
    assert_eq!(counts(&broadcast).await, (0, 0));
    broadcast.deliver(&bob, owner, MsgId(2)).await;
    broadcast.deliver(&anna, owner, MsgId(1)).await;
    for _ in 0..2 {
        assert_eq!(counts(&broadcast).await, (1, 1));
        assert_eq!(undelivered(&broadcast).await, [format!("oAnna {FAILED}")]);
        assert!(!broadcast.fail_late(&anna, MsgId(1)).await);
    }
    fixture.assert_sound().await;
}

#[tokio::test]
async fn interrupted_report_is_counted_when_it_is_repeated() {
    let (fixture, anna, owner) = (Fixture::new().await, user("oAnna"), LeaseId::random());
    let broadcast = sending(&fixture, std::slice::from_ref(&anna), owner).await;
    broadcast.deliver(&anna, owner, MsgId(1)).await;
    // The first call was interrupted after this step.
    let keys = store::keys::BucketKeys::new(&fixture.app, fixture.store.bucket_of(&anna));
    fixture.raw::<()>(redis::cmd("SET").arg(keys.failed(MsgId(1))).arg("43101 user refuse").arg("EX").arg(60)).await;
    assert!(!broadcast.fail_late(&anna, MsgId(1)).await);
    assert_eq!(counts(&broadcast).await, (0, 1));
}

#[tokio::test]
async fn failure_is_counted_in_its_own_broadcast_also_when_closed() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let (mut all, mut failed) = (Vec::<(Broadcast<'_>, MsgId)>::new(), 0);
    for number in 0..3 {
        let owner = LeaseId::random();
        let broadcast = sending(&fixture, std::slice::from_ref(&anna), owner).await;
        broadcast.deliver(&anna, owner, MsgId(number)).await;
        let bucket = fixture.store.bucket_of(&anna);
        assert!(broadcast.part(bucket).close(false).await.unwrap());
        all.push((broadcast, MsgId(number)));
    }
    assert!(fails_late(&fixture, &anna, MsgId(99)).await, "a single message");
    for at in [1, 0, 2] {
        all[at].0.fail_late(&anna, all[at].1).await;
        failed += 1;
        let mut sum = 0;
        for (broadcast, _) in &all {
            let (delivered, failed) = counts(broadcast).await;
            assert_eq!(delivered + failed, 1);
            sum += failed;
        }
        assert_eq!(sum, failed);
    }
    // The new keys are kept no longer than the others.
    for (broadcast, _) in &all {
        let part = broadcast.keys_in(fixture.store.bucket_of(&anna));
        let ttl = async |key: String| fixture.raw::<i64>(redis::cmd("TTL").arg(key)).await;
        assert!((ttl(part.tally()).await - ttl(part.undelivered()).await).abs() <= 1);
    }
    fixture.assert_sound().await;
}

/// Reports a delivery failure of a single message.
async fn fails_late(fixture: &Fixture, user: &OpenId, msgid: MsgId) -> bool {
    let failure = LateFailure { errcode: 43101, status: String::new() };
    fixture.store.fail_late(&fixture.app, user, msgid, &failure).await.unwrap()
}

#[tokio::test]
async fn failure_of_an_erased_user_is_counted_without_the_openid() {
    let anna = user("oAnna");
    for reported_first in [true, false] {
        let (fixture, owner) = (Fixture::new().await, LeaseId::random());
        let broadcast = sending(&fixture, std::slice::from_ref(&anna), owner).await;
        broadcast.deliver(&anna, owner, MsgId(1)).await;
        if reported_first {
            broadcast.fail_late(&anna, MsgId(1)).await;
            assert_eq!(undelivered(&broadcast).await.len(), 1);
        }
        fixture.store.erase(&fixture.app, &anna).await.unwrap();
        assert_eq!(undelivered(&broadcast).await, [""; 0]);
        broadcast.fail_late(&anna, MsgId(1)).await;
        assert_eq!((counts(&broadcast).await, undelivered(&broadcast).await), ((0, 1), vec![]));
        let openid = |bytes: &[u8]| bytes.windows(5).any(|window| window == b"oAnna");
        for (key, entries) in fixture.everything().await {
            let found = openid(key.as_bytes()) || entries.iter().any(|(name, value)| openid(name) || openid(value));
            assert!(!found, "{key}");
        }
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn user_erased_in_flight_counts_as_erased_despite_a_report() {
    let anna = user("oAnna");
    for reported_first in [true, false] {
        let (fixture, owner) = (Fixture::new().await, LeaseId::random());
        let broadcast = sending(&fixture, std::slice::from_ref(&anna), owner).await;
        if reported_first {
            broadcast.fail_late(&anna, MsgId(1)).await;
        }
        fixture.store.erase(&fixture.app, &anna).await.unwrap();
        broadcast.deliver(&anna, owner, MsgId(1)).await;
        broadcast.fail_late(&anna, MsgId(1)).await;
        assert_eq!((counts(&broadcast).await, undelivered(&broadcast).await), ((0, 0), vec![]));
        assert_eq!(broadcast.tally().await.ended("erased"), 1);
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn msgids_are_kept_for_an_hour_and_later_reports_are_ignored() {
    let (fixture, anna, owner) = (Fixture::new().await, user("oAnna"), LeaseId::random());
    let broadcast = sending(&fixture, std::slice::from_ref(&anna), owner).await;
    broadcast.deliver(&anna, owner, MsgId(1)).await;
    let sent = broadcast.keys_in(fixture.store.bucket_of(&anna)).sent();
    assert!((3500..=3600).contains(&fixture.raw::<i64>(redis::cmd("TTL").arg(&sent)).await));
    fixture.advance(1).await;
    assert!(broadcast.fail_late(&anna, MsgId(1)).await);
    assert_eq!((counts(&broadcast).await, undelivered(&broadcast).await), ((1, 0), vec![]));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn failure_in_a_deleted_broadcast_creates_no_key() {
    let (fixture, anna, owner) = (Fixture::new().await, user("oAnna"), LeaseId::random());
    let broadcast = sending(&fixture, std::slice::from_ref(&anna), owner).await;
    broadcast.deliver(&anna, owner, MsgId(1)).await;
    let part = broadcast.keys_in(fixture.store.bucket_of(&anna));
    fixture.raw::<()>(redis::cmd("DEL").arg(part.tally())).await;
    broadcast.fail_late(&anna, MsgId(1)).await;
    let everything = fixture.everything().await;
    assert!(![part.tally(), part.undelivered(), part.sent()].iter().any(|key| everything.contains_key(key)));
    fixture.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_ends_and_reports_count_each_message_once() {
    let fixture = Fixture::new().await;
    let bucket = fixture.store.bucket_of(&user("oAnna"));
    let here = |user: &OpenId| fixture.store.bucket_of(user) == bucket;
    let users: Vec<_> = (0..).map(|number| user(&format!("oU{number}"))).filter(here).take(250).collect();
    for _ in 0..4 {
        let owner = LeaseId::random();
        let broadcast = sending(&fixture, &users, owner).await;
        let base = rand::random::<u32>();
        let both = users.iter().enumerate().map(async |(number, openid)| {
            let msgid = MsgId(u64::from(base) * 1000 + number as u64);
            tokio::join!(broadcast.deliver(openid, owner, msgid), broadcast.fail_late(openid, msgid));
        });
        futures_util::future::join_all(both).await;
        assert_eq!(counts(&broadcast).await, (0, 250));
        assert_eq!(undelivered(&broadcast).await.len(), 250);
    }
    fixture.assert_sound().await;
}
