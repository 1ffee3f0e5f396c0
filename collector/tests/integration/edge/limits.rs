//! Limits on concurrent calls, streams and memory.

use std::time::Duration;

use server::proto::{CollectStreamRequest, CollectStreamResponse, EraseUserRequest};
use testing::{Redis, called, eventually};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use super::*;

fn assert_overloaded(status: &Status) {
    testing::assert_overloaded(status);
    assert_eq!(pushback(status).as_deref(), Some("500"));
}

#[tokio::test]
async fn call_over_the_limit_is_refused_immediately_and_health_is_not() {
    let redis = Redis::alone();
    let (collector, mut client) = collector(&redis, &["--max-requests", "3", "--redis-timeout", "10m"]).await;
    // While Redis hangs, none of the three calls below can end.
    redis.servers()[0].hang();
    let mut calls = JoinSet::new();
    for n in 0..3 {
        let mut client = client.clone();
        calls.spawn(async move { collect(&mut client, vec![form("oUser", &format!("f{n}"))]).await });
    }
    let mut turned_away = 0;
    while turned_away < 20 {
        // Until those three have arrived, this call may be accepted instead. It has no openid, so it fails without
        // Redis.
        match client.erase_user(EraseUserRequest { app_id: APP.into(), openid: String::new() }).await {
            Err(status) if status.code() == Code::InvalidArgument => {}
            other => {
                assert_overloaded(&other.unwrap_err());
                turned_away += 1;
            }
        }
    }
    assert!(collector.is_serving().await);
    let status = called(connect(collector.address()).await, "/formid.v1.CollectorService/Nothing", Request::new(()));
    assert_overloaded(&status.await.unwrap_err());
    redis.servers()[0].go_on();
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap();
    }
    collect(&mut client, vec![form("oUser", "f9")]).await.unwrap();
}

#[tokio::test]
async fn canceled_call_frees_its_place() {
    let redis = Redis::alone();
    let (_collector, client) = collector(&redis, &["--max-requests", "1", "--redis-timeout", "10m"]).await;
    redis.servers()[0].hang();
    let inventory = || server::proto::GetInventoryRequest { app_id: APP.into(), openid: "oUser".into() };
    for _ in 0..5 {
        // It gets the place of the previous call shortly after that was canceled.
        eventually("a call is accepted and canceled", SOON, async || {
            let mut given_up = Request::new(inventory());
            given_up.set_timeout(Duration::from_millis(50));
            let status = client.clone().get_inventory(given_up).await.unwrap_err();
            let refused = status.code() == Code::ResourceExhausted;
            assert!(refused || matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
            !refused
        })
        .await;
    }
    redis.servers()[0].go_on();
    eventually("a call is served", SOON, async || client.clone().get_inventory(inventory()).await.is_ok()).await;
}

#[tokio::test]
async fn streams_and_calls_have_separate_limits() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &["--max-streams", "2", "--max-requests", "1"]).await;
    let mut open = Vec::new();
    for sequence in 0..2 {
        let (sender, batches) = mpsc::channel::<CollectStreamRequest>(4);
        let mut acknowledgements = client.collect_stream(ReceiverStream::new(batches)).await.unwrap().into_inner();
        sender.send(batch(sequence, vec![form("oUser", "f")])).await.unwrap();
        acknowledgements.message().await.unwrap().unwrap();
        open.push((sender, acknowledgements));
    }
    assert_overloaded(&client.collect_stream(tokio_stream::empty()).await.unwrap_err());
    collect(&mut client, vec![form("oUser", "g")]).await.unwrap();
    open.pop();
    eventually("there is room again", SOON, async || client.collect_stream(tokio_stream::empty()).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_queue_refuses_calls_and_makes_streams_wait() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &["--redis-timeout", "10m", "--records-per-user", "10"]).await;
    let room = collector::ingest::ROOM / collector::rpc::MAX_CREDENTIALS;
    // Pauses writes only, so that CLIENT UNPAUSE still works.
    redis.everywhere("CLIENT PAUSE 600000 WRITE");
    let credentials: Vec<_> = (0..1000).map(|n| form(&format!("o{n}"), "f")).collect();
    let mut calls = JoinSet::new();
    for _ in 0..room + 20 {
        let (mut client, credentials) = (client.clone(), credentials.clone());
        calls.spawn(async move { collect(&mut client, credentials).await });
    }
    // While Redis does not answer, only refused calls can end.
    assert_overloaded(&calls.join_next().await.unwrap().unwrap().unwrap_err());
    let (sender, batches) = mpsc::channel::<CollectStreamRequest>(8);
    let mut acknowledgements = client.collect_stream(ReceiverStream::new(batches)).await.unwrap().into_inner();
    for sequence in 0..3 {
        sender.send(batch(sequence, credentials.clone())).await.unwrap();
    }
    let waits = tokio::time::timeout(collector::ingest::PATIENCE * 2, acknowledgements.message());
    assert!(waits.await.is_err(), "the stream was answered without room");
    redis.everywhere("CLIENT UNPAUSE");
    for _ in 0..3 {
        acknowledgements.message().await.unwrap().unwrap();
    }
    let stored = calls.join_all().await.into_iter().filter(|call| match call {
        Ok(_) => true,
        Err(status) => {
            assert_overloaded(status);
            false
        }
    });
    assert_eq!(stored.count(), room);
}

#[tokio::test]
async fn oversized_and_malformed_messages_get_a_reason() {
    let redis = Redis::start();
    let (collector, mut client) = collector(&redis, &["--max-message-bytes", "1024"]).await;
    let large = || (0..100).map(|n| form("oUser", &format!("{n:020}"))).collect::<Vec<_>>();
    let status = collect(&mut client, large()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    let mut acknowledgements = client.collect_stream(tokio_stream::once(batch(1, large()))).await.unwrap().into_inner();
    let status = acknowledgements.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));

    // A number instead of a string.
    let wrong = CollectStreamResponse { sequence: 7, ..CollectStreamResponse::default() };
    let channel = connect(collector.address()).await;
    let status = called(channel, "/formid.v1.CollectorService/GetStock", Request::new(wrong)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "MALFORMED_MESSAGE"));
}
