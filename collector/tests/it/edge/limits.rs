//! How much may be under way at once.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shared::proto::{CollectStreamRequest, CollectStreamResponse, EraseUserRequest};
use testing::{Redis, called, eventually};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::*;

fn pause(redis: &Redis, milliseconds: u32) {
    let pause = ["CLIENT", "PAUSE", &milliseconds.to_string(), "ALL"];
    let output = Command::new("redis-cli").args(["-u", &redis.url()]).args(pause).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn assert_overloaded(status: &Status) {
    assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "OVERLOADED"), "{status:?}");
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
}

#[tokio::test]
async fn a_call_too_many_is_turned_away_at_once_and_health_never_is() {
    let redis = Redis::start();
    let (collector, mut client) = collector(&redis, &["--max-requests", "3", "--redis-timeout", "10s"]).await;
    pause(&redis, 2000);
    let mut calls = JoinSet::new();
    for n in 0..3 {
        let mut client = client.clone();
        calls.spawn(async move { collect(&mut client, vec![form("oUser", &format!("f{n}"))]).await });
    }
    let mut turned_away = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(800) {
        let asked = Instant::now();
        // Until those three have arrived, one of these may take a place. It has no user, so it needs no Redis.
        match client.erase_user(EraseUserRequest { app_id: APP.into(), openid: String::new() }).await {
            Err(status) if status.code() == Code::InvalidArgument => {}
            other => {
                assert_overloaded(&other.unwrap_err());
                turned_away += 1;
            }
        }
        assert!(asked.elapsed() < Duration::from_millis(500), "it waited");
    }
    assert!(turned_away > 10, "{turned_away}");
    assert!(collector.is_serving().await);
    let status = called(connect(collector.address()).await, "/formid.v1.CollectorService/Nothing", Request::new(()));
    assert_overloaded(&status.await.unwrap_err());
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap();
    }
    collect(&mut client, vec![form("oUser", "f9")]).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_given_up_makes_room() {
    let redis = Redis::start();
    let (_collector, client) = collector(&redis, &["--max-requests", "1", "--redis-timeout", "10s"]).await;
    pause(&redis, 1500);
    let inventory = || shared::proto::GetInventoryRequest { app_id: APP.into(), openid: "oUser".into() };
    for _ in 0..5 {
        let mut given_up = Request::new(inventory());
        given_up.set_timeout(Duration::from_millis(50));
        let status = client.clone().get_inventory(given_up).await.unwrap_err();
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.clone().get_inventory(inventory()).await.unwrap();
}

#[tokio::test]
async fn streams_are_counted_apart_from_calls() {
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

#[tokio::test]
async fn a_message_that_is_too_large_or_none_at_all_has_a_reason_too() {
    let redis = Redis::start();
    let (collector, mut client) = collector(&redis, &["--max-message-bytes", "1024"]).await;
    let large = || (0..100).map(|n| form("oUser", &format!("{n:020}"))).collect::<Vec<_>>();
    let status = collect(&mut client, large()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    let mut acknowledgements = client.collect_stream(tokio_stream::once(batch(1, large()))).await.unwrap().into_inner();
    let status = acknowledgements.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));

    // A number where a text should be.
    let wrong = CollectStreamResponse { sequence: 7, ..CollectStreamResponse::default() };
    let channel = connect(collector.address()).await;
    let status = called(channel, "/formid.v1.CollectorService/GetStock", Request::new(wrong)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "MALFORMED_MESSAGE"));
}

/// The time that 99 of 100 calls that were served took at most, of callers that call again at once, and how many of each
/// there were: served, and turned away.
async fn hammered(collector: &Collector, callers: usize, span: Duration) -> (Duration, usize, usize) {
    let turned_away = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let (mut client, turned_away) = (collector.client().await, Arc::clone(&turned_away));
        tasks.spawn(async move {
            let (start, mut served) = (Instant::now(), Vec::new());
            for n in 0.. {
                if start.elapsed() > span {
                    break;
                }
                let asked = Instant::now();
                match collect(&mut client, vec![form(&format!("o{caller}"), &format!("{n}"))]).await {
                    Ok(_) => served.push(asked.elapsed()),
                    Err(status) => {
                        assert_overloaded(&status);
                        turned_away.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            served
        });
    }
    let mut served = tasks.join_all().await.concat();
    served.sort();
    let slow = served.get(served.len() * 99 / 100).copied().unwrap_or(span);
    (slow, served.len(), turned_away.load(Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread")]
async fn with_ten_times_the_callers_those_served_are_served_about_as_fast() {
    let redis = Redis::start();
    let (collector, _) = collector(&redis, &["--max-requests", "16"]).await;
    let span = Duration::from_secs(2);
    let (alone, served_alone, turned_away) = hammered(&collector, 16, span).await;
    assert!(served_alone > 100 && turned_away == 0, "{served_alone} {turned_away}");
    let (crowded, served, turned_away) = hammered(&collector, 160, span).await;
    assert!(turned_away > 0 && served > served_alone / 10, "{served} of {served_alone}, {turned_away}");
    // Ten times the callers in a line would take ten times as long; this machine is also theirs.
    assert!(crowded < alone * 6 + Duration::from_millis(50), "{crowded:?} after {alone:?}");
}
