//! The sweep and its counts.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::credential::Kind;
use shared::store::stock::{Count, DAY, DAY_OFFSET, Stock};

use crate::world::{HOUR, World, form_id, prepay_id, user};

fn count(credentials: u64, messages: u64) -> Count {
    Count { credentials, messages }
}

/// The day, in China, of so many hours and a half from now.
fn day(hours: i64) -> i64 {
    (testing::now() + hours * HOUR + HOUR / 2 + DAY_OFFSET).div_euclid(DAY)
}

#[tokio::test]
async fn a_count_tells_users_credentials_and_messages_by_day_and_kind() {
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
    assert_eq!(stock, Stock { reachable: 2, days, counted_at: now });
    assert_eq!(world.store.users(&world.app).await.unwrap(), 3, "the one with nothing but the expired is gone");
    world.assert_sound().await;
}

#[tokio::test]
async fn few_users_are_counted_on_the_spot_and_many_from_the_last_sweep() {
    let world = World::new().await;
    for name in ["oA", "oB", "oC"] {
        world.collect(&user(name), &[form_id("f1", 30)]).await;
    }
    let ask = async |now, few| {
        let stock = world.store.stock(&world.app, now, few).await.unwrap();
        (stock.reachable, stock.counted_at)
    };
    assert_eq!(ask(100, 0).await, (3, 100), "never counted so far");
    world.collect(&user("oD"), &[form_id("f1", 30)]).await;
    assert_eq!(ask(200, 0).await, (3, 100), "kept");
    assert_eq!(ask(300, 3).await, (3, 100), "kept: there are four");
    assert_eq!(ask(400, 4).await, (4, 400), "on the spot");
    assert_eq!(ask(500, 0).await, (4, 400), "and kept again");
    let bucket = world.store.bucket_of(&user("oD"));
    world.store.sweep(&world.app, bucket, 600, Duration::ZERO).await.unwrap();
    assert_eq!(ask(700, 0).await, (4, 400), "as old as its oldest part");
    world.advance(25).await;
    assert_eq!(ask(800, 0).await, (4, 800), "a count of yesterday is not kept");
    world.assert_sound().await;
}

#[tokio::test]
async fn a_sweep_of_many_users_finds_each_and_drops_what_has_expired() {
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
    // Of 3000 users, 1000 have a first form id that is too old; every other one of them has a second.
    assert_eq!(sum, (2500, 3500));
    assert_eq!(world.store.users(&world.app).await.unwrap(), 2500);
    assert_eq!(world.store.ledger(&world.app).await.unwrap().expired, expired);
    world.assert_sound().await;
}

#[tokio::test]
async fn one_of_many_sweepers_gets_the_turn() {
    let world = World::new().await;
    let bucket = world.store.bucket_of(&user("oA"));
    let claim = async || world.store.claim_sweep(&world.app, bucket, Duration::from_secs(1800)).await.unwrap();
    assert!(claim().await);
    assert!(!claim().await);
    world.advance(1).await;
    assert!(claim().await);
    world.assert_sound().await;
}
