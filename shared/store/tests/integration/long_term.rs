//! Long-term subscriptions: any number of messages, one at a time.

use domain::GrantUses;
use store::eligibility::Eligibility;
use store::leases::{LeaseEnd, LeaseId, Leased, Reaped};
use store::stock::Ledger;

use crate::broadcast::{Broadcast, end};
use crate::world::{TERMS, World, leased, template, user};

#[tokio::test]
async fn long_term_subscription_is_collected_once_and_not_used_up() {
    let (world, anna) = (World::new().await, user("oAnna"));
    assert!(world.grant(&anna, "t1", GrantUses::LongTerm, None).await);
    assert!(!world.grant(&anna, "t1", GrantUses::LongTerm, None).await);
    let (mut collected, mut consumed, mut unknown) = (1, 0, 0);
    for number in 0..60 {
        let verdict = [LeaseEnd::Consume, LeaseEnd::Unknown, LeaseEnd::Return, LeaseEnd::Suspect][number % 4];
        let lease = leased(world.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
        assert_eq!((lease.credential.as_str(), lease.messages_left, lease.suspect), ("t1", 0, false));
        assert!(!world.grant(&anna, "t1", GrantUses::LongTerm, None).await, "also while it is leased");
        world.assert_sound().await;
        world.settle(&anna, lease.id, verdict).await;
        let spent = u64::from(matches!(verdict, LeaseEnd::Consume | LeaseEnd::Unknown));
        (collected, consumed) = (collected + spent, consumed + spent);
        unknown += u64::from(verdict == LeaseEnd::Unknown);
        let ledger = world.store.ledger(&world.app).await.unwrap();
        assert_eq!(ledger, Ledger { collected, consumed, unknown, ..Ledger::default() });
        assert_eq!(ledger.available(), 1);
        world.assert_sound().await;
    }
    let records = world.store.records(&world.app, &anna).await.unwrap();
    assert_eq!(
        records.iter().map(|record| (record.long_term, record.credential.uses)).collect::<Vec<_>>(),
        [(true, 1)]
    );
}

#[tokio::test]
async fn user_of_a_leased_long_term_subscription_is_only_locked() {
    let (world, anna) = (World::new().await, user("oAnna"));
    world.grant(&anna, "t1", GrantUses::LongTerm, None).await;
    let lease = leased(world.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    let before = world.everything().await;
    assert!(matches!(world.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await, Leased::Busy(_)));
    assert_eq!(world.ask_for(&anna, LeaseId::random(), &TERMS, "t2").await, Leased::None);
    assert_eq!(world.ask(&anna, LeaseId::random(), &TERMS, None).await, Leased::None);
    assert_eq!(world.everything().await, before);
    world.settle(&anna, lease.id, LeaseEnd::Consume).await;
    leased(world.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
}

#[tokio::test]
async fn long_term_subscription_survives_the_death_of_its_sender() {
    let (world, anna) = (World::new().await, user("oAnna"));
    world.grant(&anna, "t1", GrantUses::LongTerm, None).await;
    leased(world.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    world.advance(1).await;
    assert_eq!(world.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await, Leased::None, "outcome unknown");
    assert_eq!(world.reap(&TERMS).await, Reaped { spent: 1, ..Reaped::default() });
    leased(world.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    let wanted = Ledger { collected: 2, consumed: 1, unknown: 1, leased: 1, ..Ledger::default() };
    assert_eq!(world.store.ledger(&world.app).await.unwrap(), wanted);
    world.assert_sound().await;
}

#[tokio::test]
async fn broadcast_reaches_a_subscriber_who_is_locked_at_its_start() {
    let (world, anna) = (World::new().await, user("oAnna"));
    let bucket = world.store.bucket_of(&anna);
    world.grant(&anna, "t1", GrantUses::LongTerm, None).await;
    let single = leased(world.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    let mut broadcast = Broadcast::new(&world, true).await;
    broadcast.choice.wanted = Eligibility::grants(template("t1"));
    let preview = world.store.preview_all(&world.app, bucket, &broadcast.choice, &TERMS).await.unwrap();
    assert_eq!((preview.reached, preview.no_credential), (1, 0));
    broadcast.snapshot_all().await;
    let owner = LeaseId::random();
    let page = broadcast.take(bucket, owner, 9, &TERMS).await;
    assert_eq!((page.taken, page.busy, page.ready.len()), (1, 1, 0));
    world.settle(&anna, single.id, LeaseEnd::Consume).await;
    let page = broadcast.take(bucket, owner, 9, &TERMS).await;
    assert_eq!((page.taken, page.busy, page.ready.len()), (1, 0, 1));
    broadcast.settle(&anna, owner, LeaseEnd::Consume, end("delivered")).await;
    assert_eq!(world.store.ledger(&world.app).await.unwrap().available(), 1);
    world.assert_sound().await;
}
