//! How connections end: at their maximum age, and at shutdown.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use server::proto::{CollectStatus, CollectStreamRequest};
use testing::Redis;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;

/// A connection, and a time just before it was opened.
struct Silent(TcpStream, Instant);

/// Opens a connection as HTTP/2 clients do, and then sends nothing, not even answers to pings.
async fn silent(address: SocketAddr) -> Silent {
    let start = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The preface, and an empty SETTINGS frame.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    Silent(stream, start)
}

/// Waits until the server closes the connection. Returns how long it was open, and the types of the received frames.
async fn closed(Silent(mut stream, start): Silent) -> (Duration, Vec<u8>) {
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read).await;
    let (mut rest, mut frames) = (read.as_slice(), Vec::new());
    while let Some((head, after)) = rest.split_first_chunk::<9>() {
        frames.push(head[3]);
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        rest = after.get(length..).unwrap_or_default();
    }
    (start.elapsed(), frames)
}

/// The type of the frame that tells a client to stop using the connection.
const GOAWAY: u8 = 7;

#[tokio::test]
async fn old_connection_gets_goaway_and_is_closed_without_a_peer() {
    let redis = Redis::start();
    let (collector, _client) = collector(&redis, &["--max-connection-age", "1s"]).await;
    let (lived, frames) = closed(silent(collector.address()).await).await;
    assert!(lived > Duration::from_millis(850), "{lived:?}");
    assert!(frames.contains(&GOAWAY), "{frames:?}");
}

/// Whether a call was not sent because its connection had just received GOAWAY. Clients other than tonic's repeat such
/// calls themselves.
fn not_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let said = format!("{error:?}");
        if said.contains("GoAway") && said.contains("NO_ERROR") || said.contains("Canceled") {
            return true;
        }
        cause = error.source();
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_lost_when_connections_reach_their_age() {
    let redis = Redis::start();
    let flags = ["--max-connection-age", "300ms", "--records-per-user", "10000"];
    let (collector, _client) = collector(&redis, &flags).await;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..4 {
        let mut client = collector.client().await;
        callers.spawn(async move {
            let (start, mut calls) = (Instant::now(), 0);
            // Several lifetimes of a connection, and at least a few calls on a busy machine.
            while start.elapsed() < Duration::from_secs(2) || calls < 20 {
                let form = form(&format!("o{caller}"), &format!("f{calls}"));
                match collect(&mut client, vec![form]).await {
                    // If a call was stored and its answer was lost, its repetition would be a duplicate.
                    Ok(statuses) => assert_eq!(statuses, [CollectStatus::Stored]),
                    Err(status) => {
                        assert!(not_sent(&status), "{status:?}");
                        continue;
                    }
                }
                calls += 1;
            }
        });
    }
    callers.join_all().await;
}

#[tokio::test]
async fn stream_on_old_connection_ends_with_reason_after_grace() {
    let redis = Redis::start();
    let flags = ["--max-connection-age", "500ms", "--max-connection-age-grace", "1500ms"];
    // The connection is opened after this.
    let start = Instant::now();
    let (_collector, mut client) = collector(&redis, &flags).await;
    let (sender, batches) = mpsc::channel::<CollectStreamRequest>(4);
    let mut acknowledgements = client.collect_stream(ReceiverStream::new(batches)).await.unwrap().into_inner();
    let mut sequence = 0;
    let end = loop {
        // This fails once the stream has ended.
        let _ = sender.send(batch(sequence, vec![form("oUser", &format!("f{sequence}"))])).await;
        match acknowledgements.message().await {
            Ok(Some(acknowledged)) => assert_eq!(acknowledged.sequence, sequence),
            end => break end,
        }
        sequence += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(reason(&end.unwrap_err()), "SHUTTING_DOWN");
    let lived = start.elapsed();
    assert!(lived > Duration::from_millis(1800), "{lived:?}");
    collect(&mut client, vec![form("oUser", "on a new connection")]).await.unwrap_or_default();
}

#[tokio::test]
async fn connection_without_maximum_age_stays_open() {
    let redis = Redis::start();
    let (collector, _client) = collector(&redis, &["--max-connection-age", "0s"]).await;
    let silent = silent(collector.address()).await;
    assert!(tokio::time::timeout(Duration::from_secs(2), closed(silent)).await.is_err());
}

#[tokio::test]
async fn connection_with_a_dead_peer_is_closed() {
    let redis = Redis::start();
    let flags = ["--keepalive-interval", "1s", "--keepalive-timeout", "1s"];
    let (collector, _client) = collector(&redis, &flags).await;
    let (lived, _) = closed(silent(collector.address()).await).await;
    assert!(lived > Duration::from_millis(1500), "{lived:?}");
}

#[tokio::test]
async fn idle_connections_and_health_watchers_do_not_delay_a_stop() {
    let redis = Redis::start();
    // Longer than any test, so that a delayed stop hangs.
    let (collector, mut client) = collector(&redis, &["--drain-timeout", "1h"]).await;
    collect(&mut client, vec![form("oUser", "f")]).await.unwrap();
    let silent = silent(collector.address()).await;
    let mut health = HealthClient::new(connect(collector.address()).await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    collector.stop().await.unwrap().unwrap();
    let (_, frames) = closed(silent).await;
    assert!(frames.contains(&GOAWAY), "{frames:?}");
    let end = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break String::new(),
            Err(status) => break reason(&status),
        }
    };
    assert_eq!(end, "SHUTTING_DOWN");
}
