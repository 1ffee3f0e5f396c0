//! Request ids: a message may be requested repeatedly, and is sent with one credential.

use std::time::Duration;

use deadpool_redis::redis;
use store::leases::{LeaseEnd, LeaseId, LeaseTerms, Leased, Recorded, Request, SettleReply};

use crate::fixture::{BRIEF, Fixture, TERMS, form_id, leased, next, prepay_id, request, user};

#[tokio::test]
async fn finished_request_is_answered_from_its_record() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 1), form_id("f2", 2)]).await;
    let id = LeaseId::random();
    leased(fixture.ask(&anna, id, &TERMS, Some(&message)).await);
    fixture.settle_request(&anna, id, LeaseEnd::Consume, Some(b"\0delivered\xff"), &message).await;
    let before = fixture.everything().await;
    for id in [id, LeaseId::random()] {
        let reply = fixture.ask(&anna, id, &TERMS, Some(&message)).await;
        assert_eq!(reply, Leased::Finished(b"\0delivered\xff".to_vec()));
    }
    assert_eq!(fixture.everything().await, before);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn request_id_is_refused_for_another_message_at_any_time() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 1), form_id("f2", 2)]).await;
    let (message, other, id) = (request("r1", 1), request("r1", 2), LeaseId::random());
    leased(fixture.ask(&anna, id, &BRIEF, Some(&message)).await);
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&other)).await, Leased::Reused);
    fixture.settle_request(&anna, id, LeaseEnd::Consume, Some(b"ok"), &message).await;
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&other)).await, Leased::Reused);
}

#[tokio::test]
async fn one_request_id_of_two_users_of_a_bucket_is_two_requests() {
    let fixture = Fixture::new().await;
    let anna = user("oAnna");
    let bob = fixture.neighbour(&anna);
    fixture.collect(&anna, &[form_id("f1", 1)]).await;
    fixture.collect(&bob, &[form_id("f2", 1)]).await;
    leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&request("r1", 1))).await);
    let lease = leased(fixture.ask(&bob, LeaseId::random(), &TERMS, Some(&request("r1", 2))).await);
    assert_eq!(lease.credential.as_str(), "f2");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn request_in_progress_says_when_its_lease_expires() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 9), form_id("f2", 9)]).await;
    leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    let before = fixture.everything().await;
    let Leased::UnderWay(left) = fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await else { panic!() };
    assert!(left <= TERMS.duration && left > TERMS.duration - Duration::from_secs(60), "{left:?}");
    assert_eq!(fixture.everything().await, before);
}

