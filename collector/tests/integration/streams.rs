//! CollectStream: an acknowledged batch is stored.

use std::collections::BTreeSet;

use server::proto::{CollectStreamRequest, CollectStreamResponse, RefusalReason};
use testing::Redis;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::fixture::*;

/// Opens a stream; batches that are sent into the channel go to the collector.
async fn open(client: &mut Client) -> (mpsc::Sender<CollectStreamRequest>, Streaming<CollectStreamResponse>) {
    let (sender, batches) = mpsc::channel(64);
    let acknowledgements = client.collect_stream(ReceiverStream::new(batches)).await.unwrap().into_inner();
    (sender, acknowledgements)
}

/// Reads to the end; returns the acknowledged sequence numbers, and the status at the end.
async fn read_all(mut stream: Streaming<CollectStreamResponse>) -> (BTreeSet<u64>, Result<(), Status>) {
    let mut sequences = BTreeSet::new();
    loop {
        match stream.message().await {
            Ok(Some(acknowledgement)) => assert!(sequences.insert(acknowledgement.sequence), "acknowledged twice"),
            Ok(None) => return (sequences, Ok(())),
            Err(status) => return (sequences, Err(status)),
        }
    }
}

fn forms(sequence: u64, count: usize) -> CollectStreamRequest {
    batch(sequence, (0..count).map(|n| form(&format!("o{sequence}x{n}"), "f")).collect())
}

#[tokio::test]
async fn half_closed_stream_gets_every_acknowledgement() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let (sender, acknowledgements) = open(&mut client).await;
    let reader = tokio::spawn(read_all(acknowledgements));
    for sequence in 0..200 {
        sender.send(forms(sequence, 20)).await.unwrap();
    }
    drop(sender);
    let (sequences, end) = reader.await.unwrap();
    assert_eq!(sequences, (0..200).collect());
    end.unwrap();
    assert_eq!(redis.store().await.ledger(&app()).await.unwrap().collected, 4000);
}

#[tokio::test]
async fn acknowledgement_has_counts_and_refusals() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let (sender, mut acknowledgements) = open(&mut client).await;
    let credentials = vec![form("oA", "f1"), form("", "f2"), form("oA", "f1"), form("oA", ""), form("oB", "f1")];
    sender.send(batch(7, credentials)).await.unwrap();
    let CollectStreamResponse { sequence, stored, duplicates, refusals } =
        acknowledgements.message().await.unwrap().unwrap();
    assert_eq!((sequence, stored, duplicates), (7, 2, 1));
    let refusals: Vec<_> = refusals.iter().map(|refusal| (refusal.index, refusal.reason())).collect();
    assert_eq!(refusals, [(1, RefusalReason::BadOpenid), (3, RefusalReason::EmptyId)]);

    // A batch that has only refused credentials is acknowledged too.
    sender.send(batch(8, vec![form("", "f")])).await.unwrap();
    let acknowledged = acknowledgements.message().await.unwrap().unwrap();
    assert_eq!((acknowledged.sequence, acknowledged.stored, acknowledged.refusals.len()), (8, 0, 1));
}

#[tokio::test]
async fn acknowledged_batches_are_stored_when_a_stream_breaks() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let (sender, mut acknowledgements) = open(&mut client).await;
    for sequence in 0..40 {
        sender.send(forms(sequence, 50)).await.unwrap();
    }
    let mut acknowledged = Vec::new();
    for _ in 0..5 {
        acknowledged.push(acknowledgements.message().await.unwrap().unwrap().sequence);
    }
    drop((acknowledgements, sender, client));
    let store = redis.store().await;
    for sequence in acknowledged {
        for n in 0..50 {
            assert_eq!(stored(&store, &format!("o{sequence}x{n}")).await, ["f"]);
        }
    }
}

#[tokio::test]
async fn bad_batch_ends_the_stream_after_earlier_acknowledgements() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let unknown = CollectStreamRequest { app_id: "wxother".into(), ..forms(10, 1) };
    let both = CollectStreamRequest { app_id: "wxother".into(), ..forms(10, 0) };
    for (bad, code, why, fields) in [
        (forms(10, 0), Code::InvalidArgument, "INVALID_FIELDS", vec!["credentials"]),
        (forms(10, 1001), Code::InvalidArgument, "INVALID_FIELDS", vec!["credentials"]),
        (unknown, Code::NotFound, "UNKNOWN_APP", vec!["app_id"]),
        (both, Code::InvalidArgument, "INVALID_FIELDS", vec!["app_id", "credentials"]),
    ] {
        let (sender, acknowledgements) = open(&mut client).await;
        for sequence in 0..10 {
            sender.send(forms(sequence, 3)).await.unwrap();
        }
        sender.send(bad).await.unwrap();
        let (sequences, end) = read_all(acknowledgements).await;
        assert_eq!(sequences, (0..10).collect());
        let status = end.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (code, why));
        assert_eq!(status.get_error_details().error_info().unwrap().metadata["sequence"], "10");
        assert_eq!(bad_fields(&status), fields);
    }
}

#[tokio::test]
async fn stream_ends_with_the_failed_batch_when_redis_fails() {
    let mut redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &["--redis-timeout", "2s"]).await;
    let (sender, mut acknowledgements) = open(&mut client).await;
    sender.send(forms(0, 1)).await.unwrap();
    acknowledgements.message().await.unwrap().unwrap();
    redis.kill();
    sender.send(forms(1, 1)).await.unwrap();
    let (sequences, end) = read_all(acknowledgements).await;
    assert!(sequences.is_empty());
    let status = end.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "REDIS_UNAVAILABLE"));
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["sequence"], "1");
}

#[tokio::test]
async fn caller_that_does_not_read_is_slowed_and_loses_nothing() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let (sender, batches) = mpsc::channel(1);
    let acknowledgements = client.collect_stream(ReceiverStream::new(batches)).await.unwrap().into_inner();
    // Refusals make acknowledgements large. Unread, they fill the flow control window of the response.
    let refused = || (0..1000).map(|_| form("", "f")).collect::<Vec<_>>();
    let mut sent = 0;
    while sent < 1000 {
        let send = sender.send(batch(sent, refused()));
        if tokio::time::timeout(std::time::Duration::from_millis(500), send).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < 1000, "the caller was not slowed down");
    drop(sender);
    let (sequences, end) = read_all(acknowledgements).await;
    end.unwrap();
    assert_eq!(sequences, (0..sent).collect());
}

#[tokio::test]
async fn shutdown_ends_open_streams_with_shutting_down() {
    let redis = Redis::start();
    let (collector, mut client) = collector(&redis, &[]).await;
    let (sender, mut acknowledgements) = open(&mut client).await;
    sender.send(forms(0, 3)).await.unwrap();
    acknowledgements.message().await.unwrap().unwrap();
    let served = collector.stop();
    let (_, end) = read_all(acknowledgements).await;
    assert_eq!(reason(&end.unwrap_err()), "SHUTTING_DOWN");
    drop(client);
    served.await.unwrap().unwrap();
}
