//! The memory limit counts the bytes of calls and not their number: even many large concurrent calls use no more memory
//! than the Kubernetes manifests give a collector.

use prost::Message as _;
use prost::bytes::Bytes;
use server::proto::{CollectRequest, CollectStreamRequest};
use testing::http2::{Peer, framed, prefixed};
use testing::{Redis, call_with, eventually};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::fixture::*;
use crate::process::CollectorProcess;

/// The maximum peak memory, well below the 512 MiB of the manifests.
const MOST: u64 = 320 << 20;

const COLLECT: &str = "/formid.v1.CollectorService/Collect";

/// A message of nearly maximum size: a few hundred credentials with long texts.
fn large_message() -> Vec<u8> {
    let credentials = (0..380).map(|n| form("oUser", &format!("{n:010000}"))).collect();
    request(credentials).encode_to_vec()
}

/// Makes the same call many times concurrently over ten connections. Each result must be OVERLOADED or satisfy
/// `is_right`. Returns how many were not OVERLOADED.
async fn at_once(
    collector: &CollectorProcess,
    calls: usize,
    content: Vec<u8>,
    is_right: impl Fn(&Result<(), tonic::Status>) -> bool,
) -> usize {
    let (content, mut tasks, mut channels) = (Bytes::from(prefixed(&content)), JoinSet::new(), Vec::new());
    for _ in 0..10 {
        channels.push(connect(collector.address).await);
    }
    for call in 0..calls {
        let (channel, content): (Channel, _) = (channels[call % channels.len()].clone(), content.clone());
        tasks.spawn(call_with(channel, COLLECT, content));
    }
    let mut answered = 0;
    for ended in tasks.join_all().await {
        match &ended {
            Err(status) if reason(status) == "OVERLOADED" => {
                let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
                assert!(retry.is_some(), "{status:?}");
            }
            ended => {
                assert!(is_right(ended), "{ended:?}");
                answered += 1;
            }
        }
    }
    answered
}

/// Asserts that the collector still serves after the attack, and that its peak memory stayed below the maximum.
async fn assert_well(collector: &CollectorProcess) {
    let mut client = Client::new(connect(collector.address).await);
    collect(&mut client, vec![form("oWell", "f")]).await.unwrap();
    let peak = collector.process.peak_memory();
    assert!(peak < MOST, "{} MB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_calls_stay_within_the_memory_budget() {
    let redis = Redis::alone();
    let collector = CollectorProcess::start(&redis.url(), &[]).await;
    let unknown = CollectRequest { app_id: "wxffffffffffffffff".into(), ..Default::default() };
    let content = [large_message(), unknown.encode_to_vec()].concat();
    assert!(content.len() > 3_800_000 && content.len() < 4 << 20);
    let answered =
        at_once(&collector, 300, content, |ended| ended.as_ref().is_err_and(|status| reason(status) == "UNKNOWN_APP"));
    assert!(answered.await > 0);
    assert_well(&collector).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_counted_before_they_are_decoded() {
    let redis = Redis::alone();
    let collector = CollectorProcess::start(&redis.url(), &[]).await;
    // Two million credentials of two bytes each.
    let content = [&[0x0a, 2, b'w', b'x'], &[0x12, 0].repeat((4 << 20) / 2 - 2)[..]].concat();
    let answered = at_once(&collector, 40, content, |ended| {
        ended.as_ref().is_err_and(|status| reason(status) == "MESSAGE_TOO_LARGE")
    });
    assert!(answered.await > 0);
    // So few that they are still decoded, and then refused as too many.
    let content = [0x12, 0].repeat(200_000);
    let answered = at_once(&collector, 40, content, |ended| {
        ended.as_ref().is_err_and(|status| reason(status) == "INVALID_FIELDS")
    });
    assert!(answered.await > 0);
    assert_well(&collector).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_messages_stay_within_the_memory_budget() {
    let redis = Redis::alone();
    let collector = CollectorProcess::start(&redis.url(), &[]).await;
    let whole = prefixed(&large_message());
    let mut peers = Vec::new();
    for path in [COLLECT, "/formid.v1.CollectorService/CollectStream"] {
        for _ in 0..300 {
            // As much as fits into the flow control windows of a stream and of a connection.
            let mut peer = Peer::connect(collector.address, 65_535).await;
            let stream = peer.open(path, &[]);
            whole[..60_000].chunks(10_000).for_each(|piece| peer.data(stream, piece, false));
            peer.flush().await.unwrap();
            peers.push(peer);
        }
    }
    let mut client = Client::new(connect(collector.address).await);
    // The memory of a call is freed at its timeout, or immediately when its caller disconnects.
    let status = collect(&mut client, vec![form("oUser", "f")]).await.unwrap_err();
    assert_eq!(reason(&status), "OVERLOADED");
    drop(peers);
    eventually("there is room again", SOON, async || collect(&mut client, vec![form("oUser", "f")]).await.is_ok())
        .await;
    assert_well(&collector).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_wait_for_memory_and_are_served_in_turn() {
    let redis = Redis::alone();
    // Enough for two such messages at a time.
    let flags = ["--max-bytes-in-flight", "17000000"];
    let collector = CollectorProcess::start(&redis.url(), &flags).await;
    let channel = connect(collector.address).await;
    let mut tasks = JoinSet::new();
    for sequence in 0..20 {
        let CollectRequest { app_id, credentials } = CollectRequest::decode(&large_message()[..]).unwrap();
        let mut client = Client::new(channel.clone());
        tasks.spawn(async move {
            let batches = vec![CollectStreamRequest { sequence, app_id, credentials }; 2];
            let mut answers = client.collect_stream(tokio_stream::iter(batches)).await.unwrap().into_inner();
            let mut refused = 0;
            while let Some(answer) = answers.message().await.unwrap() {
                assert_eq!(answer.sequence, sequence);
                refused += answer.refusals.len();
            }
            assert_eq!(refused, 2 * 380);
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    assert_well(&collector).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_responses_count_against_the_memory_budget() {
    let redis = Redis::alone();
    let collector = CollectorProcess::start(&redis.url(), &[]).await;
    // The refusals in the response need many times the memory of the request.
    let message = framed(&request(vec![Default::default(); 1000]));
    let mut peers = Vec::new();
    for _ in 0..8 {
        let mut peer = Peer::connect(collector.address, 0).await;
        for _ in 0..900 {
            let stream = peer.open(COLLECT, &[]);
            peer.data(stream, &message, true);
            peer.flush().await.unwrap();
        }
        peers.push(peer);
    }
    let mut client = Client::new(connect(collector.address).await);
    let mut collected = async || collect(&mut client, vec![Default::default(); 1000]).await;
    eventually("all memory is in use", SOON, async || {
        collected().await.is_err_and(|status| reason(&status) == "OVERLOADED")
    })
    .await;
    drop(peers);
    eventually("there is room again", SOON, async || collected().await.is_ok()).await;
    assert_well(&collector).await;
}
