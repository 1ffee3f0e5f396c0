//! The collector program: its settings, signals and log.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use domain::dependency::Dependency as _;
use server::proto::collector_service_client::CollectorServiceClient;
use testing::{Process, Redis, eventually, free_port};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::*;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
    command.env_clear();
    command
}

/// Starts the program with further flags, and waits until it serves.
async fn start(redis: &Redis, command: &mut Command) -> (Process, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    command.args(["--apps", APP, "--redis-url", &redis.url(), "--listen", &address.to_string()]);
    command.args(["--redis-timeout", "20s"]);
    let process = Process::start(command);
    eventually("it serves", SOON, async || is_serving(address).await).await;
    (process, address)
}

#[test]
fn all_errors_of_settings_are_reported_together() {
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
async fn sigterm_drains_and_exits_with_0_despite_an_open_stream() {
    let redis = Redis::start();
    let mut command = program();
    let (mut process, address) = start(&redis, command.args(["--drain-wait", "200ms", "--drain-timeout", "5s"])).await;
    let mut client = CollectorServiceClient::new(connect(address).await);
    let (sender, batches) = mpsc::channel(8);
    let mut acknowledgements = client.collect_stream(ReceiverStream::new(batches)).await.unwrap().into_inner();
    sender.send(batch(0, vec![form("oUser", "f0")])).await.unwrap();
    acknowledgements.message().await.unwrap().unwrap();

    process.signal("TERM");
    eventually("health shows NOT_SERVING", SOON, async || !is_serving(address).await).await;
    assert_eq!(acknowledgements.message().await.map_err(|status| reason(&status)), Err("SHUTTING_DOWN".to_owned()));
    assert_eq!(process.wait(Duration::from_secs(8)).await, Some(0));
    assert_eq!(stored(&large_store(&redis).await, "oUser").await, ["f0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_signal_exits_immediately() {
    let redis = Redis::start();
    let (mut process, address) = start(&redis, program().args(["--drain-wait", "1h"])).await;
    process.signal("TERM");
    eventually("it drains", SOON, async || !is_serving(address).await).await;
    process.signal("INT");
    assert_eq!(process.wait(SOON).await, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn log_has_no_users_and_no_credentials() {
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
    assert!(log.contains("commands to Redis fail"), "{log}");
    assert!(!log.contains("CANARY"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_settings_that_may_lose_data_are_logged() {
    let redis = Redis::start_with(&["--save", "", "--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (process, _) = start(&redis, program().stderr(File::create(&log).unwrap())).await;
    drop(process);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("maxmemory-policy") && log.contains("allkeys-lru"), "{log}");
    assert!(log.contains("append-only"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_of_redis_is_logged_in_a_few_lines() {
    let mut redis = Redis::durable_alone();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = program();
    // A short sweep period, so that the sweep fails too.
    let flags = ["--log-format", "json", "--sweep-period", "1s", "--buckets", "16", "--drain-wait", "0s"];
    command.stderr(Stdio::from(File::create(&log).unwrap())).args(flags);
    let (mut process, address) = start(&redis, &mut command).await;
    let client = CollectorServiceClient::new(connect(address).await);
    let said = |message: &str| std::fs::read_to_string(&log).unwrap().matches(message).count();
    redis.kill();
    for n in 0..300 {
        collect(&mut client.clone(), vec![form("oUser", &format!("f{n}"))]).await.unwrap_err();
    }
    eventually("the sweep fails", SOON, async || said("sweep interrupted: waiting for Redis") > 0).await;
    redis.resume();
    eventually("the outage is over", SOON, async || said("sweep resumed") > 0 && said("succeed again") > 0).await;
    collect(&mut client.clone(), vec![form("oUser", "f")]).await.unwrap();
    process.signal("TERM");
    assert_eq!(process.wait(SOON).await, Some(0));
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.lines().count() <= 20, "{log}");
    assert_eq!(log.matches("commands to Redis fail").count(), 1, "{log}");
    let end = log.lines().find(|line| line.contains("commands to Redis succeed again")).unwrap();
    let end: serde_json::Value = serde_json::from_str(end).unwrap();
    assert!(end["fields"]["failures"].as_u64() >= Some(300), "{end}");
}

#[test]
fn startup_errors_are_json_if_the_log_is() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.toml");
    std::fs::write(&path, "[callers.x]\napps = 3\n").unwrap();
    let bad = path.to_str().unwrap();
    for (flags, code, expected) in [
        (vec!["--no-such-flag"], 2, vec!["--no-such-flag"]),
        (vec!["--buckets", "0", "--prepay-uses", "0"], 2, vec!["--buckets", "--prepay-uses"]),
        (vec!["--callers-file", bad], 2, vec!["the callers file"]),
        (vec!["--callback-tokens", bad], 2, vec!["the callback tokens file"]),
        (vec!["--listen", &taken], 1, vec!["--listen"]),
        (vec!["--metrics-listen", &taken, "--listen", "127.0.0.1:0"], 1, vec!["--metrics-listen"]),
    ] {
        for (flag, variable) in [(&["--log-format", "json"][..], "human"), (&[][..], "json")] {
            let mut command = program();
            command.args(["--apps", APP]).args(&flags).args(flag).env("FORMID_LOG_FORMAT", variable);
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{flags:?}");
            let log = String::from_utf8(output.stderr).unwrap();
            let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            for part in &expected {
                let error =
                    |line: &serde_json::Value| line["level"] == "ERROR" && line["fields"].to_string().contains(part);
                assert!(lines.iter().any(error), "{part} in {log}");
            }
        }
    }
}

/// A store with the program's default number of buckets.
async fn large_store(redis: &Redis) -> store::Store {
    let config = store::StoreConfig { buckets: 512, ..testing::store_config(redis.url()) };
    let store = store::Store::new(&config).unwrap();
    store.prepare().await.unwrap();
    store
}
