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

use crate::world::{HOUR, TERMS, World, form_id, leased, prepay_id, template, user};

fn count(credentials: u64, messages: u64) -> Count {
    Count { credentials, messages }
}

/// The day in China in so many hours and 30 minutes.
fn day(hours: i64) -> i64 {
    (testing::now() + hours * HOUR + HOUR / 2 + DAY_OFFSET).div_euclid(DAY)
}

#[tokio::test]
async fn stock_counts_users_credentials_messages_by_day_and_kind() {
    let world = World::new().await;
    let users = ["oA", "oB", "oC", "oD"].map(user);
    world.collect(&users[0], &[form_id("f1", 30), form_id("f2", 30), prepay_id("p1", 3, 30)]).await;
    world.collect(&users[1], &[form_id("f1", 30), form_id("f2", 80)]).await;
    world.collect(&users[2], &[form_id("f1", 1)]).await;
    world.collect(&users[3], &[form_id("f1", -1)]).await;
    world.lease(&users[2]).await;
    let days = BTreeMap::from([
        ((day(30), Kind::FormId), count(3, 3)),
        ((day(30), Kind::PrepayId), count(1, 3)),
        ((day(80), Kind::FormId), count(1, 1)),
    ]);
    let now = testing::now();
    let stock = world.store.stock(&world.app, now, 100).await.unwrap();
    assert_eq!(stock, Stock { reachable: 2, days, counted_at: now, ..Stock::default() });
    assert_eq!(world.store.users(&world.app).await.unwrap(), 3, "the user with only an expired form id is removed");
    world.assert_sound().await;
}

#[tokio::test]
async fn few_users_are_counted_at_once_many_by_the_last_sweep() {
    let world = World::new().await;
    for name in ["oA", "oB", "oC"] {
        world.collect(&user(name), &[form_id("f1", 30)]).await;
    }
    let ask = async |now, few| {
        let stock = world.store.stock(&world.app, now, few).await.unwrap();
        (stock.reachable, stock.counted_at)
    };
    assert_eq!(ask(100, 0).await, (3, 100), "not counted before");
    world.collect(&user("oD"), &[form_id("f1", 30)]).await;
    assert_eq!(ask(200, 0).await, (3, 100), "from the last count");
    assert_eq!(ask(300, 3).await, (3, 100), "from the last count: there are four users");
    assert_eq!(ask(400, 4).await, (4, 400), "counted at once");
    assert_eq!(ask(500, 0).await, (4, 400), "from the last count again");
    let bucket = world.store.bucket_of(&user("oD"));
    world.store.sweep(&world.app, bucket, 600, Duration::ZERO).await.unwrap();
    assert_eq!(ask(700, 0).await, (4, 400), "as old as its oldest part");
    world.advance(25).await;
    assert_eq!(ask(800, 0).await, (4, 800), "a count is kept for less than a day");
    world.assert_sound().await;
}

#[tokio::test]
async fn sweep_finds_all_users_and_drops_expired_credentials() {
    let world = World::new().await;
    let mut expired = 0;
    for number in 0..3000 {
        let old = number % 3 == 0;
        expired += u64::from(old);
        let credentials = [form_id(&format!("{number:032}"), if old { -1 } else { 30 }), form_id("f1", 30)];
        world.collect(&user(&format!("oUser{number}")), &credentials[..if number % 2 == 0 { 2 } else { 1 }]).await;
    }
    let mut sum = (0, 0);
    for bucket in world.store.buckets() {
        let stock = world.store.sweep(&world.app, bucket, 0, Duration::from_millis(1)).await.unwrap();
        sum.0 += stock.reachable;
        sum.1 += stock.days.values().map(|count| count.messages).sum::<u64>();
    }
    // Of 3000 users, 1000 have a first form id that has expired. Every second one of them has another form id.
    assert_eq!(sum, (2500, 3500));
    assert_eq!(world.store.users(&world.app).await.unwrap(), 2500);
    assert_eq!(world.store.ledger(&world.app).await.unwrap().expired, expired);
    world.assert_sound().await;
}

