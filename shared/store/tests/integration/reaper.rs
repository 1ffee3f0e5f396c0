//! The reaper: leases that their owners did not settle in time.

use std::time::Duration;

use store::leases::{LeaseEnd, LeaseId, LeaseTerms, Leased, Reaped, SettleReply};
use store::stock::Ledger;

use crate::fixture::{BRIEF, Fixture, TERMS, form_id, leased, prepay_id, request, user};

const NOTHING: Reaped = Reaped { pinned: 0, suspect: 0, spent: 0 };

#[tokio::test]
async fn lease_before_its_deadline_is_left_alone() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 9)]).await;
    fixture.lease(&anna).await;
    let before = fixture.everything().await;
    assert_eq!(fixture.reap(&TERMS).await, NOTHING);
    assert_eq!(fixture.everything().await, before);
    fixture.advance(1).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { suspect: 1, ..NOTHING });
}

#[tokio::test]
async fn form_id_without_request_turns_suspect_and_prepay_is_spent() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 1), prepay_id("p1", 2, 2), prepay_id("p2", 1, 3)]).await;
    for _ in 0..4 {
        leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, None).await);
    }
    assert_eq!(fixture.reap(&TERMS).await, Reaped { suspect: 1, spent: 3, ..NOTHING });
    assert_eq!(fixture.stored(&anna).await, [("f1".to_owned(), 1, true)]);
    assert!(fixture.lease(&anna).await.suspect);
    assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap().consumed, 3);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn form_id_that_expired_in_flight_is_spent_as_unknown() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 1)]).await;
    fixture.lease(&anna).await;
    fixture.advance(2).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { spent: 1, ..NOTHING });
    assert_eq!(fixture.stored(&anna).await, []);
    let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
    assert_eq!(ledger, Ledger { collected: 1, consumed: 1, unknown: 1, ..Ledger::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn credential_is_held_until_its_request_is_forgotten() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    let terms = LeaseTerms { keep: Duration::from_secs(2), ..BRIEF };
    fixture.collect(&anna, &[form_id("f1", 9)]).await;
    leased(fixture.ask(&anna, LeaseId::random(), &terms, Some(&message)).await);
    assert_eq!(fixture.reap(&terms).await, Reaped { pinned: 1, ..NOTHING });
    assert_eq!(fixture.reap(&terms).await, NOTHING);
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, None).await, Leased::None, "no other message gets it");
    let mut reaped = NOTHING;
    testing::eventually("the held credential is released", Duration::from_secs(10), async || {
        fixture.assert_sound().await;
        reaped = fixture.reap(&terms).await;
        reaped != NOTHING
    })
    .await;
    assert_eq!(reaped, Reaped { suspect: 1, ..NOTHING });
    let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    assert_eq!(
        (lease.suspect, lease.taken_over),
        (true, false),
        "the request was forgotten, but the form id is suspect"
    );
}

#[tokio::test]
async fn held_prepay_use_is_spent_when_its_request_is_forgotten() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[prepay_id("p1", 3, 99)]).await;
    leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, Some(&request("r1", 1))).await);
    assert_eq!(fixture.reap(&TERMS).await, Reaped { pinned: 1, ..NOTHING });
    fixture.advance(3).await;
    assert_eq!(fixture.reap(&TERMS).await, NOTHING);
    fixture.advance(1).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { spent: 1, ..NOTHING });
    assert_eq!(fixture.stored(&anna).await, [("p1".to_owned(), 2, false)]);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn held_message_can_be_taken_over_and_is_held_again() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 99)]).await;
    leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, Some(&message)).await);
    assert_eq!(fixture.reap(&TERMS).await, Reaped { pinned: 1, ..NOTHING });
    fixture.advance(3).await;
    assert!(leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await).taken_over);
    fixture.advance(1).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { pinned: 1, ..NOTHING });
    fixture.advance(2).await;
    let over = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    assert_eq!((over.credential.as_str(), over.taken_over), ("f1", true));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn held_form_id_returns_when_its_request_is_forgotten() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 99)]).await;
    let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    fixture.settle_request(&anna, lease.id, LeaseEnd::Hold, None, &message).await;
    fixture.advance(3).await;
    assert_eq!(fixture.reap(&TERMS).await, NOTHING);
    fixture.advance(1).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { suspect: 1, ..NOTHING });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn late_owner_that_was_not_replaced_may_still_settle() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 9)]).await;
    let lease = leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, Some(&message)).await);
    assert_eq!(fixture.reap(&TERMS).await, Reaped { pinned: 1, ..NOTHING });
    let settled = fixture.settle_request(&anna, lease.id, LeaseEnd::Consume, Some(b"ok"), &message).await;
    assert_eq!(settled, SettleReply::Done { messages_left: 0 });
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await, Leased::Finished(b"ok".to_vec()));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn one_call_reaps_all_pages_of_a_bucket_and_no_other_bucket() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let carol = (0..).map(|number| user(&format!("oCarol{number}")));
    let carol =
        carol.into_iter().find(|carol| fixture.store.bucket_of(carol) != fixture.store.bucket_of(&anna)).unwrap();
    for owner in [&anna, &carol] {
        let credentials: Vec<_> = (0..100).map(|number| form_id(&format!("f{number}"), 9)).collect();
        fixture.collect(owner, &credentials).await;
        for number in 0..100 {
            let message = (number % 2 == 0).then(|| request(&format!("r{number}"), 1));
            leased(fixture.ask(owner, LeaseId::random(), &BRIEF, message.as_ref()).await);
        }
    }
    for owner in [&anna, &carol] {
        let reaped = fixture.store.reap(&fixture.app, fixture.store.bucket_of(owner), &TERMS, 3).await.unwrap();
        assert_eq!(reaped, Reaped { pinned: 50, suspect: 50, ..NOTHING });
        fixture.assert_sound().await;
    }
    assert_eq!(fixture.leases().await, 100);
}

#[tokio::test]
async fn two_concurrent_reapers_return_each_credential_once() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let credentials: Vec<_> = (0..100).map(|number| form_id(&format!("f{number}"), 9)).collect();
    fixture.collect(&anna, &credentials).await;
    for _ in 0..100 {
        leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, None).await);
    }
    let bucket = fixture.store.bucket_of(&anna);
    let reaper = async || {
        let mut sum = 0;
        loop {
            let reaped = fixture.store.reap(&fixture.app, bucket, &TERMS, 7).await.unwrap();
            if reaped == NOTHING {
                return sum;
            }
            sum += reaped.suspect;
        }
    };
    let (one, other) = tokio::join!(reaper(), reaper());
    assert_eq!(one + other, 100);
    assert!(fixture.stored(&anna).await.iter().all(|(_, uses, suspect)| (*uses, *suspect) == (1, true)));
    fixture.assert_sound().await;
}
