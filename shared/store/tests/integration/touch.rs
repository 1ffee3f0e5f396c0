//! The time of the last message to a user: kept for a week, without effect on credentials and counts.

use std::collections::BTreeMap;

use deadpool_redis::redis;
use domain::OpenId;
use store::keys::BucketKeys;
use store::leases::{LeaseEnd, LeaseId, Leased, Reaped, Settle, SettleReply};
use store::stock::{Ledger, Stock};

use crate::fixture::{BRIEF, Fixture, HOUR, TERMS, form_id, leased, next, prepay_id, request, user};

/// How many hours ago the user was last sent a message. Asserts that it is at most a minute more than whole hours.
async fn touched(fixture: &Fixture, user: &OpenId) -> Option<i64> {
    let at = fixture.store.touched(&fixture.app, user).await.unwrap()?;
    let ago = testing::now() - i64::from(at);
    assert!((0..60).contains(&(ago % HOUR)), "{ago} s ago");
    Some(ago / HOUR)
}

/// Collects a form id that expires before any other, and consumes it.
async fn send(fixture: &Fixture, user: &OpenId) {
    fixture.collect(user, &[form_id("sent", 0)]).await;
    let lease = fixture.lease(user).await;
    assert_eq!(lease.credential.as_str(), "sent");
    fixture.settle(user, lease.id, LeaseEnd::Consume).await;
}

async fn bytes(fixture: &Fixture, user: &OpenId) -> usize {
    let users = BucketKeys::new(&fixture.app, fixture.store.bucket_of(user)).users();
    fixture.raw(redis::cmd("HSTRLEN").arg(users).arg(user.as_str())).await
}

#[tokio::test]
async fn only_sent_or_possibly_sent_messages_set_the_time() {
    let anna = user("oAnna");
    for credential in [form_id("c1", 9), prepay_id("c1", 2, 9)] {
        for verdict in [
            LeaseEnd::Hold,
            LeaseEnd::Return,
            LeaseEnd::Discard,
            LeaseEnd::Void,
            LeaseEnd::Suspect,
            LeaseEnd::Consume,
            LeaseEnd::Unknown,
            LeaseEnd::UnknownDiscard,
            LeaseEnd::UnknownVoid,
        ] {
            let (fixture, message) = (Fixture::new().await, request("r1", 1));
            fixture.collect(&anna, &[credential.clone(), form_id("f2", 9)]).await;
            let bob = fixture.neighbour(&anna);
            fixture.collect(&bob, &[form_id("f3", 9)]).await;
            let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
            assert_eq!(touched(&fixture, &anna).await, None, "a lease does not set it");
            fixture.settle_request(&anna, lease.id, verdict, None, &message).await;
            let not_sent = [LeaseEnd::Hold, LeaseEnd::Return, LeaseEnd::Discard, LeaseEnd::Void].contains(&verdict);
            let wanted = (!not_sent).then_some(0);
            assert_eq!((touched(&fixture, &anna).await, touched(&fixture, &bob).await), (wanted, None), "{verdict:?}");
            fixture.assert_sound().await;
        }
    }
}

#[tokio::test]
async fn time_is_set_also_when_the_next_credential_is_leased() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 9), form_id("f2", 9), form_id("f3", 9)]).await;
    let lease = fixture.lease(&anna).await;
    let lease = next(fixture.settle_next(&anna, lease.id, LeaseEnd::Discard, None, LeaseId::random()).await);
    assert_eq!(touched(&fixture, &anna).await, None);
    next(fixture.settle_next(&anna, lease.id, LeaseEnd::Consume, None, LeaseId::random()).await);
    assert_eq!(touched(&fixture, &anna).await, Some(0));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn reaper_sets_the_time_to_the_deadline_of_the_lease() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bob = fixture.neighbour(&anna);
    fixture.collect(&anna, &[prepay_id("p1", 1, 9)]).await;
    fixture.collect(&bob, &[form_id("f1", 9)]).await;
    for owner in [&anna, &bob] {
        leased(fixture.ask(owner, LeaseId::random(), &BRIEF, None).await);
    }
    fixture.advance(2).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { suspect: 1, spent: 1, ..Reaped::default() });
    assert_eq!((touched(&fixture, &anna).await, touched(&fixture, &bob).await), (Some(2), Some(2)));
    assert_eq!(bytes(&fixture, &anna).await, 7, "only the time of the last message is left");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn reaper_keeps_a_newer_time_and_adds_no_expired_one() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[prepay_id("p1", 2, 9)]).await;
    leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, None).await);
    fixture.advance(2).await;
    send(&fixture, &anna).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { spent: 1, ..Reaped::default() });
    assert_eq!(touched(&fixture, &anna).await, Some(0));
    leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, None).await);
    fixture.advance(8 * 24).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { spent: 1, ..Reaped::default() });
    assert_eq!(fixture.store.users(&fixture.app).await.unwrap(), 0, "nothing is stored of the user");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn newer_time_replaces_the_older_one() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    for hours in [0, 5, 30] {
        fixture.advance(hours).await;
        assert_eq!(touched(&fixture, &anna).await, (hours > 0).then_some(hours));
        send(&fixture, &anna).await;
        assert_eq!((touched(&fixture, &anna).await, bytes(&fixture, &anna).await), (Some(0), 7));
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn stale_settle_does_not_change_the_time() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 9)]).await;
    let lease = fixture.lease(&anna).await;
    fixture.settle(&anna, lease.id, LeaseEnd::Consume).await;
    fixture.advance(2).await;
    assert_eq!(fixture.settle(&anna, lease.id, LeaseEnd::Consume).await, SettleReply::Stale);
    assert_eq!(touched(&fixture, &anna).await, Some(2));
}