#[tokio::test]
async fn one_sweeper_at_a_time_claims_a_bucket() {
    let world = World::new().await;
    let bucket = world.store.bucket_of(&user("oA"));
    let claim = async || world.store.claim_sweep(&world.app, bucket, Duration::from_secs(1800)).await.unwrap();
    assert!(claim().await);
    assert!(!claim().await);
    world.advance(1).await;
    assert!(claim().await);
    world.assert_sound().await;
}

#[tokio::test]
async fn grants_are_counted_by_template_and_each_user_once() {
    let world = World::new().await;
    let users = ["oA", "oB", "oC", "oD"].map(user);
    world.grant(&users[0], "t1", GrantUses::Count(70), None).await;
    world.grant(&users[0], "t1", GrantUses::LongTerm, None).await;
    world.grant(&users[0], "t2", GrantUses::Count(2), None).await;
    world.grant(&users[1], "t1", GrantUses::Count(1), None).await;
    world.collect(&users[1], &[form_id("f1", 30)]).await;
    world.grant(&users[2], "t2", GrantUses::LongTerm, None).await;
    // A leased subscription cannot be used now.
    world.grant(&users[3], "t3", GrantUses::LongTerm, None).await;
    leased(world.ask_for(&users[3], LeaseId::random(), &TERMS, "t3").await);
    let granted = |users, messages, long_term| Granted { users, messages, long_term };
    let templates = [(template("t1"), granted(2, 72, 1)), (template("t2"), granted(2, 3, 1))];
    let wanted = Stock {
        reachable: 3,
        days: BTreeMap::from([((day(30), Kind::FormId), count(1, 1))]),
        templates: BTreeMap::from(templates),
        counted_at: 0,
    };
    for few in [100, 0] {
        let stock = world.store.stock(&world.app, 0, few).await.unwrap();
        assert_eq!(stock, wanted, "counted at once, and from the last count");
    }
    world.assert_sound().await;
}

#[tokio::test]
async fn count_stored_by_an_earlier_release_is_readable() {
    let world = World::new().await;
    for bucket in world.store.buckets() {
        let key = BucketKeys::new(&world.app, bucket).stock();
        let kept = r#"{"reachable":2,"days":[[20000,1,{"credentials":3,"messages":9}]],"counted_at":7}"#;
        world.raw::<()>(redis::cmd("SET").arg(key).arg(kept).arg("EX").arg(60)).await;
    }
    world.collect(&user("oA"), &[form_id("f1", 30)]).await;
    let buckets = world.store.buckets().len() as u64;
    let days = BTreeMap::from([((20000, Kind::PrepayId), count(3 * buckets, 9 * buckets))]);
    let wanted = Stock { reachable: 2 * buckets, days, counted_at: 7, ..Stock::default() };
    assert_eq!(world.store.stock(&world.app, 100, 0).await.unwrap(), wanted);
}

#[tokio::test]
async fn inventory_of_a_user_lists_each_template_separately() {
    let (world, anna) = (World::new().await, user("oAnna"));
    world.collect(&anna, &[form_id("f1", 30), prepay_id("p1", 3, 20)]).await;
    world.grant(&anna, "t1", GrantUses::Count(40), None).await;
    world.grant(&anna, "t2", GrantUses::LongTerm, None).await;
    world.grant(&anna, "t2", GrantUses::Count(2), None).await;
    world.grant(&anna, "t3", GrantUses::Count(1), None).await;
    leased(world.ask_for(&anna, LeaseId::random(), &TERMS, "t3").await);
    let inventory = world.store.inventory(&world.app, &anna, testing::now()).await.unwrap();
    let of = |credentials, messages, long_term| Available {
        credentials,
        messages,
        soonest_expiry: NEVER,
        latest_expiry: NEVER,
        long_term,
    };
    assert_eq!(inventory.len(), 4);
    assert_eq!(inventory[&(Kind::Grant, Some(template("t1")))], of(2, 40, false));
    assert_eq!(inventory[&(Kind::Grant, Some(template("t2")))], of(2, 3, true));
    assert_eq!((inventory[&(Kind::FormId, None)].messages, inventory[&(Kind::PrepayId, None)].messages), (1, 3));
}
