//! Send locks: WeChat accepts one subscription message at a time for a user, so the owner of a leased grant locks the user.

use std::time::Duration;

use domain::{GrantUses, OpenId};
use store::broadcast::pages::Next;
use store::credentials::OnceKey;
use store::eligibility::Eligibility;
use store::leases::{LeaseEnd, LeaseId, LeaseTerms, Leased, NewLease, Reaped, Request, Settle, SettleReply};

use crate::broadcast::{Broadcast, end};
use crate::fixture::{DECIDED, Fixture, TERMS, form_id, leased, marks, next, request, template, user};

const VERDICTS: [LeaseEnd; 7] = [
    LeaseEnd::Consume,
    LeaseEnd::Unknown,
    LeaseEnd::Return,
    LeaseEnd::Suspect,
    LeaseEnd::Discard,
    LeaseEnd::Void,
    LeaseEnd::Hold,
];

/// A user with grants of two templates.
async fn with_grants() -> (Fixture, OpenId) {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    for id in ["t1", "t2"] {
        fixture.grant(&anna, id, GrantUses::Count(9), None).await;
    }
    (fixture, anna)
}

async fn ask(fixture: &Fixture, user: &OpenId, id: LeaseId, request: &Request) -> Leased {
    let wanted = Eligibility::grants(template("t1"));
    let new = NewLease { id, request: Some(request), wanted: &wanted };
    fixture.store.lease(&fixture.app, user, &new, &TERMS).await.unwrap()
}

async fn settle_next(fixture: &Fixture, user: &OpenId, id: LeaseId, verdict: LeaseEnd, next: LeaseId) -> SettleReply {
    let wanted = Eligibility::grants(template("t1"));
    let next = Some((next, &wanted));
    let settle = Settle { id, request: None, end: verdict, outcome: None, next };
    fixture.store.settle(&fixture.app, user, &settle, &TERMS).await.unwrap()
}

fn busy(reply: &Leased) -> bool {
    matches!(reply, Leased::Busy(wait) if *wait > Duration::ZERO && *wait <= TERMS.duration + Duration::from_secs(1))
}

async fn owner(fixture: &Fixture, user: &OpenId) -> Option<LeaseId> {
    marks(&fixture.field(user).await).into_iter().map(|(_, owner)| owner).next()
}

