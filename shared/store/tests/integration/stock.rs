//! The sweep and its counts.

use std::collections::BTreeMap;
use std::time::Duration;

use deadpool_redis::redis;
use domain::{GrantUses, Kind};
use store::credentials::Available;
use store::keys::BucketKeys;
use store::leases::LeaseId;
use store::record::NEVER;
use store::stock::{Count, DAY, DAY_OFFSET, Granted, Stock};

use crate::fixture::{Fixture, HOUR, TERMS, form_id, leased, prepay_id, template, user};

fn count(credentials: u64, messages: u64) -> Count {
    Count { credentials, messages }
}

/// The day in China in so many hours and 30 minutes.
fn day(hours: i64) -> i64 {
    (testing::now() + hours * HOUR + HOUR / 2 + DAY_OFFSET).div_euclid(DAY)
}

#[tokio::test]
async fn stock_counts_users_credentials_messages_by_day_and_kind() {
    let fixture = Fixture::new().await;
    let users = ["oA", "oB", "oC", "oD"].map(user);
    fixture.collect(&users[0], &[form_id("f1", 30), form_id("f2", 30), prepay_id("p1", 3, 30)]).await;
    fixture.collect(&users[1], &[form_id("f1", 30), form_id("f2", 80)]).await;
    fixture.collect(&users[2], &[form_id("f1", 1)]).await;
    fixture.collect(&users[3], &[form_id("f1", -1)]).await;
    fixture.lease(&users[2]).await;
    let days = BTreeMap::from([
        ((day(30), Kind::FormId), count(3, 3)),
        ((day(30), Kind::PrepayId), count(1, 3)),
        ((day(80), Kind::FormId), count(1, 1)),
    ]);
    let now = testing::now();
    let stock = fixture.store.stock(&fixture.app, now, 100).await.unwrap();
    assert_eq!(stock, Stock { reachable: 2, days, counted_at: now, ..Stock::default() });
    assert_eq!(fixture.store.users(&fixture.app).await.unwrap(), 3, "the user with only an expired form id is removed");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn few_users_are_counted_immediately_many_by_the_last_sweep() {
    let fixture = Fixture::new().await;
    for name in ["oA", "oB", "oC"] {
        fixture.collect(&user(name), &[form_id("f1", 30)]).await;
    }
    let ask = async |now, few| {
        let stock = fixture.store.stock(&fixture.app, now, few).await.unwrap();
        (stock.reachable, stock.counted_at)
    };
    assert_eq!(ask(100, 0).await, (3, 100), "not counted before");
    fixture.collect(&user("oD"), &[form_id("f1", 30)]).await;
    assert_eq!(ask(200, 0).await, (3, 100), "from the last count");
    assert_eq!(ask(300, 3).await, (3, 100), "from the last count: there are four users");
    assert_eq!(ask(400, 4).await, (4, 400), "counted at once");
    assert_eq!(ask(500, 0).await, (4, 400), "from the last count again");
    let bucket = fixture.store.bucket_of(&user("oD"));
    fixture.store.sweep(&fixture.app, bucket, 600, Duration::ZERO).await.unwrap();
    assert_eq!(ask(700, 0).await, (4, 400), "as old as its oldest part");
    fixture.advance(25).await;
    assert_eq!(ask(800, 0).await, (4, 800), "a count is kept for less than a day");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn sweep_finds_all_users_and_drops_expired_credentials() {
    let fixture = Fixture::new().await;
    let mut expired = 0;
    for number in 0..3000 {
        let old = number % 3 == 0;
        expired += u64::from(old);
        let credentials = [form_id(&format!("{number:032}"), if old { -1 } else { 30 }), form_id("f1", 30)];
        fixture.collect(&user(&format!("oUser{number}")), &credentials[..if number % 2 == 0 { 2 } else { 1 }]).await;
    }
    let mut sum = (0, 0);
    for bucket in fixture.store.buckets() {
        let stock = fixture.store.sweep(&fixture.app, bucket, 0, Duration::from_millis(1)).await.unwrap();
        sum.0 += stock.reachable;
        sum.1 += stock.days.values().map(|count| count.messages).sum::<u64>();
    }
    // Of 3000 users, 1000 have a first form id that has expired. Every second one of them has another form id.
    assert_eq!(sum, (2500, 3500));
    assert_eq!(fixture.store.users(&fixture.app).await.unwrap(), 2500);
    assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap().expired, expired);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn one_sweeper_at_a_time_claims_a_bucket() {
    let fixture = Fixture::new().await;
    let bucket = fixture.store.bucket_of(&user("oA"));
    let claim = async || fixture.store.claim_sweep(&fixture.app, bucket, Duration::from_secs(1800)).await.unwrap();
    assert!(claim().await);
    assert!(!claim().await);
    fixture.advance(1).await;
    assert!(claim().await);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn grants_are_counted_by_template_and_each_user_once() {
    let fixture = Fixture::new().await;
    let users = ["oA", "oB", "oC", "oD"].map(user);
    fixture.grant(&users[0], "t1", GrantUses::Count(70), None).await;
    fixture.grant(&users[0], "t1", GrantUses::LongTerm, None).await;
    fixture.grant(&users[0], "t2", GrantUses::Count(2), None).await;
    fixture.grant(&users[1], "t1", GrantUses::Count(1), None).await;
    fixture.collect(&users[1], &[form_id("f1", 30)]).await;
    fixture.grant(&users[2], "t2", GrantUses::LongTerm, None).await;
    // A leased subscription cannot be used now.
    fixture.grant(&users[3], "t3", GrantUses::LongTerm, None).await;
    leased(fixture.ask_for(&users[3], LeaseId::random(), &TERMS, "t3").await);
    let granted = |users, messages, long_term| Granted { users, messages, long_term, ..Granted::default() };
    let templates = [(template("t1"), granted(2, 72, 1)), (template("t2"), granted(2, 3, 1))];
    let wanted = Stock {
        reachable: 3,
        days: BTreeMap::from([((day(30), Kind::FormId), count(1, 1))]),
        templates: BTreeMap::from(templates),
        counted_at: 0,
    };
    for few in [100, 0] {
        let stock = fixture.store.stock(&fixture.app, 0, few).await.unwrap();
        assert_eq!(stock, wanted, "counted at once, and from the last count");
    }
    fixture.assert_sound().await;
}

#[tokio::test]
async fn count_stored_by_an_earlier_release_is_readable() {
    let fixture = Fixture::new().await;
    for bucket in fixture.store.buckets() {
        let key = BucketKeys::new(&fixture.app, bucket).stock();
        let kept = r#"{"reachable":2,"days":[[20000,1,{"credentials":3,"messages":9}]],"counted_at":7}"#;
        fixture.raw::<()>(redis::cmd("SET").arg(key).arg(kept).arg("EX").arg(60)).await;
    }
    fixture.collect(&user("oA"), &[form_id("f1", 30)]).await;
    let buckets = fixture.store.buckets().len() as u64;
    let days = BTreeMap::from([((20000, Kind::PrepayId), count(3 * buckets, 9 * buckets))]);
    let wanted = Stock { reachable: 2 * buckets, days, counted_at: 7, ..Stock::default() };
    assert_eq!(fixture.store.stock(&fixture.app, 100, 0).await.unwrap(), wanted);
}

#[tokio::test]
async fn inventory_of_a_user_lists_each_template_separately() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 30), prepay_id("p1", 3, 20)]).await;
    fixture.grant(&anna, "t1", GrantUses::Count(40), None).await;
    fixture.grant(&anna, "t2", GrantUses::LongTerm, None).await;
    fixture.grant(&anna, "t2", GrantUses::Count(2), None).await;
    fixture.grant(&anna, "t3", GrantUses::Count(1), None).await;
    leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t3").await);
    let inventory = fixture.store.inventory(&fixture.app, &anna, testing::now(), 0).await.unwrap();
    let of = |credentials, messages, long_term| Available {
        credentials,
        messages,
        soonest_expiry: NEVER,
        latest_expiry: NEVER,
        long_term,
        ..Available::default()
    };
    assert_eq!(inventory.len(), 4);
    assert_eq!(inventory[&(Kind::Grant, Some(template("t1")))], of(2, 40, false));
    assert_eq!(inventory[&(Kind::Grant, Some(template("t2")))], of(2, 3, true));
    assert_eq!((inventory[&(Kind::FormId, None)].messages, inventory[&(Kind::PrepayId, None)].messages), (1, 3));
}
