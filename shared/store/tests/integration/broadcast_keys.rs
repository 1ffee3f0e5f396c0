//! Which keys of broadcasts stay in Redis, and for how long.

use deadpool_redis::redis;
use store::broadcast::pages::Next;
use store::broadcast::records::{Draft, Move};
use store::leases::{LeaseEnd, LeaseId};
use store::retention::{KEEP_ENDED, KEEP_OPEN};

use crate::broadcast::{Broadcast, NOW_MS, draft, end, two_whole_broadcasts};
use crate::fixture::{Fixture, TERMS, form_id, user};

/// The keys in Redis: those with an expiry, then those without. Asserts that no key is kept too long.
async fn keys(fixture: &Fixture) -> (Vec<String>, Vec<String>) {
    let (mut expire, mut stay) = (Vec::new(), Vec::new());
    for key in fixture.everything().await.into_keys() {
        let left: i64 = fixture.raw(redis::cmd("TTL").arg(&key)).await;
        assert!(left <= (KEEP_OPEN + KEEP_ENDED).as_secs() as i64, "{key} {left}");
        if left < 0 { stay.push(key) } else { expire.push(key) }
    }
    (expire, stay)
}

async fn days(fixture: &Fixture, days: i64) {
    fixture.advance(days * 24 + 1).await;
}

#[tokio::test]
async fn no_key_of_an_ended_broadcast_stays() {
    let fixture = Fixture::new().await;
    two_whole_broadcasts(&fixture).await;
    let (expire, stay) = keys(&fixture).await;
    assert!(expire.iter().any(|key| key.ends_with(":tally")));
    assert!(!stay.iter().any(|key| key.contains("broadcast")), "{stay:?}");
    // Users who were not reached are listed for a week, and no longer.
    days(&fixture, 6).await;
    assert!(keys(&fixture).await.0.iter().any(|key| key.ends_with(":undelivered")));
    days(&fixture, 1).await;
    let (expire, _) = keys(&fixture).await;
    let left: Vec<_> = expire.iter().map(|key| key.rsplit(':').next().unwrap()).collect();
    assert!(left.iter().all(|name| ["broadcasts", "parts", "r1"].contains(name)), "{left:?}");
    days(&fixture, 30).await;
    assert_eq!(keys(&fixture).await.0, [""; 0]);
}

#[tokio::test]
async fn no_key_of_an_abandoned_broadcast_stays() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    for (everyone, moves) in [
        (true, vec![]),
        (false, vec![]),
        // Scheduled, but no dispatcher starts it when it is due.
        (true, vec![Move::Start { everyone: true }]),
        (true, vec![Move::Start { everyone: true }, Move::Cancel]),
    ] {
        fixture.collect(&anna, &[form_id("f1", 9)]).await;
        let draft = Draft { not_before_ms: Some(NOW_MS + 1), ..draft(everyone) };
        let broadcast = Broadcast::of(&fixture, &draft).await;
        broadcast.add(if everyone { &[] } else { std::slice::from_ref(&anna) }, &[user("oBob")]).await;
        for to in moves {
            broadcast.go(&to).await;
        }
        fixture.assert_sound().await;
        days(&fixture, 37).await;
        let (expire, stay) = keys(&fixture).await;
        assert_eq!(expire, [""; 0]);
        let mut known = fixture.store.due_broadcasts(&fixture.app, NOW_MS + 1).await.unwrap();
        known.extend(fixture.store.running_broadcasts(&fixture.app).await.unwrap());
        for id in known {
            fixture.store.move_broadcast(&fixture.app, &id, &Move::Start { everyone }, NOW_MS + 1).await.unwrap();
        }
        assert!(!keys(&fixture).await.1.iter().any(|key| key.contains("broadcast")), "{stay:?}");
    }
}

#[tokio::test]
async fn late_calls_create_no_key_that_stays() {
    let anna = user("oAnna");
    for late in [None, Some(end("FAILED 1")), Some(Next::Again), Some(Next::Hold), Some(end("delivered"))] {
        let fixture = Fixture::new().await;
        fixture.collect(&anna, &[form_id("f1", 2000), form_id("f2", 2000)]).await;
        let broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
        let owner = LeaseId::random();
        broadcast.take_all(owner, &TERMS).await;
        // As if the message had lasted longer than the keys of the broadcast.
        fixture.raw::<()>(redis::cmd("DEL").arg(broadcast.keys_in(fixture.store.bucket_of(&anna)).tally())).await;
        match late {
            Some(Next::Hold) => drop(broadcast.settle(&anna, owner, LeaseEnd::Hold, Next::Hold).await),
            Some(next) => drop(broadcast.settle(&anna, owner, LeaseEnd::Suspect, next).await),
            None => drop(fixture.store.erase(&fixture.app, &anna).await.unwrap()),
        }
        fixture.assert_sound().await;
        days(&fixture, 37).await;
        assert_eq!(keys(&fixture).await.0, [""; 0]);
    }
}
