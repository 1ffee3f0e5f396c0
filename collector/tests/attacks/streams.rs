//! A caller that opens too many streams, or keeps them after it was removed.

use std::time::Duration;

use testing::{CallersFile, Redis, SilentStream, eventually, reason};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::fixture::*;

const COLLECT: &str = "/formid.v1.CollectorService/CollectStream";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

const A: (&str, &str) = ("a", "token_sha256 = ['TOKEN(a)']\napps = ['*']\npermissions = ['collect']");
const B: (&str, &str) = ("b", "token_sha256 = ['TOKEN(b)']\napps = ['*']\npermissions = ['collect']");

async fn guarded(redis: &Redis, flags: &[&str]) -> (Collector, Channel, CallersFile) {
    let file = CallersFile::new(&[A, B]);
    let given = file.flags();
    let mut all = vec![given[0].as_str(), given[1].as_str()];
    all.extend(flags);
    let (collector, _) = collector(redis, &all).await;
    let channel = connect(collector.address()).await;
    (collector, channel, file)
}

/// Opens as many streams as a caller can; also returns the status that the next one is refused with.
async fn all_of(channel: &Channel, token: &str) -> (Vec<SilentStream>, Status) {
    let mut open = Vec::new();
    loop {
        match SilentStream::open(channel.clone(), COLLECT, token).await {
            Ok(stream) => open.push(stream),
            Err(status) => return (open, status),
        }
    }
}

#[tokio::test]
async fn one_caller_cannot_use_up_all_streams() {
    let redis = Redis::start();
    let (_collector, channel, _file) = guarded(&redis, &["--max-streams", "8"]).await;
    let (of_a, refused) = all_of(&channel, "a").await;
    assert_eq!((of_a.len(), refused.code(), reason(&refused).as_str()), (4, Code::ResourceExhausted, "OVERLOADED"));
    // A call of reflection counts as a stream too.
    assert_eq!(reason(&SilentStream::open(channel.clone(), REFLECTION, "a").await.unwrap_err()), "OVERLOADED");
    let (of_b, _) = all_of(&channel, "b").await;
    assert_eq!(of_b.len(), 2);
    drop((of_a, of_b));
    eventually("there is room again", SOON, async || all_of(&channel, "b").await.0.len() == 4).await;
}

/// The reason that an idle stream ends with.
async fn end(stream: &mut SilentStream) -> String {
    let ended = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
    reason(&ended.expect("the stream stays open").unwrap_err())
}

#[tokio::test]
async fn idle_streams_of_a_removed_caller_end() {
    let redis = Redis::start();
    let (_collector, channel, file) = guarded(&redis, &[]).await;
    let open = async |path, token| SilentStream::open(channel.clone(), path, token).await.unwrap();
    let (mut collecting, mut reflecting) = (open(COLLECT, "a").await, open(REFLECTION, "a").await);
    let mut other = open(COLLECT, "b").await;
    file.write(&[B]);
    assert_eq!([end(&mut collecting).await, end(&mut reflecting).await], ["UNAUTHENTICATED", "UNAUTHENTICATED"]);
    // When a permission is removed, the streams that need it end, and no others.
    let mut reflecting = open(REFLECTION, "b").await;
    file.write(&[(B.0, &B.1.replace("collect", "read"))]);
    assert_eq!(end(&mut other).await, "NOT_PERMITTED");
    assert!(tokio::time::timeout(Duration::from_millis(10), reflecting.message()).await.is_err());
}
