//! Grants of subscription messages: how they are collected, and which messages they permit.

use domain::{GrantUses, Kind, OpenId};
use store::credentials::{OnceKey, Packed};
use store::leases::{LeaseEnd, LeaseId, Leased, Reaped, SettleReply};
use store::record::NEVER;
use store::stock::Ledger;

use crate::fixture::{Fixture, TERMS, form_id, leased, packed_grant, user};

async fn ledger(fixture: &Fixture) -> Ledger {
    fixture.store.ledger(&fixture.app).await.unwrap()
}

#[tokio::test]
async fn grant_permits_as_many_messages_of_its_template_as_accepted() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    assert!(fixture.grant(&anna, "t1", GrantUses::Count(2), None).await);
    assert!(fixture.grant(&anna, "t1", GrantUses::Count(1), None).await);
    assert!(fixture.grant(&anna, "t2", GrantUses::Count(1), None).await);
    assert_eq!(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t3").await, Leased::None);
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, None).await, Leased::None, "a lease without a template");
    for left in (0..3).rev() {
        let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
        assert_eq!((lease.credential.as_str(), lease.kind, lease.messages_left), ("t1", Kind::Grant, left + 1));
        let busy = fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t2").await;
        assert!(
            matches!(busy, Leased::Busy(wait) if wait <= TERMS.duration + std::time::Duration::from_secs(1)),
            "{busy:?}"
        );
        let settled = fixture.settle(&anna, lease.id, LeaseEnd::Consume).await;
        assert_eq!(settled, SettleReply::Done { messages_left: left + 1 });
        fixture.assert_sound().await;
    }
    assert_eq!(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await, Leased::None);
    leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t2").await);
    assert_eq!(ledger(&fixture).await, Ledger { collected: 4, consumed: 3, leased: 1, ..Ledger::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn grant_with_a_dedup_key_counts_once_and_without_each_time() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let key = OnceKey([7; 16]);
    assert!(fixture.grant(&anna, "t1", GrantUses::Count(5), Some(key)).await);
    let before = fixture.everything().await;
    assert!(!fixture.grant(&anna, "t1", GrantUses::Count(5), Some(key)).await);
    assert_eq!(fixture.everything().await, before);
    for _ in 0..2 {
        assert!(fixture.grant(&anna, "t1", GrantUses::Count(5), None).await);
    }
    assert!(fixture.grant(&anna, "t1", GrantUses::Count(5), Some(OnceKey([8; 16]))).await);
    assert_eq!(fixture.stored(&anna).await, [("t1".to_owned(), 20, false)]);
    fixture.advance(25).await;
    assert!(fixture.grant(&anna, "t1", GrantUses::Count(5), Some(key)).await, "the key is forgotten after a day");
    assert_eq!(ledger(&fixture).await.collected, 25);
    fixture.assert_sound().await;
}

/// The uses of each record, in the order in which they are spent.
async fn uses(fixture: &Fixture, user: &OpenId) -> Vec<u8> {
    fixture.stored(user).await.into_iter().map(|(_, uses, _)| uses).collect()
}

#[tokio::test]
async fn uses_beyond_one_record_fill_further_records_in_turn() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    for (count, wanted) in [(30, vec![30]), (3, vec![31, 2]), (60, vec![31, 31, 31])] {
        fixture.grant(&anna, "t1", GrantUses::Count(count), None).await;
        assert_eq!(uses(&fixture, &anna).await, wanted);
        fixture.assert_sound().await;
    }
    fixture.grant(&anna, "t2", GrantUses::Count(1), None).await;
    fixture.grant(&anna, "t1", GrantUses::Count(1), None).await;
    assert_eq!(uses(&fixture, &anna).await, [31, 31, 31, 1, 1]);
    for _ in 0..94 {
        let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
        assert_eq!(lease.expiry, NEVER);
        fixture.settle(&anna, lease.id, LeaseEnd::Consume).await;
    }
    assert_eq!(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await, Leased::None);
    assert_eq!(fixture.stored(&anna).await, [("t2".to_owned(), 1, false)]);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn thousand_uses_are_granted_and_those_over_the_cap_dropped() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::Count(1000), None).await;
    assert_eq!(ledger(&fixture).await, Ledger { collected: 1000, ..Ledger::default() });
    assert_eq!(uses(&fixture, &anna).await.len(), 33);
    for _ in 0..4 {
        fixture.grant(&anna, "t1", GrantUses::Count(1000), None).await;
        fixture.assert_sound().await;
    }
    let most = 120 * 31;
    let full = Ledger { collected: 5000, dropped: 5000 - most, ..Ledger::default() };
    assert_eq!((ledger(&fixture).await, full.available()), (full, most));
    // A use is returned when all records are full.
    let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.grant(&anna, "t1", GrantUses::Count(1), None).await;
    fixture.settle(&anna, lease.id, LeaseEnd::Return).await;
    assert_eq!(ledger(&fixture).await, Ledger { collected: 5001, dropped: 5001 - most, ..Ledger::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn cap_counts_grant_records_and_drops_what_expires_first() {
    let (fixture, anna) = (Fixture::with_cap(3).await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 1), form_id("f2", 2), form_id("f3", 3)]).await;
    fixture.grant(&anna, "t1", GrantUses::Count(40), None).await;
    let stored = [("f3".to_owned(), 1, false), ("t1".to_owned(), 31, false), ("t1".to_owned(), 9, false)];
    assert_eq!(fixture.stored(&anna).await, stored);
    assert_eq!(ledger(&fixture).await, Ledger { collected: 43, dropped: 2, ..Ledger::default() });
    fixture.grant(&anna, "t2", GrantUses::LongTerm, None).await;
    fixture.grant(&anna, "t3", GrantUses::Count(1), None).await;
    assert_eq!(uses(&fixture, &anna).await, [9, 1, 1]);
    assert_eq!(ledger(&fixture).await, Ledger { collected: 45, dropped: 34, ..Ledger::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn returned_use_goes_to_any_record_with_room() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let lease = async || leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await).id;
    fixture.grant(&anna, "t1", GrantUses::Count(31), None).await;
    // Its own record has room.
    fixture.settle(&anna, lease().await, LeaseEnd::Return).await;
    assert_eq!(uses(&fixture, &anna).await, [31]);
    // Its own record is full by now, and another one has room.
    let id = lease().await;
    fixture.grant(&anna, "t1", GrantUses::Count(2), None).await;
    assert_eq!(uses(&fixture, &anna).await, [31, 1]);
    fixture.settle(&anna, id, LeaseEnd::Return).await;
    assert_eq!(uses(&fixture, &anna).await, [31, 2]);
    // No record has room.
    let id = lease().await;
    fixture.grant(&anna, "t1", GrantUses::Count(30), None).await;
    assert_eq!(uses(&fixture, &anna).await, [31, 31]);
    fixture.settle(&anna, id, LeaseEnd::Suspect).await;
    assert_eq!(uses(&fixture, &anna).await, [31, 31, 1]);
    assert!(
        fixture.stored(&anna).await.iter().all(|(.., suspect)| !suspect),
        "no use is suspect, since the uses of a template are alike"
    );
    assert_eq!(ledger(&fixture).await, Ledger { collected: 63, ..Ledger::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn record_whose_last_use_is_leased_accepts_new_uses() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    for (verdict, left) in [(LeaseEnd::Consume, 2), (LeaseEnd::Return, 5)] {
        fixture.grant(&anna, "t1", GrantUses::Count(1), None).await;
        let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
        fixture.grant(&anna, "t1", GrantUses::Count(2), None).await;
        fixture.settle(&anna, lease.id, verdict).await;
        assert_eq!(uses(&fixture, &anna).await, [left]);
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn no_record_stays_empty_when_its_use_is_returned() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let lease = async || leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await).id;
    fixture.grant(&anna, "t1", GrantUses::Count(32), None).await;
    for _ in 0..30 {
        fixture.settle(&anna, lease().await, LeaseEnd::Consume).await;
    }
    // Leases the last use of each of the two records. The owner of the first is late.
    let late = lease().await;
    fixture.advance(1).await;
    let id = lease().await;
    fixture.settle(&anna, id, LeaseEnd::Return).await;
    fixture.settle(&anna, late, LeaseEnd::Consume).await;
    assert_eq!(uses(&fixture, &anna).await, [1]);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn one_call_collects_form_ids_and_grants_of_many_users() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bob = fixture.neighbour(&anna);
    let (one, other) = (Some(OnceKey([1; 16])), Some(OnceKey([2; 16])));
    let three = GrantUses::Count(3);
    let packed = [
        Packed::new(anna.clone(), &form_id("f1", 9)),
        packed_grant(&anna, "t1", three, one),
        packed_grant(&bob, "t1", three, other),
        packed_grant(&anna, "t1", three, None),
        packed_grant(&anna, "t1", three, one),
        packed_grant(&anna, "t2", GrantUses::LongTerm, None),
        packed_grant(&anna, "t2", GrantUses::LongTerm, None),
        Packed::new(bob.clone(), &form_id("f1", 9)),
        Packed::new(anna.clone(), &form_id("f1", 9)),
    ];
    let collect = async || fixture.store.collect(&fixture.app, fixture.store.bucket_of(&anna), &packed).await.unwrap();
    assert_eq!(collect().await, [4, 6, 8]);
    let of = |id: &str, uses| (id.to_owned(), uses, false);
    assert_eq!(fixture.stored(&anna).await, [of("f1", 1), of("t1", 6), of("t2", 1)]);
    assert_eq!(fixture.stored(&bob).await, [of("f1", 1), of("t1", 3)]);
    // A resend after a lost reply: the grant without a key is recognized too.
    assert_eq!(collect().await, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(ledger(&fixture).await.collected, 12);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn grant_and_form_id_of_the_same_name_are_separate() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    // As long as the template with a slot, for each printable byte that the slot may be.
    let ids: Vec<_> = (b'!'..=b'~').map(|last| form_id(&format!("t{}", char::from(last)), 9)).collect();
    fixture.collect(&anna, &ids).await;
    fixture.grant(&anna, "t", GrantUses::Count(700), None).await;
    assert_eq!(fixture.collect(&anna, &ids).await.len(), ids.len());
    for _ in 0..700 {
        let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t").await);
        fixture.settle(&anna, lease.id, LeaseEnd::Consume).await;
    }
    assert_eq!(fixture.stored(&anna).await.len(), ids.len());
    fixture.assert_sound().await;
}

#[tokio::test]
async fn discard_drops_one_grant_record_and_reaper_counts_unknown() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::Count(33), None).await;
    let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.settle(&anna, lease.id, LeaseEnd::Discard).await;
    assert_eq!(uses(&fixture, &anna).await, [2]);
    leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.advance(1).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { spent: 1, ..Reaped::default() });
    assert_eq!(uses(&fixture, &anna).await, [1]);
    assert!(fixture.store.touched(&fixture.app, &anna).await.unwrap().is_some());
    let wanted = Ledger { collected: 33, discarded: 31, consumed: 1, unknown: 1, ..Ledger::default() };
    assert_eq!(ledger(&fixture).await, wanted);
    fixture.assert_sound().await;
}
