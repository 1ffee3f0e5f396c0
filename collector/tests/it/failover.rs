//! A master that is killed while it takes in what is collected, and a replica in its place.

use std::time::{Duration, Instant};

use testing::{Redis, eventually};

use crate::crowd::Crowd;
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
    let crowd = Crowd::start(&collector).await;
    crowd.stores(100, SOON).await;
    let key = format!("formid:{{{APP}:0}}:users");
    // The replica falls behind, as it may at any time; then the master goes.
    let cut = Instant::now();
    redis.master(&key).cut_off_replicas();
    crowd.stores(50, SOON).await;
    redis.master(&key).kill();
    let killed = Instant::now();
    crowd.fails().await;
    // All buckets are stored to again.
    redis.master(&key);
    crowd.stores(200, FAILOVER).await;
    eventually("it shows that it serves", SOON, async || collector.is_serving().await).await;

    let lost = crowd.missing(&redis.store().await).await;
    assert!(!lost.is_empty(), "the replica knew everything");
    for at in lost {
        // Something may have been on its way to the replica, and an answer to its caller.
        let moment = cut - Duration::from_secs(1)..killed + Duration::from_secs(1);
        let (before, after) = (cut.saturating_duration_since(at), at.saturating_duration_since(killed));
        assert!(moment.contains(&at), "lost, though acknowledged {before:?} before or {after:?} after");
    }
}