#[tokio::test]
async fn send_lock_lasts_until_the_message_ends_in_any_way() {
    for verdict in VERDICTS {
        let (fixture, anna) = with_grants().await;
        let (message, id) = (request("r1", 1), LeaseId::random());
        leased(ask(&fixture, &anna, id, &message).await);
        let before = fixture.everything().await;
        for of in ["t1", "t2"] {
            assert!(busy(&fixture.ask_for(&anna, LeaseId::random(), &TERMS, of).await));
        }
        assert!(busy(&ask(&fixture, &anna, LeaseId::random(), &request("r2", 1)).await));
        assert!(
            matches!(ask(&fixture, &anna, LeaseId::random(), &message).await, Leased::UnderWay(_)),
            "its own message"
        );
        assert_eq!(leased(ask(&fixture, &anna, id, &message).await).id, id, "a repeated call finds its lease");
        assert_eq!(fixture.everything().await, before);
        fixture.settle_request(&anna, id, verdict, None, &message).await;
        assert_eq!(owner(&fixture, &anna).await, None, "{verdict:?}");
        leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t2").await);
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn form_ids_ignore_the_send_lock_and_set_none() {
    let (fixture, anna) = with_grants().await;
    fixture.collect(&anna, &[form_id("f1", 9), form_id("f2", 9)]).await;
    let first = fixture.lease(&anna).await;
    assert_eq!(owner(&fixture, &anna).await, None);
    let granted = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.lease(&anna).await;
    fixture.settle(&anna, first.id, LeaseEnd::Consume).await;
    assert_eq!(owner(&fixture, &anna).await, Some(granted.id));
    assert_eq!(fixture.store.touched(&fixture.app, &anna).await.unwrap().map(|_| ()), Some(()));
    fixture.settle(&anna, granted.id, LeaseEnd::Consume).await;
    assert_eq!(owner(&fixture, &anna).await, None);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn expired_lease_releases_the_user_and_late_settle_is_stale() {
    let (fixture, anna) = with_grants().await;
    let late = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.advance(1).await;
    let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    assert_eq!(owner(&fixture, &anna).await, Some(lease.id));
    fixture.settle(&anna, late.id, LeaseEnd::Return).await;
    assert_eq!(owner(&fixture, &anna).await, Some(lease.id), "the late owner must not remove it");
    assert!(busy(&fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await));
    fixture.advance(1).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { spent: 1, ..Reaped::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn reaper_removes_the_send_lock_of_its_lease_and_no_other() {
    let (fixture, anna) = with_grants().await;
    leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.advance(1).await;
    let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.reap(&TERMS).await;
    assert_eq!(owner(&fixture, &anna).await, Some(lease.id));
    // A send lock lasts for whole seconds, so it may outlast the deadline.
    let brief = LeaseTerms { duration: Duration::from_millis(1), ..TERMS };
    fixture.settle(&anna, lease.id, LeaseEnd::Return).await;
    leased(fixture.ask_for(&anna, LeaseId::random(), &brief, "t1").await);
    tokio::time::sleep(Duration::from_millis(5)).await;
    fixture.reap(&TERMS).await;
    assert_eq!(owner(&fixture, &anna).await, None);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn takeover_locks_the_user_unless_another_message_does() {
    let (fixture, anna) = with_grants().await;
    let (message, first, second) = (request("r1", 1), LeaseId::random(), LeaseId::random());
    leased(ask(&fixture, &anna, first, &message).await);
    fixture.advance(1).await;
    let other = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t2").await);
    let before = fixture.everything().await;
    for id in [first, second] {
        assert!(busy(&ask(&fixture, &anna, id, &message).await), "another message is in flight");
    }
    assert_eq!(fixture.everything().await, before);
    fixture.settle(&anna, other.id, LeaseEnd::Consume).await;
    let over = leased(ask(&fixture, &anna, second, &message).await);
    assert_eq!((over.id, over.taken_over, over.credential.as_str()), (second, true, "t1"));
    assert_eq!(owner(&fixture, &anna).await, Some(second));
    let before = fixture.everything().await;
    assert!(leased(ask(&fixture, &anna, second, &message).await).taken_over, "its first reply was lost");
    assert!(busy(&fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t2").await));
    assert_eq!(fixture.settle_request(&anna, first, LeaseEnd::Consume, None, &message).await, SettleReply::Stale);
    assert_eq!(fixture.everything().await, before);
    fixture.settle_request(&anna, second, LeaseEnd::Unknown, Some(b"unknown"), &message).await;
    assert_eq!(owner(&fixture, &anna).await, None);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn takeover_at_the_deadline_does_not_wait_for_the_send_lock() {
    let (fixture, anna) = with_grants().await;
    let brief = LeaseTerms { duration: Duration::from_millis(1), ..TERMS };
    let (message, wanted) = (request("r1", 1), Eligibility::grants(template("t1")));
    let new = NewLease { id: LeaseId::random(), request: Some(&message), wanted: &wanted };
    let lease = fixture.store.lease(&fixture.app, &anna, &new, &brief);
    leased(lease.await.unwrap());
    let mut broadcast = Broadcast::to(&fixture, &[fixture.neighbour(&anna)]).await;
    broadcast.choice.wanted = wanted;
    let bob = fixture.neighbour(&anna);
    fixture.grant(&bob, "t1", GrantUses::Count(1), None).await;
    let bucket = fixture.store.bucket_of(&bob);
    assert_eq!(broadcast.take(bucket, LeaseId::random(), 9, &brief).await.ready.len(), 1);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (second, third) = (LeaseId::random(), LeaseId::random());
    assert!(leased(ask(&fixture, &anna, second, &message).await).taken_over);
    assert_eq!(broadcast.take_over(bucket, third, std::slice::from_ref(&bob)).await.ready.len(), 1);
    assert_eq!((owner(&fixture, &anna).await, owner(&fixture, &bob).await), (Some(second), Some(third)));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn takeover_drops_and_counts_expired_credentials() {
    let (fixture, anna) = with_grants().await;
    fixture.collect(&anna, &[form_id("f1", 0)]).await;
    let message = request("r1", 1);
    leased(ask(&fixture, &anna, LeaseId::random(), &message).await);
    fixture.advance(1).await;
    leased(ask(&fixture, &anna, LeaseId::random(), &message).await);
    assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap().expired, 1);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn next_grant_of_a_message_locks_the_user_for_its_owner() {
    let (fixture, anna) = with_grants().await;
    let (first, second, third) = (LeaseId::random(), LeaseId::random(), LeaseId::random());
    leased(fixture.ask_for(&anna, first, &TERMS, "t1").await);
    next(settle_next(&fixture, &anna, first, LeaseEnd::Unknown, second).await);
    assert_eq!(owner(&fixture, &anna).await, Some(second));
    // An owner who is so late that another message has locked the user gets no next grant.
    fixture.advance(1).await;
    let other = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    assert_eq!(settle_next(&fixture, &anna, second, LeaseEnd::Unknown, third).await, SettleReply::NoNext);
    assert_eq!(owner(&fixture, &anna).await, Some(other.id));
    assert_eq!(fixture.leases().await, 1);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn user_with_only_a_send_lock_is_not_reachable() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let reachable = async || {
        let stock = fixture.store.stock(&fixture.app, 0, 100).await.unwrap();
        (stock.reachable, fixture.store.users(&fixture.app).await.unwrap())
    };
    for comes_back in [true, false] {
        fixture.grant(&anna, "t1", GrantUses::Count(1), None).await;
        let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
        let key = OnceKey([u8::from(comes_back); 16]);
        assert_eq!(fixture.store.void(&fixture.app, &anna, &template("t1"), key, DECIDED).await.unwrap(), Some(0));
        assert_eq!(reachable().await, (0, 1));
        assert_eq!(fixture.stored(&anna).await, []);
        assert_eq!(fixture.store.inventory(&fixture.app, &anna, 0, 0).await.unwrap().len(), 0);
        fixture.assert_sound().await;
        if comes_back {
            fixture.settle(&anna, lease.id, LeaseEnd::Void).await;
            assert_eq!(fixture.store.users(&fixture.app).await.unwrap(), 0);
        } else {
            fixture.advance(1).await;
            assert_eq!(reachable().await, (0, 0), "swept");
            fixture.assert_sound().await;
        }
    }
}

#[tokio::test]
async fn send_lock_does_not_count_for_the_cap() {
    let (fixture, anna) = (Fixture::with_cap(2).await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::Count(2), None).await;
    let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    fixture.collect(&anna, &[form_id("f1", 9)]).await;
    assert_eq!(fixture.stored(&anna).await.len(), 2);
    fixture.collect(&anna, &[form_id("f2", 9)]).await;
    assert_eq!(fixture.stored(&anna).await, [("f2".to_owned(), 1, false), ("t1".to_owned(), 1, false)]);
    assert_eq!(owner(&fixture, &anna).await, Some(lease.id));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn broadcast_puts_a_locked_user_back_unchanged() {
    let (fixture, anna) = with_grants().await;
    let bob = fixture.neighbour(&anna);
    let bucket = fixture.store.bucket_of(&anna);
    fixture.grant(&bob, "t1", GrantUses::Count(1), None).await;
    // A credential that expires meanwhile.
    fixture.collect(&anna, &[form_id("f1", 0)]).await;
    let mut broadcast = Broadcast::to(&fixture, &[anna.clone(), bob.clone()]).await;
    broadcast.choice.wanted = Eligibility::grants(template("t1"));
    let long = LeaseTerms { duration: TERMS.duration * 5, ..TERMS };
    let single = leased(fixture.ask_for(&anna, LeaseId::random(), &long, "t2").await);
    fixture.advance(1).await;
    let (field, owner_of_page) = (fixture.field(&anna).await, LeaseId::random());
    let page = broadcast.take(bucket, owner_of_page, 9, &TERMS).await;
    assert_eq!((page.taken, page.busy), (2, 1));
    assert_eq!(page.ready.iter().map(|ready| &ready.openid).collect::<Vec<_>>(), [&bob]);
    assert_eq!(owner(&fixture, &bob).await, Some(owner_of_page));
    assert_eq!(fixture.field(&anna).await, field);
    let (todo, flight, _) = broadcast.places().await;
    assert_eq!((todo.len(), flight.len()), (1, 1));
    assert!(!broadcast.part(bucket).close(false).await.unwrap());
    fixture.assert_sound().await;
    let page = broadcast.take(bucket, LeaseId::random(), 9, &TERMS).await;
    assert_eq!((page.taken, page.busy, page.ready.len()), (1, 1, 0));
    fixture.settle(&anna, single.id, LeaseEnd::Consume).await;
    let page = broadcast.take(bucket, LeaseId::random(), 9, &TERMS).await;
    assert_eq!((page.taken, page.busy, page.ready.len()), (1, 0, 1));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn broadcast_takeover_waits_while_the_user_is_locked() {
    let (fixture, anna) = with_grants().await;
    let bucket = fixture.store.bucket_of(&anna);
    let mut broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
    broadcast.choice.wanted = Eligibility::grants(template("t1"));
    let (first, second) = (LeaseId::random(), LeaseId::random());
    let take_over = async |owner| broadcast.take_over(bucket, owner, std::slice::from_ref(&anna)).await;
    assert_eq!(broadcast.take(bucket, first, 9, &TERMS).await.ready.len(), 1);
    assert_eq!(owner(&fixture, &anna).await, Some(first));
    // Its first reply was lost.
    assert_eq!(take_over(first).await.ready.len(), 1);
    assert_eq!(owner(&fixture, &anna).await, Some(first));
    assert_eq!(take_over(second).await.ready.len(), 0, "its owner still has the lease");
    fixture.advance(1).await;
    let other = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t2").await);
    let before = fixture.everything().await;
    for owner in [first, second] {
        let over = take_over(owner).await;
        assert_eq!(over.ready.len(), 0);
        assert!(over.wait.is_some_and(|wait| wait > TERMS.duration / 2), "{:?}", over.wait);
    }
    assert_eq!(fixture.everything().await, before);
    fixture.settle(&anna, other.id, LeaseEnd::Return).await;
    let over = take_over(second).await;
    assert_eq!((over.ready.len(), over.wait), (1, None));
    assert_eq!(owner(&fixture, &anna).await, Some(second));
    let following = LeaseId::random();
    let lease = broadcast.settle(&anna, second, LeaseEnd::Unknown, Next::Credential(following, "UNKNOWN".into())).await;
    assert_eq!(lease.map(|lease| lease.id), Some(following));
    assert_eq!(owner(&fixture, &anna).await, Some(following));
    broadcast.settle(&anna, following, LeaseEnd::Consume, end("delivered")).await;
    assert_eq!(owner(&fixture, &anna).await, None);
    let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
    assert_eq!((ledger.consumed, ledger.unknown, ledger.available()), (2, 1, 16));
    fixture.assert_sound().await;
}
