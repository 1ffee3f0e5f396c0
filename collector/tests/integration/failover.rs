//! Failover of Redis: the master is killed while credentials are collected, and a replica takes over.

use std::time::{Duration, Instant};

use testing::{Redis, eventually};

use crate::fixture::*;
use crate::writers::Writers;

/// The maximum time until the replica is the master.
const FAILOVER: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn cluster_failover_loses_only_what_was_not_replicated() {
    collect_through_a_failover(Redis::cluster()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinel_failover_loses_only_what_was_not_replicated() {
    collect_through_a_failover(Redis::sentinel()).await;
}

async fn collect_through_a_failover(mut redis: Redis) {
    let (collector, _client) = collector(&redis, &["--redis-timeout", "1s"]).await;
    let writers = Writers::start(&collector).await;
    writers.stores(100, SOON).await;
    let key = format!("formid:{{{APP}:0}}:users");
    // The replica has everything that was acknowledged so far. Then it falls behind, as it may at any time, and the
    // master is killed.
    let known = Instant::now();
    redis.replicated_master(&key);
    redis.master(&key).cut_off_replicas();
    writers.stores(50, SOON).await;
    redis.master(&key).kill();
    let killed = Instant::now();
    // Wait until all buckets can be written again.
    redis.master(&key);
    writers.stores(200, FAILOVER).await;
    eventually("health shows SERVING", SOON, async || collector.is_serving().await).await;

    let lost = writers.missing(&redis.store().await).await;
    assert!(!lost.is_empty(), "the replica had everything, so the test lost nothing");
    for call in lost {
        assert!(call.end > known, "lost, though acknowledged before the replica had everything");
        assert!(call.start < killed, "lost, though collected after the master was killed");
    }
}
