//! Changes to the callers file while the collector runs.

use server::proto::CollectStreamRequest;
use testing::{Redis, bearer, eventually, reason};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

const NEW: (&str, &str) = ("new", "token_sha256 = ['TOKEN(new)']\napps = ['*']\npermissions = ['read']");

async fn becomes(channel: &Channel, token: &str, outcome: &str) {
    eventually(&format!("{token}: {outcome}"), SOON, async || stock(channel, token).await == outcome).await;
}

#[tokio::test]
async fn callers_file_is_reloaded_and_a_broken_file_is_ignored() {
    let redis = Redis::start();
    let (collector, channel, file) = guarded(&redis, &[ALL], &[]).await;
    assert_eq!([stock(&channel, "all").await, stock(&channel, "new").await], ["OK", "UNAUTHENTICATED"]);
    file.write(&[ALL, NEW]);
    becomes(&channel, "new", "OK").await;
    file.write_text("[callers.new\n");
    until_in_use(collector.metrics, "callers", false).await;
    assert_eq!([stock(&channel, "all").await, stock(&channel, "new").await], ["OK", "OK"]);
    file.write(&[ALL, NEW]);
    until_in_use(collector.metrics, "callers", true).await;
    std::fs::remove_file(file.path()).unwrap();
    until_in_use(collector.metrics, "callers", false).await;
    assert_eq!([stock(&channel, "all").await, stock(&channel, "new").await], ["OK", "OK"]);
    file.write(&[NEW]);
    becomes(&channel, "all", "UNAUTHENTICATED").await;
    assert_eq!(stock(&channel, "new").await, "OK");
    file.write(&[(NEW.0, &NEW.1.replace("read", "erase"))]);
    becomes(&channel, "new", "NOT_PERMITTED").await;
}

#[tokio::test]
async fn token_is_replaced_without_an_interruption() {
    let redis = Redis::start();
    let table = |tokens: &str| format!("token_sha256 = [{tokens}]\napps = ['*']\npermissions = ['read']");
    let (_collector, channel, file) = guarded(&redis, &[("a", &table("'TOKEN(old)'"))], &[]).await;
    file.write(&[("a", &table("'TOKEN(old)', 'TOKEN(new)'"))]);
    becomes(&channel, "new", "OK").await;
    assert_eq!(stock(&channel, "old").await, "OK");
    file.write(&[("a", &table("'TOKEN(new)'"))]);
    becomes(&channel, "old", "UNAUTHENTICATED").await;
    assert_eq!(stock(&channel, "new").await, "OK");
}

#[tokio::test]
async fn open_stream_of_a_removed_caller_stores_nothing_more() {
    let redis = Redis::start();
    let (_collector, channel, file) = guarded(&redis, &[ALL], &[]).await;
    let (sender, batches) = mpsc::channel::<CollectStreamRequest>(4);
    let mut client = Client::new(channel.clone());
    let stream = client.collect_stream(bearer("all", ReceiverStream::new(batches))).await.unwrap();
    let mut acknowledgements = stream.into_inner();
    sender.send(batch(1, vec![form("oUser", "f1")])).await.unwrap();
    assert_eq!(acknowledgements.message().await.unwrap().unwrap().sequence, 1);
    file.write(&[NEW]);
    becomes(&channel, "new", "OK").await;
    // The stream may have ended already.
    let _ = sender.send(batch(2, vec![form("oUser", "f2")])).await;
    assert_eq!(reason(&acknowledgements.message().await.unwrap_err()), "UNAUTHENTICATED");
    assert_eq!(stored(&redis.store().await, "oUser").await, ["f1"]);
}