#[tokio::test]
async fn takeover_keeps_the_credential_also_when_it_is_repeated() {
    for credential in [form_id("c1", 1), prepay_id("c1", 3, 1)] {
        let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
        fixture.collect(&anna, &[credential, form_id("f2", 2)]).await;
        let (first, second) = (LeaseId::random(), LeaseId::random());
        let lease = leased(fixture.ask(&anna, first, &TERMS, Some(&message)).await);
        assert!(!lease.taken_over);
        fixture.advance(1).await;
        let over = leased(fixture.ask(&anna, second, &TERMS, Some(&message)).await);
        assert!(over.taken_over);
        assert_eq!((over.id, over.credential), (second, lease.credential));
        let before = fixture.everything().await;
        assert!(
            leased(fixture.ask(&anna, second, &TERMS, Some(&message)).await).taken_over,
            "its first reply was lost"
        );
        assert_eq!(fixture.reap(&TERMS).await, Default::default(), "its deadline starts again");
        assert!(matches!(fixture.ask(&anna, first, &TERMS, Some(&message)).await, Leased::UnderWay(_)));
        let late = fixture.settle_request(&anna, first, LeaseEnd::Consume, Some(b"late"), &message).await;
        assert_eq!(late, SettleReply::Stale, "the old owner is too late");
        assert_eq!(fixture.everything().await, before);
        assert_eq!(fixture.leases().await, 1);
        fixture.settle_request(&anna, second, LeaseEnd::Hold, None, &message).await;
        assert!(
            leased(fixture.ask(&anna, second, &TERMS, Some(&message)).await).taken_over,
            "the outcome is as unknown as before"
        );
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn next_lease_after_a_takeover_is_not_taken_over() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 1), form_id("f2", 2)]).await;
    leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, Some(&message)).await);
    let over = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    let following = LeaseId::random();
    let lease = next(fixture.settle_next(&anna, over.id, LeaseEnd::Discard, Some(&message), following).await);
    assert_eq!((lease.credential.as_str(), lease.taken_over), ("f2", false), "nothing was sent with this one");
    assert!(
        !leased(fixture.ask(&anna, following, &TERMS, Some(&message)).await).taken_over,
        "its first reply was lost"
    );
    assert!(matches!(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await, Leased::UnderWay(_)));
    let none = fixture.settle_next(&anna, following, LeaseEnd::Discard, Some(&message), LeaseId::random()).await;
    assert_eq!(none, SettleReply::NoNext);
    let reply = fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await;
    assert_eq!(reply, Leased::Finished(b"none left".to_vec()));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn message_with_unknown_outcome_may_be_taken_over_immediately() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 1), form_id("f2", 2)]).await;
    let id = LeaseId::random();
    leased(fixture.ask(&anna, id, &TERMS, Some(&message)).await);
    for _ in 0..2 {
        let held = fixture.settle_request(&anna, id, LeaseEnd::Hold, None, &message).await;
        assert_eq!(held, SettleReply::Done { messages_left: 1 });
    }
    assert_eq!(fixture.reap(&TERMS).await, Default::default(), "the reaper leaves it alone");
    assert_eq!(fixture.lease(&anna).await.credential.as_str(), "f2", "no other message gets its credential");
    let over = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    assert_eq!((over.credential.as_str(), over.taken_over), ("f1", true));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn request_of_an_erased_user_is_lost_until_its_owner_settles() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 1), form_id("f2", 1)]).await;
    let id = LeaseId::random();
    leased(fixture.ask(&anna, id, &TERMS, Some(&message)).await);
    assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), 2);
    assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), 0);
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await, Leased::Lost);
    let settled = fixture.settle_request(&anna, id, LeaseEnd::Consume, Some(b"ok"), &message).await;
    assert_eq!(settled, SettleReply::Stale);
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await, Leased::Finished(b"ok".to_vec()));
    let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
    assert_eq!((ledger.erased, ledger.consumed, ledger.leased), (2, 0, 0));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn request_without_an_outcome_is_forgotten_and_may_be_retried() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 1)]).await;
    let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    fixture.settle_request(&anna, lease.id, LeaseEnd::Return, None, &message).await;
    let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    assert_eq!((lease.credential.as_str(), lease.taken_over), ("f1", false));
    let other = request("r2", 1);
    assert_eq!(
        fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&other)).await,
        Leased::None,
        "and no request is recorded"
    );
    fixture.collect(&anna, &[form_id("f2", 1)]).await;
    leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&other)).await);
}

#[tokio::test]
async fn request_is_remembered_for_its_retention_time_only() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 9), form_id("f2", 9), form_id("f3", 9)]).await;
    let keep = async |message: &Request| -> i64 {
        let keys = store::keys::BucketKeys::new(&fixture.app, fixture.store.bucket_of(&anna));
        fixture.raw(redis::cmd("PTTL").arg(keys.request(&anna, &message.id))).await
    };
    let (open, closed) = (request("open", 1), request("closed", 1));
    let full = TERMS.keep.as_millis() as i64;
    leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&open)).await);
    let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&closed)).await);
    fixture.advance(1).await;
    fixture.settle_request(&anna, lease.id, LeaseEnd::Consume, Some(b"ok"), &closed).await;
    assert!((full - 60_000..=full).contains(&keep(&closed).await), "measured from its end");
    assert_eq!(keep(&open).await, -2, "only its lease exists while it is in progress");
    assert!(leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&open)).await).taken_over);
    fixture.advance(4).await;
    assert_eq!(keep(&closed).await, -2);
    let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&closed)).await);
    assert!(!lease.taken_over, "a new message");
}

