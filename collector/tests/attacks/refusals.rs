//! Calls that are answered before the collector has read the whole request, while others use the same connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use server::proto::CollectStreamResponse;
use testing::http2::{DATA, Peer, framed, prefixed};
use testing::{CallersFile, Redis, eventually};
use tokio::task::JoinSet;
use tonic::Code;

use crate::fixture::*;
use crate::process::{CollectorProcess, slow_redis};

const COLLECT: &str = "/formid.v1.CollectorService/Collect";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overloaded_calls_do_not_break_the_connection() {
    let (redis, redis_url) = slow_redis().await;
    let collector = CollectorProcess::start(&redis_url, &["--max-requests", "20"]).await;
    let client = Client::new(connect(collector.address).await);
    let (served, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = JoinSet::new();
    for caller in 0..900 {
        let (mut client, served, refused) = (client.clone(), Arc::clone(&served), Arc::clone(&refused));
        tasks.spawn(async move {
            for round in 0..12 {
                match collect(&mut client, vec![form(&format!("o{caller}"), &format!("{round}"))]).await {
                    Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                    Err(status) => {
                        assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
                        refused.fetch_add(1, Ordering::Relaxed)
                    }
                };
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let (served, refused) = (served.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    assert!(served > 0 && refused > 2 * 1024, "{served} served, {refused} refused");
    let ledger = redis.store().await.ledger(&app()).await.unwrap();
    assert_eq!(ledger.collected, served as u64, "a call that was refused was carried out");
}

/// Makes many calls on one connection, and sends the rest of each request after its answer. Then makes a call that must
/// be served.
async fn answered_early(collector: &Collector, path: &str, headers: &[(&str, &str)], first: &[u8], token: &str) {
    /// More than an HTTP/2 implementation tolerates on closed streams, and more at a time than it remembers.
    const CALLS: usize = 1500;
    const AT_ONCE: usize = 100;
    let mut peer = Peer::connect(collector.address(), 1 << 20).await;
    for _ in 0..CALLS / AT_ONCE {
        let streams: Vec<_> = (0..AT_ONCE).map(|_| peer.open(path, headers)).collect();
        for stream in streams.iter().filter(|_| !first.is_empty()) {
            peer.data(*stream, first, false);
        }
        peer.flush().await.unwrap();
        let answers = peer.answers(AT_ONCE).await;
        assert!(answers.iter().all(|frame| frame.kind != DATA), "{path} was served");
        // The rest of each request, in pieces as clients send them.
        for stream in streams {
            peer.data(stream, &[0; 100], false);
            peer.data(stream, &[], true);
        }
        peer.flush().await.unwrap();
    }
    let stream = peer.open(COLLECT, &[("authorization", &format!("Bearer {token}"))]);
    peer.data(stream, &framed(&request(vec![form("oUser", "f")])), true);
    peer.flush().await.unwrap();
    let answers = peer.answers(1).await;
    assert!(answers.iter().any(|frame| frame.kind == DATA && frame.stream == stream), "{path}: {answers:?}");
}

#[tokio::test]
async fn early_answers_do_not_close_the_connection() {
    let redis = Redis::start();
    let file = CallersFile::new(&[("all", "token_sha256 = ['TOKEN(all)']\napps = ['*']\npermissions = ['collect']")]);
    let given = file.flags();
    let flags = [&given[0], &given[1], "--max-message-bytes", "4096"];
    let (collector, _) = collector(&redis, &flags).await;
    let token = ("authorization", "Bearer all");
    // A number instead of a string.
    let wrong = framed(&CollectStreamResponse { sequence: 7, ..CollectStreamResponse::default() });
    let too_large = [0, 0, 0, 0xff, 0xff, 1, 2, 3];
    let unknown = framed(&batch(1, Vec::new()));
    for (path, headers, first) in [
        (COLLECT, &[][..], &[][..]),
        ("/formid.v1.CollectorService/Nothing", &[token], &[]),
        (COLLECT, &[token, ("grpc-encoding", "gzip")], &[]),
        (COLLECT, &[token, ("grpc-timeout", "1m")], &[]),
        (COLLECT, &[token], &too_large),
        (COLLECT, &[token], &wrong),
        (COLLECT, &[token], &prefixed(&[0x12; 9])),
        ("/formid.v1.CollectorService/CollectStream", &[token], &unknown),
        ("/formid.v1.CollectorService/CollectStream", &[token], &too_large),
        ("/grpc.health.v1.Health/Check", &[], &too_large),
        ("/grpc.health.v1.Health/Check", &[], &wrong),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &[], &[]),
    ] {
        answered_early(&collector, path, headers, first, "all").await;
    }
}

#[tokio::test]
async fn overloaded_call_is_answered_before_it_is_read() {
    let redis = Redis::start();
    let (collector, mut client) = collector(&redis, &["--max-requests", "1", "--redis-timeout", "300s"]).await;
    redis.everywhere("CLIENT PAUSE 300000 WRITE");
    let patient = {
        let mut client = client.clone();
        tokio::spawn(async move { collect(&mut client, vec![form("oPatient", "f")]).await })
    };
    eventually("the one call uses the whole limit", SOON, async || {
        client.get_inventory(server::proto::GetInventoryRequest::default()).await.unwrap_err().code()
            == Code::ResourceExhausted
    })
    .await;
    let mut peer = Peer::connect(collector.address(), 1 << 20).await;
    for _ in 0..15 {
        let streams: Vec<_> = (0..100).map(|_| peer.open(COLLECT, &[])).collect();
        peer.flush().await.unwrap();
        peer.answers(100).await;
        streams.into_iter().for_each(|stream| peer.data(stream, &[0; 100], true));
        peer.flush().await.unwrap();
    }
    redis.everywhere("CLIENT UNPAUSE");
    patient.await.unwrap().unwrap();
    let stream = peer.open(COLLECT, &[]);
    peer.data(stream, &framed(&request(vec![form("oUser", "f")])), true);
    peer.flush().await.unwrap();
    assert!(peer.answers(1).await.iter().any(|frame| frame.kind == DATA));
}
