//! Rests: grants that WeChat refused for the first time, and prepay ids that WeChat does not know yet.

use domain::{Credential, CredentialId, GrantUses, Kind, OpenId};
use store::credentials::{Available, OnceKey};
use store::leases::{LeaseEnd, LeaseId, Leased, Settle, SettleReply};
use store::stock::{Granted, Ledger};

use crate::fixture::{Fixture, HOUR, TERMS, any_kind, form_id, leased, template, user};

const REST: LeaseEnd = LeaseEnd::Rest(5400);

async fn ledger(fixture: &Fixture) -> Ledger {
    fixture.store.ledger(&fixture.app).await.unwrap()
}

/// Messages that a user's credentials permit now, and those that rest.
async fn left(fixture: &Fixture, user: &OpenId) -> (u32, u32) {
    let inventory = fixture.store.inventory(&fixture.app, user, testing::now(), 0).await.unwrap();
    inventory.values().fold((0, 0), |(now, later), one| (now + one.messages, later + one.resting))
}

/// Leases a grant and settles it.
async fn refuse(fixture: &Fixture, user: &OpenId, of: &str, end: LeaseEnd) -> SettleReply {
    let lease = leased(fixture.ask_for(user, LeaseId::random(), &TERMS, of).await);
    fixture.settle(user, lease.id, end).await
}

/// A user with grants of one template at rest, and one of another template.
async fn resting(uses: GrantUses) -> (Fixture, OpenId) {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", uses, None).await;
    fixture.grant(&anna, "t2", GrantUses::Count(1), None).await;
    assert_eq!(refuse(&fixture, &anna, "t1", REST).await, SettleReply::Done { messages_left: 1 });
    (fixture, anna)
}

#[tokio::test]
async fn first_refusal_keeps_the_grants_and_they_are_not_leased() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::Count(33), None).await;
    fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await;
    let before = fixture.field(&anna).await.len();
    refuse(&fixture, &anna, "t1", REST).await;
    assert_eq!(fixture.field(&anna).await.len(), before, "a rest takes no space");
    let Leased::Resting(until) = fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await else {
        panic!("a resting grant was leased")
    };
    assert!(until.abs_diff(testing::now() + 5400) < 600);
    let inventory = fixture.store.inventory(&fixture.app, &anna, testing::now(), 0).await.unwrap();
    let expected = Available { resting: 34, resting_until: until as u32, long_term: true, ..Available::default() };
    assert_eq!(inventory.into_values().collect::<Vec<_>>(), [expected]);
    assert_eq!(ledger(&fixture).await, Ledger { collected: 34, ..Ledger::default() });
    let stock = fixture.store.stock(&fixture.app, 0, u64::MAX).await.unwrap();
    let granted = Granted { resting_users: 1, resting: 34, ..Granted::default() };
    assert_eq!((stock.reachable, &stock.templates[&template("t1")]), (0, &granted));
    assert_eq!(fixture.store.swept_stock(&fixture.app).await.unwrap().unwrap().templates, stock.templates);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn delivered_message_after_the_rest_clears_it() {
    let (fixture, anna) = resting(GrantUses::Count(3)).await;
    fixture.advance(2).await;
    assert_eq!(left(&fixture, &anna).await, (4, 0));
    assert_eq!(refuse(&fixture, &anna, "t1", LeaseEnd::Consume).await, SettleReply::Done { messages_left: 3 });
    assert!(fixture.store.records(&fixture.app, &anna).await.unwrap().iter().all(|record| record.rest.is_none()));
    // So the next refusal is a first one again.
    refuse(&fixture, &anna, "t1", REST).await;
    assert_eq!(left(&fixture, &anna).await, (1, 2));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn refusal_after_the_rest_revokes_all_grants_of_the_template() {
    for (uses, count) in [(GrantUses::Count(40), 40), (GrantUses::LongTerm, 1)] {
        for (end, spent) in [(REST, 0), (LeaseEnd::UnknownRest(5400), 1)] {
            let (fixture, anna) = resting(uses).await;
            fixture.advance(2).await;
            // Other answers decide nothing.
            refuse(&fixture, &anna, "t1", LeaseEnd::Return).await;
            refuse(&fixture, &anna, "t1", end).await;
            assert_eq!(left(&fixture, &anna).await, (1, 0));
            let expected = Ledger {
                collected: count + 1,
                consumed: spent,
                unknown: spent,
                discarded: count - spent,
                ..Ledger::default()
            };
            assert_eq!(ledger(&fixture).await, expected, "{uses:?} {end:?}");
            fixture.assert_sound().await;
        }
    }
}

#[tokio::test]
async fn refusal_during_the_rest_changes_nothing() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::Count(3), None).await;
    // The first message is still in flight when its lease has expired, so the second one does not wait for it.
    let first = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.advance(1).await;
    refuse(&fixture, &anna, "t1", REST).await;
    let before = fixture.store.records(&fixture.app, &anna).await.unwrap();
    fixture.settle(&anna, first.id, LeaseEnd::Rest(9 * 3600)).await;
    let after = fixture.store.records(&fixture.app, &anna).await.unwrap();
    assert_eq!((after.len(), after[0].rest), (1, before[0].rest));
    assert_eq!(left(&fixture, &anna).await, (0, 3));
    assert_eq!(ledger(&fixture).await, Ledger { collected: 3, ..Ledger::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn accept_ends_the_rest_and_rejection_revokes_during_it() {
    for (uses, added) in [(GrantUses::Count(2), 2), (GrantUses::LongTerm, 1)] {
        let (fixture, anna) = resting(GrantUses::Count(3)).await;
        assert!(fixture.grant(&anna, "t1", uses, None).await);
        assert_eq!(left(&fixture, &anna).await, (4 + added, 0));
        fixture.assert_sound().await;
    }
    // A subscription that exists already is not stored again, but it is an accept.
    let (fixture, anna) = resting(GrantUses::LongTerm).await;
    assert!(!fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await);
    assert_eq!(left(&fixture, &anna).await, (2, 0));
    // An accept that was reported before is none.
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let accept = async || fixture.grant(&anna, "t1", GrantUses::Count(1), Some(OnceKey([1; 16]))).await;
    assert!(accept().await);
    refuse(&fixture, &anna, "t1", REST).await;
    assert!(!accept().await);
    assert_eq!(left(&fixture, &anna).await, (0, 1));
    let voided = fixture.store.void(&fixture.app, &anna, &template("t1"), OnceKey([2; 16]), 0).await.unwrap();
    assert_eq!((voided, fixture.store.users(&fixture.app).await.unwrap()), (Some(1), 0));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn refused_use_of_revoked_grants_is_revoked_too() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::Count(3), None).await;
    let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.store.void(&fixture.app, &anna, &template("t1"), OnceKey([2; 16]), 0).await.unwrap();
    fixture.settle(&anna, lease.id, REST).await;
    assert_eq!(ledger(&fixture).await, Ledger { collected: 3, discarded: 3, ..Ledger::default() });
    assert_eq!(fixture.store.users(&fixture.app).await.unwrap(), 0);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn unknown_outcome_spends_the_use_and_the_others_rest() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::Count(3), None).await;
    refuse(&fixture, &anna, "t1", LeaseEnd::UnknownRest(5400)).await;
    assert_eq!(left(&fixture, &anna).await, (0, 2));
    assert_eq!(ledger(&fixture).await, Ledger { collected: 3, consumed: 1, unknown: 1, ..Ledger::default() });
    assert!(fixture.store.touched(&fixture.app, &anna).await.unwrap().is_some());
    fixture.assert_sound().await;
}

