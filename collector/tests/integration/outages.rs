//! Outages of Redis.

use server::proto::credential::Right;
use server::proto::{CollectStatus, Credential, EraseUserRequest, GetInventoryRequest, GetStockRequest, Grant};
use testing::{Redis, Scrape, eventually};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::fixture::*;
use crate::writers::Writers;

pub fn assert_redis_unavailable(status: &Status) {
    assert_eq!((status.code(), reason(status).as_str()), (Code::Unavailable, "REDIS_UNAVAILABLE"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_started_before_redis_waits_for_it() {
    let mut redis = Redis::start();
    redis.kill();
    let collector = Collector::start(&redis, &["--redis-timeout", "2s"]).await;
    let mut client = collector.client().await;
    assert!(!collector.is_serving().await);
    let (app_id, openid) = (APP.to_owned(), "oUser".to_owned());
    let inventory = GetInventoryRequest { app_id: app_id.clone(), openid: openid.clone() };
    for status in [
        collect(&mut client, vec![form("oUser", "f")]).await.unwrap_err(),
        client.get_inventory(inventory).await.unwrap_err(),
        client.get_stock(GetStockRequest { app_id: app_id.clone() }).await.unwrap_err(),
        client.erase_user(EraseUserRequest { app_id, openid }).await.unwrap_err(),
    ] {
        assert_redis_unavailable(&status);
        assert_eq!(pushback(&status).as_deref(), Some("1000"));
    }
    // A client library must not repeat a call by itself if the repetition would count a grant again.
    for (grant_key, unlimited, told) in [("", false, "-1"), ("", true, "1000"), ("form-77", false, "1000")] {
        let grant = Grant { template_id: "t".into(), count: 1, unlimited, grant_key: grant_key.into() };
        let credential = Credential { openid: "oUser".into(), right: Some(Right::Grant(grant)), obtained_at: None };
        let status = collect(&mut client, vec![form("oUser", "f"), credential]).await.unwrap_err();
        assert_redis_unavailable(&status);
        assert_eq!(pushback(&status).as_deref(), Some(told), "{grant_key:?} {unlimited}");
        assert_eq!(status.get_error_details().retry_info().is_some(), told != "-1");
    }
    redis.resume();
    eventually("it serves", SOON, async || collector.is_serving().await).await;
    assert_eq!(collect(&mut client, vec![form("oUser", "f")]).await.unwrap(), [CollectStatus::Stored]);
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_credentials_survive_a_killed_redis() {
    let mut redis = Redis::durable();
    let (collector, _client) = collector(&redis, &["--redis-timeout", "1s"]).await;
    let writers = Writers::start(&collector).await;
    writers.stores(100, SOON).await;
    redis.kill();
    writers.fails().await;
    redis.resume();
    writers.stores(100, SOON).await;
    assert!(writers.missing(&redis.store().await).await.is_empty(), "an acknowledged credential is missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_calls_fail_with_the_first_timeout_of_a_hung_redis() {
    let redis = Redis::start();
    let flags = ["--redis-timeout", "2s", "--records-per-user", "10000"];
    let (collector, mut client) = collector(&redis, &flags).await;
    let failures = async || Scrape::of(collector.metrics).await.value("formid_redis_errors_total", &[]);
    let before = failures().await;
    redis.everywhere("CLIENT PAUSE 600000 ALL");
    // More than one script can store: the scripts for one user's credentials run one after the other.
    let mut calls = tokio::task::JoinSet::new();
    for call in 0..40 {
        let mut client = collector.client().await;
        calls.spawn(async move {
            let ids = (0..100).map(|n| form("oUser", &format!("{call}x{n}")));
            collect(&mut client, ids.collect()).await.unwrap_err()
        });
    }
    while let Some(status) = calls.join_next().await {
        assert_redis_unavailable(&status.unwrap());
    }
    // Without failing together there would be 32 scripts one after the other, each waiting for its timeout.
    let failed = failures().await - before;
    assert!(failed < 16, "{failed} commands timed out");
    assert_redis_unavailable(&collect(&mut client, vec![form("oUser", "f")]).await.unwrap_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connection_is_replaced() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    collect(&mut client, vec![form("oUser", "f0")]).await.unwrap();
    redis.everywhere("CLIENT KILL TYPE normal SKIPME yes");
    eventually("it stores again", SOON, async || collect(&mut client, vec![form("oUser", "f1")]).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_scripts_are_loaded_again() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    redis.everywhere("SCRIPT FLUSH");
    assert_eq!(collect(&mut client, vec![form("oUser", "f")]).await.unwrap(), [CollectStatus::Stored]);
}
