//! The reaper: leases that their owners did not settle in time.

use std::time::Duration;

use store::leases::{LeaseEnd, LeaseId, LeaseTerms, Leased, Reaped, SettleReply};
use store::stock::Ledger;

use crate::world::{BRIEF, TERMS, World, form_id, leased, prepay_id, request, user};

const NOTHING: Reaped = Reaped { pinned: 0, suspect: 0, spent: 0 };

#[tokio::test]
async fn lease_before_its_deadline_is_left_alone() {
    let (world, anna) = (World::new().await, user("oAnna"));
    world.collect(&anna, &[form_id("f1", 9)]).await;
    world.lease(&anna).await;
    let before = world.everything().await;
    assert_eq!(world.reap(&TERMS).await, NOTHING);
    assert_eq!(world.everything().await, before);
    world.advance(1).await;
    assert_eq!(world.reap(&TERMS).await, Reaped { suspect: 1, ..NOTHING });
}

#[tokio::test]
async fn form_id_without_request_turns_suspect_and_prepay_is_spent() {
    let (world, anna) = (World::new().await, user("oAnna"));
    world.collect(&anna, &[form_id("f1", 1), prepay_id("p1", 2, 2), prepay_id("p2", 1, 3)]).await;
    for _ in 0..4 {
        leased(world.ask(&anna, LeaseId::random(), &BRIEF, None).await);
    }
    assert_eq!(world.reap(&TERMS).await, Reaped { suspect: 1, spent: 3, ..NOTHING });
    assert_eq!(world.stored(&anna).await, [("f1".to_owned(), 1, true)]);
    assert!(world.lease(&anna).await.suspect);
    assert_eq!(world.store.ledger(&world.app).await.unwrap().consumed, 3);
    world.assert_sound().await;
}

#[tokio::test]
async fn form_id_that_expired_in_flight_is_spent_as_unknown() {
    let (world, anna) = (World::new().await, user("oAnna"));
    world.collect(&anna, &[form_id("f1", 1)]).await;
    world.lease(&anna).await;
    world.advance(2).await;
    assert_eq!(world.reap(&TERMS).await, Reaped { spent: 1, ..NOTHING });
    assert_eq!(world.stored(&anna).await, []);
    let ledger = world.store.ledger(&world.app).await.unwrap();
    assert_eq!(ledger, Ledger { collected: 1, consumed: 1, unknown: 1, ..Ledger::default() });
    world.assert_sound().await;
}