#[tokio::test]
async fn erasing_a_user_counts_what_rests() {
    let (fixture, anna) = resting(GrantUses::Count(3)).await;
    assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), 4);
    assert_eq!(ledger(&fixture).await, Ledger { collected: 4, erased: 4, ..Ledger::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn prepay_id_rests_while_other_credentials_are_used() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let prepay = |id: &str| Credential { kind: Kind::PrepayId, uses: 3, ..form_id(id, 100) };
    fixture.collect(&anna, &[prepay("wx1"), prepay("wx2"), form_id("f", 101)]).await;
    let mut lease = fixture.lease(&anna).await;
    let mut tried = Vec::new();
    let until = loop {
        tried.push(lease.credential.as_str().to_owned());
        let end = if lease.kind == Kind::PrepayId { LeaseEnd::Rest(300) } else { LeaseEnd::Discard };
        match fixture.settle_next(&anna, lease.id, end, None, LeaseId::random()).await {
            SettleReply::Next(next) => lease = next,
            SettleReply::NextRests(until) => break until,
            other => panic!("{other:?}"),
        }
        fixture.assert_sound().await;
    };
    assert_eq!(tried, ["wx1", "wx2", "f"]);
    assert!(until.abs_diff(testing::now() + 300) < 100);
    assert_eq!(left(&fixture, &anna).await, (0, 6));
    assert!(matches!(fixture.ask(&anna, LeaseId::random(), &TERMS, None).await, Leased::Resting(_)));
    assert_eq!(ledger(&fixture).await, Ledger { collected: 7, discarded: 1, ..Ledger::default() });
    fixture.advance(1).await;
    assert_eq!(fixture.lease(&anna).await.credential, CredentialId::parse("wx1").unwrap());
    assert_eq!(left(&fixture, &anna).await, (5, 0));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn grants_that_rest_are_no_reason_to_wait_for_another_message() {
    let (fixture, anna) = resting(GrantUses::LongTerm).await;
    let other = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t2").await);
    assert!(matches!(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await, Leased::Resting(_)));
    let wanted = store::eligibility::Eligibility { template: Some(template("t1")), ..any_kind() };
    let next = Some((LeaseId::random(), &wanted));
    let settle = Settle { id: other.id, request: None, end: LeaseEnd::Discard, outcome: None, next };
    let settled = fixture.store.settle(&fixture.app, &anna, &settle, &TERMS).await.unwrap();
    assert!(matches!(settled, SettleReply::NextRests(until) if until > testing::now() + HOUR), "{settled:?}");
    fixture.assert_sound().await;
}
