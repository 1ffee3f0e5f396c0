//! Services that need no token: health, on both ports; and errors of health and reflection.

use std::time::Duration;

use prost::Message as _;
use testing::Redis;
use testing::http2::{HEADERS, Peer, framed, prefixed};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::fixture::*;
use crate::process::CollectorProcess;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_does_not_read_large_messages_on_either_port() {
    let redis = Redis::alone();
    let collector = CollectorProcess::start(&redis.url(), &[]).await;
    let before = collector.process.peak_memory();
    for address in [collector.address, collector.probes] {
        let large = prefixed(&HealthCheckRequest { service: "x".repeat(4_000_000) }.encode_to_vec());
        let mut peer = Peer::connect(address, 65_535).await;
        let streams: Vec<_> = (0..150).map(|number| peer.open([CHECK, WATCH][number % 2], &[])).collect();
        for part in 0..10 {
            for stream in &streams {
                peer.data(*stream, &large[part * 5000..][..5000], false);
            }
            peer.flush().await.unwrap();
            if part == 0 {
                peer.answers(150).await;
            }
        }
        assert!(is_serving(address).await);
    }
    let grown = collector.process.peak_memory() - before;
    assert!(grown < 32 << 20, "{} kB more", grown >> 10);
}

#[tokio::test]
async fn concurrent_health_calls_are_limited_per_connection() {
    let redis = Redis::alone();
    let collector = CollectorProcess::start(&redis.url(), &[]).await;
    for address in [collector.address, collector.probes] {
        let mut health = HealthClient::new(connect(address).await);
        let mut watched = Vec::new();
        let refused = loop {
            assert!(watched.len() < 100, "no limit on health calls");
            match health.watch(HealthCheckRequest::default()).await {
                Ok(watch) => watched.push(watch.into_inner()),
                Err(status) => break status,
            }
        };
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
        assert!(!watched.is_empty());
        for watch in &mut watched {
            assert!(watch.message().await.unwrap().is_some());
        }
        assert!(is_serving(address).await, "another connection");
        watched.pop();
        testing::eventually("there is room again", SOON, async || {
            health.check(HealthCheckRequest::default()).await.is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn endless_request_to_health_times_out() {
    let redis = Redis::alone();
    let collector = CollectorProcess::start(&redis.url(), &[]).await;
    for address in [collector.address, collector.probes] {
        let mut peer = Peer::connect(address, 65_535).await;
        for path in [CHECK, WATCH] {
            let stream = peer.open(path, &[]);
            peer.data(stream, &framed(&HealthCheckRequest::default())[..3], false);
        }
        peer.flush().await.unwrap();
        let bound = Duration::from_secs(120);
        tokio::time::timeout(bound, peer.answers(2)).await.expect("the request never times out");
    }
}

#[tokio::test]
async fn error_of_health_or_reflection_is_one_headers_frame() {
    let redis = Redis::alone();
    let collector = CollectorProcess::start(&redis.url(), &[]).await;
    let unknown = framed(&HealthCheckRequest { service: "none".into() });
    let reflection = "/grpc.reflection.v1.ServerReflection/Nothing";
    for (address, path) in [
        (collector.address, CHECK),
        (collector.address, reflection),
        (collector.probes, CHECK),
        (collector.probes, "/x"),
    ] {
        let mut peer = Peer::connect(address, 65_535).await;
        let stream = peer.open(path, &[]);
        peer.data(stream, &unknown, true);
        peer.flush().await.unwrap();
        let frames = peer.answers(1).await;
        assert!(matches!(&frames[..], [head] if head.kind == HEADERS && head.is_last()), "{path}: {frames:?}");
    }
    let mut health = HealthClient::new(connect(collector.address).await);
    let status = health.check(Request::new(HealthCheckRequest { service: "none".into() })).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}
