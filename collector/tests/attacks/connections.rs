//! Connections that are opened and not used.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use server::proto::CollectStreamRequest;
use server::proto::collector_service_client::CollectorServiceClient;
use testing::{Process, Redis, Scrape, eventually, free_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::*;

/// The start of an HTTP/2 connection: the preface and an empty SETTINGS frame.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A collector with a limit on open files, and with all its ports.
struct Limited {
    calls: SocketAddr,
    probes: SocketAddr,
    metrics: SocketAddr,
    log: PathBuf,
    _folder: tempfile::TempDir,
    _process: Process,
}

impl Limited {
    async fn start(redis: &Redis, files: u32, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let [calls, probes, metrics] = [(); 3].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {files}; exec \"$0\" \"$@\"")).arg(env!("CARGO_BIN_EXE_collector"));
        command.args(["--apps", APP, "--redis-url", &redis.url(), "--buckets", "4"]).args(flags);
        for (flag, address) in [("--listen", calls), ("--probe-listen", probes), ("--metrics-listen", metrics)] {
            command.args([flag, &address.to_string()]);
        }
        let process = Process::start(command.stderr(File::create(&log).unwrap()));
        eventually("it serves", SOON, async || is_serving(calls).await).await;
        Self { calls, probes, metrics, log, _folder: folder, _process: process }
    }

    /// Number of log lines that contain all of these parts.
    fn lines(&self, parts: &[&str]) -> usize {
        let text = std::fs::read_to_string(&self.log).unwrap();
        text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }
}

/// Opens connections on which nothing is sent.
async fn idle(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(TcpStream::connect(address).await.unwrap());
    }
    connections
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_block_any_port() {
    let redis = Redis::start();
    let collector = Limited::start(&redis, 400, &["--max-connections", "50"]).await;
    let mut held = Vec::new();
    for address in [collector.metrics, collector.probes, collector.calls] {
        held.push(idle(address, 300).await);
    }
    let mut client = CollectorServiceClient::new(connect(collector.calls).await);
    collect(&mut client, vec![form("oUser", "f")]).await.unwrap();
    assert!(is_serving(collector.probes).await);
    assert!(Scrape::of(collector.metrics).await.has("formid_build_info"));
    for listener in ["calls", "probes", "metrics"] {
        assert_eq!(collector.lines(&["the limit of connections is reached", listener]), 1, "{listener}");
    }
    assert_eq!(collector.lines(&["connections cannot be accepted"]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_accept_is_logged_once_when_it_begins_and_ends() {
    let redis = Redis::start();
    let collector = Limited::start(&redis, 48, &[]).await;
    // Fewer than the limit of connections for probes, and more than the limit of open files.
    let held = idle(collector.probes, 60).await;
    eventually("it begins", SOON, async || collector.lines(&["connections cannot be accepted", "probes"]) > 0).await;
    // Accepting is retried ten times a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(collector.lines(&["connections cannot be accepted", "probes"]), 1);
    drop(held);
    eventually("it ends", SOON * 2, async || collector.lines(&["connections are accepted again", "probes"]) > 0).await;
    assert!(is_serving(collector.probes).await);
    assert_eq!(collector.lines(&["connections cannot be accepted", "probes"]), 1);
    assert_eq!(collector.lines(&["connections are accepted again", "probes"]), 1);
}

#[tokio::test]
async fn idle_connection_is_closed_unless_it_has_an_open_stream() {
    let redis = Redis::start();
    let (collector, mut client) = collector(&redis, &["--max-connection-idle", "1s"]).await;
    let (sender, batches) = mpsc::channel::<CollectStreamRequest>(4);
    let mut acknowledgements = client.collect_stream(ReceiverStream::new(batches)).await.unwrap().into_inner();
    // One connection that sends nothing, and one that sends only the HTTP/2 start.
    for hello in [&b""[..], HELLO] {
        let mut connection = TcpStream::connect(collector.address()).await.unwrap();
        connection.write_all(hello).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(SOON * 2, connection.read_to_end(&mut answer)).await;
        // The connection may also be reset.
        let _ = closed.expect("the connection stays open");
    }
    sender.send(batch(1, vec![form("oUser", "f")])).await.unwrap();
    assert_eq!(acknowledgements.message().await.unwrap().unwrap().sequence, 1);
}
