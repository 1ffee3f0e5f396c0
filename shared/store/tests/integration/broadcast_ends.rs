//! The end of a broadcast: closing its buckets, and cancelling it before it has tasks.

use store::broadcast::records::{Draft, Move, Moved, State};
use store::leases::{LeaseEnd, LeaseId};

use crate::broadcast::{Broadcast, NOW_MS, draft, end};
use crate::fixture::{Fixture, TERMS, form_id, user};

#[tokio::test]
async fn bucket_closes_when_no_user_is_left_or_in_flight_if_cancelled() {
    for cancelled in [false, true] {
        let (fixture, anna) = (Fixture::new().await, user("oAnna"));
        let (bucket, bob) = (fixture.store.bucket_of(&anna), fixture.neighbour(&anna));
        for openid in [&anna, &bob] {
            fixture.collect(openid, &[form_id("f1", 9)]).await;
        }
        let broadcast = Broadcast::to(&fixture, &[anna, bob]).await;
        let close = async |cancelled| {
            let before = fixture.everything().await;
            let closed = broadcast.part(bucket).close(cancelled).await.unwrap();
            assert!(closed || fixture.everything().await == before);
            closed
        };
        let owner = LeaseId::random();
        let ready = broadcast.take(bucket, owner, 1, &TERMS).await.ready;
        assert!(!close(false).await && !close(true).await, "one user waits and one is in flight");
        broadcast.settle(&ready[0].openid, owner, LeaseEnd::Consume, end("delivered")).await;
        assert!(!close(false).await, "one user waits");
        if !cancelled {
            let ready = broadcast.take(bucket, owner, 1, &TERMS).await.ready;
            assert!(!close(false).await, "one user is in flight");
            broadcast.settle(&ready[0].openid, owner, LeaseEnd::Consume, end("delivered")).await;
        }
        assert!(close(cancelled).await && close(cancelled).await, "also twice");
        assert_eq!(broadcast.tally().await.left(), u64::from(cancelled));
    }
}

#[tokio::test]
async fn broadcast_cancelled_before_it_has_tasks_is_not_running() {
    let fixture = Fixture::new().await;
    for not_before_ms in [None, Some(NOW_MS + 1)] {
        let broadcast = Broadcast::of(&fixture, &Draft { not_before_ms, ..draft(false) }).await;
        if not_before_ms.is_some() {
            assert_eq!(broadcast.go(&Move::Start { everyone: false }).await, Moved::To(State::Pending));
        }
        assert_eq!(broadcast.go(&Move::Cancel).await, Moved::To(State::Cancelled));
        assert_eq!(fixture.store.running_broadcasts(&fixture.app).await.unwrap(), []);
        assert!(!fixture.everything().await.keys().any(|key| key.ends_with(":tasks")));
    }
    // A list with recipients has tasks, so it is running until its buckets are closed.
    let broadcast = Broadcast::new(&fixture, false).await;
    broadcast.add(&[user("oAnna")], &[]).await;
    broadcast.go(&Move::Cancel).await;
    assert_eq!(fixture.store.running_broadcasts(&fixture.app).await.unwrap(), [broadcast.id]);
}
