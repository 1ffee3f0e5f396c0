//! The program: its settings, its signals, its log.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use shared::proto::collector_service_client::CollectorServiceClient;
use testing::{Process, Redis, eventually, free_port};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::*;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
    command.env_clear();
    command
}

/// Starts the program with further flags, and waits until it serves.
async fn start(redis: &Redis, command: &mut Command) -> (Process, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    command.args(["--apps", APP, "--redis-url", &redis.url(), "--listen", &address.to_string()]);
    let process = Process::start(command);
    eventually("it serves", SOON, async || is_serving(address).await).await;
    (process, address)
}

#[test]
fn all_that_is_wrong_with_the_settings_is_listed_at_once() {
    let output = program()
        .args(["--listen", "nowhere", "--prepay-uses", "0", "--buckets", "many"])
        .env("FORMID_LEASE_MARGIN", "60")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let list = String::from_utf8(output.stderr).unwrap();
    for flag in ["--listen", "--prepay-uses", "--buckets", "--lease-margin", "--apps"] {
        assert!(list.lines().any(|line| line.trim_start().starts_with(flag)), "{flag} in {list}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_ends_well_while_a_stream_is_open() {
    let redis = Redis::start();
    let mut command = program();
    let (mut process, address) = start(&redis, command.args(["--drain-wait", "200ms", "--drain-timeout", "5s"])).await;
    let mut client = CollectorServiceClient::new(connect(address).await);
    let (sender, batches) = mpsc::channel(8);
    let mut acknowledgements = client.collect_stream(ReceiverStream::new(batches)).await.unwrap().into_inner();
    sender.send(batch(0, vec![form("oUser", "f0")])).await.unwrap();
    acknowledgements.message().await.unwrap().unwrap();

    process.signal("TERM");
    eventually("it shows that it stops", SOON, async || !is_serving(address).await).await;
    assert_eq!(acknowledgements.message().await.map_err(|status| reason(&status)), Err("SHUTTING_DOWN".to_owned()));
    assert_eq!(process.wait(Duration::from_secs(8)).await, Some(0));
    assert_eq!(stored(&large_store(&redis).await, "oUser").await, ["f0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let redis = Redis::start();
    let (mut process, address) = start(&redis, program().args(["--drain-wait", "60s"])).await;
    process.signal("TERM");
    eventually("it drains", SOON, async || !is_serving(address).await).await;
    let start = Instant::now();
    process.signal("INT");
    assert_eq!(process.wait(SOON).await, Some(130));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_user_and_no_credential_reaches_the_log() {
    let mut redis = Redis::start();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = program();
    command.stderr(Stdio::from(File::create(&log).unwrap())).args(["--log", "debug", "--drain-wait", "0s"]);
    let (mut process, address) = start(&redis, &mut command).await;
    let mut client = CollectorServiceClient::new(connect(address).await);
    let canaries = || vec![form("oCANARY", "fCANARY"), form("oCANARY", "fCANARY x"), form("oCANARY y", "fCANARY")];
    collect(&mut client, canaries()).await.unwrap();
    redis.kill();
    collect(&mut client, canaries()).await.unwrap_err();
    process.signal("TERM");
    assert_eq!(process.wait(SOON).await, Some(0));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("Redis failed"), "{log}");
    assert!(!log.contains("CANARY"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_may_forget_is_warned_of() {
    let redis = Redis::start_with(&["--save", "", "--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (process, _) = start(&redis, program().stderr(File::create(&log).unwrap())).await;
    drop(process);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("maxmemory-policy") && log.contains("allkeys-lru"), "{log}");
    assert!(log.contains("append-only"), "{log}");
}

/// A store with as many buckets as the program has by itself.
async fn large_store(redis: &Redis) -> shared::store::Store {
    let config = shared::store::StoreConfig { buckets: 512, ..testing::store_config(redis.url()) };
    let store = shared::store::Store::new(&config).unwrap();
    store.prepare().await.unwrap();
    store
}
