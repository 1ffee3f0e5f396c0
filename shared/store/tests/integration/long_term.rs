//! Long-term subscriptions: any number of messages, one at a time.

use domain::GrantUses;
use store::eligibility::Eligibility;
use store::leases::{LeaseEnd, LeaseId, Leased, Reaped};
use store::stock::Ledger;

use crate::broadcast::{Broadcast, end};
use crate::fixture::{Fixture, TERMS, leased, template, user};

#[tokio::test]
async fn long_term_subscription_is_collected_once_and_not_used_up() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    assert!(fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await);
    assert!(!fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await);
    let (mut collected, mut consumed, mut unknown) = (1, 0, 0);
    for number in 0..60 {
        let verdict = [LeaseEnd::Consume, LeaseEnd::Unknown, LeaseEnd::Return, LeaseEnd::Suspect][number % 4];
        let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
        assert_eq!((lease.credential.as_str(), lease.messages_left, lease.suspect), ("t1", 0, false));
        assert!(!fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await, "also while it is leased");
        fixture.assert_sound().await;
        fixture.settle(&anna, lease.id, verdict).await;
        let spent = u64::from(matches!(verdict, LeaseEnd::Consume | LeaseEnd::Unknown));
        (collected, consumed) = (collected + spent, consumed + spent);
        unknown += u64::from(verdict == LeaseEnd::Unknown);
        let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
        assert_eq!(ledger, Ledger { collected, consumed, unknown, ..Ledger::default() });
        assert_eq!(ledger.available(), 1);
        fixture.assert_sound().await;
    }
    let records = fixture.store.records(&fixture.app, &anna).await.unwrap();
    assert_eq!(
        records.iter().map(|record| (record.long_term, record.credential.uses)).collect::<Vec<_>>(),
        [(true, 1)]
    );
}

#[tokio::test]
async fn user_of_a_leased_long_term_subscription_is_only_locked() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await;
    let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    let before = fixture.everything().await;
    assert!(matches!(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await, Leased::Busy(_)));
    assert_eq!(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t2").await, Leased::None);
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, None).await, Leased::None);
    assert_eq!(fixture.everything().await, before);
    fixture.settle(&anna, lease.id, LeaseEnd::Consume).await;
    leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
}

#[tokio::test]
async fn long_term_subscription_survives_the_death_of_its_sender() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await;
    leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.advance(1).await;
    assert_eq!(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await, Leased::None, "outcome unknown");
    assert_eq!(fixture.reap(&TERMS).await, Reaped { spent: 1, ..Reaped::default() });
    leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    let wanted = Ledger { collected: 2, consumed: 1, unknown: 1, leased: 1, ..Ledger::default() };
    assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap(), wanted);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn broadcast_reaches_a_subscriber_who_is_locked_at_its_start() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bucket = fixture.store.bucket_of(&anna);
    fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await;
    let single = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    let mut broadcast = Broadcast::new(&fixture, true).await;
    broadcast.choice.wanted = Eligibility::grants(template("t1"));
    let preview = fixture.store.preview_all(&fixture.app, bucket, &broadcast.choice, &TERMS).await.unwrap();
    assert_eq!((preview.reached, preview.no_credential), (1, 0));
    broadcast.snapshot_all().await;
    let owner = LeaseId::random();
    let page = broadcast.take(bucket, owner, 9, &TERMS).await;
    assert_eq!((page.taken, page.busy, page.ready.len()), (1, 1, 0));
    fixture.settle(&anna, single.id, LeaseEnd::Consume).await;
    let page = broadcast.take(bucket, owner, 9, &TERMS).await;
    assert_eq!((page.taken, page.busy, page.ready.len()), (1, 0, 1));
    broadcast.settle(&anna, owner, LeaseEnd::Consume, end("delivered")).await;
    assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap().available(), 1);
    fixture.assert_sound().await;
}
