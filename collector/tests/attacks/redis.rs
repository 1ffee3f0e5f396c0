//! A Redis with a key of the wrong type.

use std::fs::File;
use std::net::SocketAddr;
use std::process::Command;

use domain::OpenId;
use server::proto::GetStockRequest;
use server::proto::collector_service_client::CollectorServiceClient;
use store::keys::{Bucket, BucketKeys};
use testing::{Process, Redis, eventually, free_port};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::fixture::*;

fn users(openid: &str) -> String {
    BucketKeys::new(&app(), Bucket::of(&OpenId::parse(openid).unwrap(), 4)).users()
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_wrong_type_is_logged_once_and_affects_one_bucket() {
    let (redis, folder) = (Redis::alone(), tempfile::tempdir().unwrap());
    let (log, address) = (folder.path().join("log"), SocketAddr::from(([127, 0, 0, 1], free_port())));
    let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
    command.env_clear().stderr(File::create(&log).unwrap());
    command.args(["--apps", APP, "--redis-url", &redis.url(), "--listen", &address.to_string()]);
    let _process = Process::start(command.args(["--buckets", "4", "--sweep-period", "1s"]));
    eventually("it serves", SOON, async || is_serving(address).await).await;
    let mut client = CollectorServiceClient::new(connect(address).await);

    let server = &redis.servers()[0];
    let bad = users("oUser");
    let other = (0..).map(|n| format!("o{n}")).find(|openid| users(openid) != bad).unwrap();
    server.ask(&[&format!("SET {bad} x")]);
    for n in 0..20 {
        let status = collect(&mut client, vec![form("oUser", &format!("f{n}"))]).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Internal, "INTERNAL"));
        // Retrying would not help.
        assert!(status.get_error_details().retry_info().is_none() && pushback(&status).is_none());
        collect(&mut client, vec![form(&other, &format!("f{n}"))]).await.unwrap();
    }
    let status = client.get_stock(GetStockRequest { app_id: APP.into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    // The 20 calls above, and several attempts of the sweep.
    let failed = || {
        let stats = server.ask(&["INFO commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
        line.split("failed_calls=").nth(1).map_or(0, |count| count.trim().parse::<u32>().unwrap())
    };
    eventually("the sweep tried the bucket several times", SOON, async || failed() >= 24).await;
    let stock = BucketKeys::new(&app(), Bucket::of(&OpenId::parse(other.as_str()).unwrap(), 4)).stock();
    eventually("the sweep continued with other buckets", SOON, async || {
        server.ask(&[&format!("EXISTS {stock}")]).starts_with(":1")
    })
    .await;

    let text = std::fs::read_to_string(&log).unwrap();
    let lines = |part: &str| text.lines().filter(|line| line.contains(part)).collect::<Vec<_>>();
    let found = lines("holds the wrong type");
    assert!(found.len() == 1 && found[0].contains(&bad) && found[0].contains("string"), "{text}");
    assert_eq!((lines("cannot sweep a bucket").len(), lines("ERROR").len()), (1, 1), "{text}");
    assert!(lines("sweep interrupted").is_empty() && lines("Redis failed").is_empty(), "{text}");

    server.ask(&[&format!("DEL {bad}")]);
    collect(&mut client, vec![form("oUser", "f")]).await.unwrap();
}