#[tokio::test]
async fn reading_the_record_of_a_request_changes_nothing() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bob = fixture.neighbour(&anna);
    let (message, other, id) = (request("r1", 1), request("r1", 2), LeaseId::random());
    // For the message itself, for another message with its request id, and for a message with its request id to another
    // user.
    let recorded = async || {
        let before = fixture.everything().await;
        let of = async |user, request| fixture.store.recorded(&fixture.app, user, request).await.unwrap();
        let answers = [of(&anna, &message).await, of(&anna, &other).await, of(&bob, &message).await];
        assert_eq!(fixture.everything().await, before);
        answers
    };
    let nothing = || [Recorded::Nothing, Recorded::Nothing, Recorded::Nothing];
    let under_way = || [Recorded::UnderWay, Recorded::Reused, Recorded::Nothing];
    assert_eq!(recorded().await, nothing());
    assert_eq!(fixture.ask(&anna, id, &TERMS, Some(&message)).await, Leased::None);
    assert_eq!(recorded().await, nothing(), "it never got a lease");
    fixture.collect(&anna, &[form_id("f1", 99), form_id("f2", 99)]).await;
    leased(fixture.ask(&anna, id, &TERMS, Some(&message)).await);
    assert_eq!(recorded().await, under_way());
    fixture.advance(1).await;
    assert_eq!(recorded().await, under_way(), "past its deadline");
    assert_eq!(fixture.reap(&TERMS).await.pinned, 1);
    assert_eq!(recorded().await, under_way(), "pinned");
    let following = LeaseId::random();
    next(fixture.settle_next(&anna, id, LeaseEnd::Discard, Some(&message), following).await);
    assert_eq!(recorded().await, under_way(), "with the next credential");
    fixture.settle_request(&anna, following, LeaseEnd::Hold, None, &message).await;
    assert_eq!(recorded().await, under_way(), "outcome unknown");
    fixture.settle_request(&anna, following, LeaseEnd::Return, None, &message).await;
    assert_eq!(recorded().await, nothing(), "it ended without an outcome");
    leased(fixture.ask(&anna, id, &TERMS, Some(&message)).await);
    fixture.settle_request(&anna, id, LeaseEnd::Consume, Some(b"\0\xff"), &message).await;
    assert_eq!(recorded().await, [Recorded::Finished(b"\0\xff".to_vec()), Recorded::Reused, Recorded::Nothing]);
    fixture.advance(4).await;
    assert_eq!(recorded().await, nothing(), "the record has expired");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn concurrent_calls_for_one_request_get_one_credential() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let credentials: Vec<_> = (0..100).map(|number| form_id(&format!("f{number}"), 9)).collect();
    fixture.collect(&anna, &credentials).await;
    let terms = LeaseTerms { duration: Duration::from_secs(3600), ..TERMS };
    for number in 0..50 {
        let message = request(&format!("r{number}"), 1);
        let ask = || fixture.ask(&anna, LeaseId::random(), &terms, Some(&message));
        let replies: [Leased; 4] = tokio::join!(ask(), ask(), ask(), ask()).into();
        let count = |is: fn(&Leased) -> bool| replies.iter().filter(|reply| is(reply)).count();
        assert_eq!(count(|reply| matches!(reply, Leased::Lease(_))), 1);
        assert_eq!(count(|reply| matches!(reply, Leased::UnderWay(_))), 3);
    }
    assert_eq!(fixture.leases().await, 50);
    fixture.assert_sound().await;
}
