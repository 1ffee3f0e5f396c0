//! Which keys of broadcasts stay in Redis, and for how long.

use deadpool_redis::redis;
use store::broadcast::pages::Next;
use store::broadcast::records::{Draft, Move};
use store::leases::{LeaseEnd, LeaseId};
use store::retention::{KEEP_ENDED, KEEP_OPEN};

use crate::broadcast::{Broadcast, NOW_MS, draft, end, two_whole_broadcasts};
use crate::world::{TERMS, World, form_id, user};

/// The keys in Redis: those with an expiry, then those without. Asserts that no key is kept too long.
async fn keys(world: &World) -> (Vec<String>, Vec<String>) {
    let (mut expire, mut stay) = (Vec::new(), Vec::new());
    for key in world.everything().await.into_keys() {
        let left: i64 = world.raw(redis::cmd("TTL").arg(&key)).await;
        assert!(left <= (KEEP_OPEN + KEEP_ENDED).as_secs() as i64, "{key} {left}");
        if left < 0 { stay.push(key) } else { expire.push(key) }
    }
    (expire, stay)
}

async fn days(world: &World, days: i64) {
    world.advance(days * 24 + 1).await;
}

#[tokio::test]
async fn no_key_of_an_ended_broadcast_stays() {
    let world = World::new().await;
    two_whole_broadcasts(&world).await;
    let (expire, stay) = keys(&world).await;
    assert!(expire.iter().any(|key| key.ends_with(":tally")));
    assert!(!stay.iter().any(|key| key.contains("broadcast")), "{stay:?}");
    // Who was not reached is listed for a week, and no longer.
    days(&world, 6).await;
    assert!(keys(&world).await.0.iter().any(|key| key.ends_with(":undelivered")));
    days(&world, 1).await;
    let (expire, _) = keys(&world).await;
    let left: Vec<_> = expire.iter().map(|key| key.rsplit(':').next().unwrap()).collect();
    assert!(left.iter().all(|name| ["broadcasts", "parts", "r1"].contains(name)), "{left:?}");
    days(&world, 30).await;
    assert_eq!(keys(&world).await.0, [""; 0]);
}

#[tokio::test]
async fn no_key_of_an_abandoned_broadcast_stays() {
    let (world, anna) = (World::new().await, user("oAnna"));
    for (everyone, moves) in [
        (true, vec![]),
        (false, vec![]),
        // Scheduled, but no dispatcher starts it when it is due.
        (true, vec![Move::Start { everyone: true }]),
        (true, vec![Move::Start { everyone: true }, Move::Cancel]),
    ] {
        world.collect(&anna, &[form_id("f1", 9)]).await;
        let draft = Draft { not_before_ms: Some(NOW_MS + 1), ..draft(everyone) };
        let broadcast = Broadcast::of(&world, &draft).await;
        broadcast.add(if everyone { &[] } else { std::slice::from_ref(&anna) }, &[user("oBob")]).await;
        for to in moves {
            broadcast.go(&to).await;
        }
        world.assert_sound().await;
        days(&world, 37).await;
        let (expire, stay) = keys(&world).await;
        assert_eq!(expire, [""; 0]);
        let mut known = world.store.due_broadcasts(&world.app, NOW_MS + 1).await.unwrap();
        known.extend(world.store.running_broadcasts(&world.app).await.unwrap());
        for id in known {
            world.store.move_broadcast(&world.app, &id, &Move::Start { everyone }, NOW_MS + 1).await.unwrap();
        }
        assert!(!keys(&world).await.1.iter().any(|key| key.contains("broadcast")), "{stay:?}");
    }
}

#[tokio::test]
async fn late_calls_create_no_key_that_stays() {
    let anna = user("oAnna");
    for late in [None, Some(end("FAILED 1")), Some(Next::Again), Some(Next::Hold), Some(end("delivered"))] {
        let world = World::new().await;
        world.collect(&anna, &[form_id("f1", 2000), form_id("f2", 2000)]).await;
        let broadcast = Broadcast::to(&world, std::slice::from_ref(&anna)).await;
        let owner = LeaseId::random();
        broadcast.take_all(owner, &TERMS).await;
        // As if the message had lasted longer than the keys of the broadcast.
        world.raw::<()>(redis::cmd("DEL").arg(broadcast.keys_in(world.store.bucket_of(&anna)).tally())).await;
        match late {
            Some(Next::Hold) => drop(broadcast.settle(&anna, owner, LeaseEnd::Hold, Next::Hold).await),
            Some(next) => drop(broadcast.settle(&anna, owner, LeaseEnd::Suspect, next).await),
            None => drop(world.store.erase(&world.app, &anna).await.unwrap()),
        }
        world.assert_sound().await;
        days(&world, 37).await;
        assert_eq!(keys(&world).await.0, [""; 0]);
    }
}