#[tokio::test]
async fn user_with_only_a_last_message_time_is_not_counted() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    send(&fixture, &anna).await;
    let now = testing::now();
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, None).await, Leased::None);
    assert_eq!(fixture.store.records(&fixture.app, &anna).await.unwrap(), []);
    assert_eq!(fixture.store.inventory(&fixture.app, &anna, now, 0).await.unwrap(), BTreeMap::new());
    let nothing = Stock { counted_at: now, ..Stock::default() };
    assert_eq!(fixture.store.stock(&fixture.app, now, 100).await.unwrap(), nothing);
    assert_eq!(fixture.store.stock(&fixture.app, now, 0).await.unwrap(), nothing, "from the last sweep");
    let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
    assert_eq!(ledger, Ledger { collected: 1, consumed: 1, ..Ledger::default() });
    assert_eq!(fixture.store.users(&fixture.app).await.unwrap(), 1, "but the user has stored data");
    assert_eq!(touched(&fixture, &anna).await, Some(0));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn sweep_drops_the_time_after_a_week_without_counting_it() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bob = fixture.neighbour(&anna);
    for owner in [&anna, &bob] {
        send(&fixture, owner).await;
    }
    fixture.collect(&bob, &[form_id("f1", 200)]).await;
    let sweep = async || fixture.store.stock(&fixture.app, testing::now(), 100).await.unwrap().reachable;
    fixture.advance(7 * 24 - 1).await;
    assert_eq!(sweep().await, 1);
    for owner in [&anna, &bob] {
        assert_eq!(touched(&fixture, owner).await, Some(7 * 24 - 1));
    }
    fixture.advance(1).await;
    assert_eq!((sweep().await, fixture.store.users(&fixture.app).await.unwrap()), (1, 1));
    for owner in [&anna, &bob] {
        assert_eq!(touched(&fixture, owner).await, None);
    }
    assert_eq!(fixture.stored(&bob).await, [("f1".to_owned(), 1, false)]);
    let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
    assert_eq!((ledger.expired, ledger.available()), (0, 1));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn last_message_time_does_not_count_for_the_cap() {
    // The credentials expire after the time of the last message, which is then at the back of the field; or before it.
    for hours in [200, 10] {
        let (fixture, anna) = (Fixture::with_cap(3).await, user("oAnna"));
        send(&fixture, &anna).await;
        let credentials = [1, 2, 3, 4].map(|number| form_id(&format!("f{number}"), hours + number));
        fixture.collect(&anna, &credentials[..3]).await;
        let ids = async || fixture.stored(&anna).await.into_iter().map(|(id, ..)| id).collect::<Vec<_>>();
        assert_eq!(ids().await, ["f1", "f2", "f3"], "as many credentials as the cap allows");
        assert_eq!(touched(&fixture, &anna).await, Some(0));
        fixture.collect(&anna, &credentials[3..]).await;
        assert_eq!(ids().await, ["f2", "f3", "f4"]);
        assert_eq!(touched(&fixture, &anna).await, Some(0), "the cap does not drop it");
        assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap().dropped, 1);
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn id_that_looks_like_a_last_message_time_stays_an_id() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    // Stored as a zero byte, and as the flags, id and length of a time of the last message.
    let ids = ["00", "c00000", "0000"];
    fixture.collect(&anna, &ids.map(|id| form_id(id, 200))).await;
    send(&fixture, &anna).await;
    assert_eq!(fixture.collect(&anna, &ids.map(|id| form_id(id, 200))).await, [0, 1, 2]);
    for _ in ids {
        let lease = fixture.lease(&anna).await;
        fixture.settle(&anna, lease.id, LeaseEnd::Consume).await;
        fixture.assert_sound().await;
    }
    assert_eq!((touched(&fixture, &anna).await, bytes(&fixture, &anna).await), (Some(0), 7));
}

#[tokio::test]
async fn erasure_removes_the_time_and_open_messages_set_none() {
    let anna = user("oAnna");
    for (with_request, outcome) in [(false, None), (true, None), (true, Some(b"ok".as_slice()))] {
        let (fixture, message) = (Fixture::new().await, with_request.then(|| request("r1", 1)));
        let (app, message) = (&fixture.app, message.as_ref());
        send(&fixture, &anna).await;
        fixture.collect(&anna, &[prepay_id("p1", 2, 9)]).await;
        let lease = leased(fixture.ask(&anna, LeaseId::random(), &BRIEF, message).await);
        assert_eq!(fixture.store.erase(app, &anna).await.unwrap(), 2);
        let absent = async || touched(&fixture, &anna).await.is_none() && fixture.store.users(app).await.unwrap() == 0;
        assert!(absent().await, "erased");
        let settle = Settle { id: lease.id, request: message, end: LeaseEnd::Consume, outcome, next: None };
        let settled = fixture.store.settle(app, &anna, &settle, &TERMS).await;
        assert_eq!(settled.unwrap(), SettleReply::Stale);
        assert!(absent().await, "settled");
        fixture.advance(25).await;
        assert_eq!(fixture.reap(&TERMS).await, Reaped::default());
        assert!(absent().await, "reaped");
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn erasing_a_user_with_only_a_last_message_time_counts_none() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    send(&fixture, &anna).await;
    assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), 0);
    assert_eq!((touched(&fixture, &anna).await, fixture.store.users(&fixture.app).await.unwrap()), (None, 0));
    fixture.assert_sound().await;
}
