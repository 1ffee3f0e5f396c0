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
    // The replica has all that was acknowledged so far. Then it falls behind, as it may at any time, and the master goes.
    let known = Instant::now();
    redis.replicated_master(&key);
    redis.master(&key).cut_off_replicas();
    crowd.stores(50, SOON).await;
    redis.master(&key).kill();
    let killed = Instant::now();
    // All buckets are stored to again.
    redis.master(&key);
    crowd.stores(200, FAILOVER).await;
    eventually("it shows that it serves", SOON, async || collector.is_serving().await).await;

    let lost = crowd.missing(&redis.store().await).await;
    assert!(!lost.is_empty(), "the replica knew everything");
    for call in lost {
        assert!(call.end > known, "lost, though acknowledged before the replica had everything");
        assert!(call.start < killed, "lost, though collected after the master had gone");
    }
}
