//! A master that is killed while it takes in what is collected, and a replica in its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use testing::{Redis, eventually};

use crate::outages::assert_redis_unavailable;
use crate::support::*;

/// Longer than a replica takes to become the master.
const FAILOVER: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_master_of_a_cluster_but_for_what_its_replica_had_not_heard() {
    collect_through_a_failover(Redis::cluster()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_master_under_sentinels_but_for_what_its_replica_had_not_heard() {
    collect_through_a_failover(Redis::sentinel()).await;
}

async fn collect_through_a_failover(mut redis: Redis) {
    let (collector, _client) = collector(&redis, &["--redis-timeout", "1s"]).await;
    let (done, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let stored_since = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for task in 0..8 {
        let mut client = collector.client().await;
        let (done, failed, stored_since) = (Arc::clone(&done), Arc::clone(&failed), Arc::clone(&stored_since));
        tasks.push(tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for call in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let ids: Vec<_> = (0..20).map(|n| (format!("o{task}x{call}x{}", n % 7), format!("f{n}"))).collect();
                match collect(&mut client, ids.iter().map(|(openid, id)| form(openid, id)).collect()).await {
                    Ok(_) => {
                        acknowledged.push((Instant::now(), ids));
                        stored_since.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(status) => {
                        assert_redis_unavailable(&status);
                        failed.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            acknowledged
        }));
    }
    eventually("some are stored", SOON, async || stored_since.load(Ordering::Relaxed) > 100).await;
    let key = format!("formid:{{{APP}:0}}:users");
    // The replica falls behind, as it may at any time; then the master goes.
    let cut = Instant::now();
    redis.master(&key).cut_off_replicas();
    let before = stored_since.load(Ordering::Relaxed);
    eventually("more are stored", SOON, async || stored_since.load(Ordering::Relaxed) > before + 50).await;
    redis.master(&key).kill();
    let killed = Instant::now();
    eventually("calls fail", SOON, async || failed.load(Ordering::Relaxed) > 8).await;
    // All buckets are stored to again.
    redis.master(&key);
    stored_since.store(0, Ordering::Relaxed);
    eventually("it recovers by itself", FAILOVER, async || stored_since.load(Ordering::Relaxed) > 200).await;
    done.store(true, Ordering::Relaxed);
    eventually("it shows that it serves", SOON, async || collector.is_serving().await).await;

    let store = redis.store().await;
    let mut lost = Vec::new();
    for task in tasks {
        for (at, ids) in task.await.unwrap() {
            for (openid, id) in ids {
                if !stored(&store, &openid).await.contains(&id) {
                    lost.push(at);
                }
            }
        }
    }
    assert!(!lost.is_empty(), "the replica knew everything");
    for at in lost {
        // Something may have been on its way to the replica, and an answer to its caller.
        let moment = cut - Duration::from_secs(1)..killed + Duration::from_secs(1);
        let (before, after) = (cut.saturating_duration_since(at), at.saturating_duration_since(killed));
        assert!(moment.contains(&at), "lost, though acknowledged {before:?} before or {after:?} after");
    }
}
