//! Many concurrent calls of GetStock, each of which needs every bucket of an app.

use server::proto::GetStockRequest;
use testing::{Redis, Scrape, eventually};
use tokio::task::JoinSet;

use crate::fixture::*;

/// Number of buckets of the collectors of these tests.
const BUCKETS: u64 = 4;
const CALLS: u64 = 100;

#[tokio::test]
async fn concurrent_calls_of_get_stock_share_one_count() {
    let redis = Redis::alone();
    let (collector, mut client) = collector(&redis, &["--redis-timeout", "60s", "--sweep-period", "24h"]).await;
    collect(&mut client, vec![form("oUser", "f")]).await.unwrap();
    eventually("the first sweep is over", SOON, async || swept(collector.metrics).await >= BUCKETS).await;
    let before = swept(collector.metrics).await;
    // A count writes to Redis, so the first one waits now, and the other calls arrive meanwhile.
    redis.everywhere("CLIENT PAUSE 60000 WRITE");
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let mut client = client.clone();
        calls.spawn(async move { client.get_stock(GetStockRequest { app_id: APP.into() }).await });
    }
    eventually("all calls have arrived", SOON, async || {
        Scrape::of(collector.metrics).await.value("formid_requests_in_flight", &[]) == CALLS
    })
    .await;
    redis.everywhere("CLIENT UNPAUSE");
    for stock in calls.join_all().await {
        assert_eq!(stock.unwrap().into_inner().reachable_users, 1);
    }
    let counted = swept(collector.metrics).await - before;
    // The count that had begun, and one for all other calls.
    assert!(counted <= 2 * BUCKETS, "{counted} scripts for {CALLS} calls");
}

/// Number of buckets counted so far.
async fn swept(metrics: std::net::SocketAddr) -> u64 {
    Scrape::of(metrics).await.value("formid_redis_seconds_count", &[("command", "sweep.lua")])
}