#[tokio::test]
async fn credential_is_held_until_its_request_is_forgotten() {
    let (world, anna, message) = (World::new().await, user("oAnna"), request("r1", 1));
    let terms = LeaseTerms { keep: Duration::from_secs(2), ..BRIEF };
    world.collect(&anna, &[form_id("f1", 9)]).await;
    leased(world.ask(&anna, LeaseId::random(), &terms, Some(&message)).await);
    assert_eq!(world.reap(&terms).await, Reaped { pinned: 1, ..NOTHING });
    assert_eq!(world.reap(&terms).await, NOTHING);
    assert_eq!(world.ask(&anna, LeaseId::random(), &TERMS, None).await, Leased::None, "no other message gets it");
    let mut reaped = NOTHING;
    testing::eventually("the held credential is released", Duration::from_secs(10), async || {
        world.assert_sound().await;
        reaped = world.reap(&terms).await;
        reaped != NOTHING
    })
    .await;
    assert_eq!(reaped, Reaped { suspect: 1, ..NOTHING });
    let lease = leased(world.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    assert_eq!(
        (lease.suspect, lease.taken_over),
        (true, false),
        "the request was forgotten, but the form id is suspect"
    );
}

#[tokio::test]
async fn held_prepay_use_is_spent_when_its_request_is_forgotten() {
    let (world, anna) = (World::new().await, user("oAnna"));
    world.collect(&anna, &[prepay_id("p1", 3, 99)]).await;
    leased(world.ask(&anna, LeaseId::random(), &BRIEF, Some(&request("r1", 1))).await);
    assert_eq!(world.reap(&TERMS).await, Reaped { pinned: 1, ..NOTHING });
    world.advance(3).await;
    assert_eq!(world.reap(&TERMS).await, NOTHING);
    world.advance(1).await;
    assert_eq!(world.reap(&TERMS).await, Reaped { spent: 1, ..NOTHING });
    assert_eq!(world.stored(&anna).await, [("p1".to_owned(), 2, false)]);
    world.assert_sound().await;
}

#[tokio::test]
async fn held_message_can_be_taken_over_and_is_held_again() {
    let (world, anna, message) = (World::new().await, user("oAnna"), request("r1", 1));
    world.collect(&anna, &[form_id("f1", 99)]).await;
    leased(world.ask(&anna, LeaseId::random(), &BRIEF, Some(&message)).await);
    assert_eq!(world.reap(&TERMS).await, Reaped { pinned: 1, ..NOTHING });
    world.advance(3).await;
    assert!(leased(world.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await).taken_over);
    world.advance(1).await;
    assert_eq!(world.reap(&TERMS).await, Reaped { pinned: 1, ..NOTHING });
    world.advance(2).await;
    let over = leased(world.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    assert_eq!((over.credential.as_str(), over.taken_over), ("f1", true));
    world.assert_sound().await;
}

#[tokio::test]
async fn held_form_id_returns_when_its_request_is_forgotten() {
    let (world, anna, message) = (World::new().await, user("oAnna"), request("r1", 1));
    world.collect(&anna, &[form_id("f1", 99)]).await;
    let lease = leased(world.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    world.settle_request(&anna, lease.id, LeaseEnd::Hold, None, &message).await;
    world.advance(3).await;
    assert_eq!(world.reap(&TERMS).await, NOTHING);
    world.advance(1).await;
    assert_eq!(world.reap(&TERMS).await, Reaped { suspect: 1, ..NOTHING });
    world.assert_sound().await;
}

#[tokio::test]
async fn late_owner_that_was_not_replaced_may_still_settle() {
    let (world, anna, message) = (World::new().await, user("oAnna"), request("r1", 1));
    world.collect(&anna, &[form_id("f1", 9)]).await;
    let lease = leased(world.ask(&anna, LeaseId::random(), &BRIEF, Some(&message)).await);
    assert_eq!(world.reap(&TERMS).await, Reaped { pinned: 1, ..NOTHING });
    let settled = world.settle_request(&anna, lease.id, LeaseEnd::Consume, Some(b"ok"), &message).await;
    assert_eq!(settled, SettleReply::Done { messages_left: 0 });
    assert_eq!(world.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await, Leased::Finished(b"ok".to_vec()));
    world.assert_sound().await;
}

#[tokio::test]
async fn one_call_reaps_all_pages_of_a_bucket_and_no_other_bucket() {
    let (world, anna) = (World::new().await, user("oAnna"));
    let carol = (0..).map(|number| user(&format!("oCarol{number}")));
    let carol = carol.into_iter().find(|carol| world.store.bucket_of(carol) != world.store.bucket_of(&anna)).unwrap();
    for owner in [&anna, &carol] {
        let credentials: Vec<_> = (0..100).map(|number| form_id(&format!("f{number}"), 9)).collect();
        world.collect(owner, &credentials).await;
        for number in 0..100 {
            let message = (number % 2 == 0).then(|| request(&format!("r{number}"), 1));
            leased(world.ask(owner, LeaseId::random(), &BRIEF, message.as_ref()).await);
        }
    }
    for owner in [&anna, &carol] {
        let reaped = world.store.reap(&world.app, world.store.bucket_of(owner), &TERMS, 3).await.unwrap();
        assert_eq!(reaped, Reaped { pinned: 50, suspect: 50, ..NOTHING });
        world.assert_sound().await;
    }
    assert_eq!(world.leases().await, 100);
}

#[tokio::test]
async fn two_concurrent_reapers_return_each_credential_once() {
    let (world, anna) = (World::new().await, user("oAnna"));
    let credentials: Vec<_> = (0..100).map(|number| form_id(&format!("f{number}"), 9)).collect();
    world.collect(&anna, &credentials).await;
    for _ in 0..100 {
        leased(world.ask(&anna, LeaseId::random(), &BRIEF, None).await);
    }
    let bucket = world.store.bucket_of(&anna);
    let reaper = async || {
        let mut sum = 0;
        loop {
            let reaped = world.store.reap(&world.app, bucket, &TERMS, 7).await.unwrap();
            if reaped == NOTHING {
                return sum;
            }
            sum += reaped.suspect;
        }
    };
    let (one, other) = tokio::join!(reaper(), reaper());
    assert_eq!(one + other, 100);
    assert!(world.stored(&anna).await.iter().all(|(_, uses, suspect)| (*uses, *suspect) == (1, true)));
    world.assert_sound().await;
}
