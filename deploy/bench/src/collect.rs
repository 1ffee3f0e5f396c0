//! CollectStream, compared with plain ZADDs by redis-benchmark and with the same script called directly.

use std::collections::VecDeque;
use std::process::Command;
use std::time::{Duration, Instant};

use deadpool_redis::redis::{self, Script};
use domain::{AppId, OpenId};
use server::proto::collector_service_client::CollectorServiceClient;
use server::proto::{CollectStreamRequest, Credential, credential::Right};
use store::credentials::collect_script;
use store::keys::{Bucket, BucketKeys};
use testing::{Redis, free_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::setup::{APP, channels, form_id, openid, packed, program, start};
use crate::table::{Bar, Table};

/// Number of users. Form ids belong to random users.
const USERS: usize = 200_000;
/// Number of form ids that a measurement stores.
const FORM_IDS: usize = 1_000_000;
/// Number of streams, of batches in flight on each, and of form ids in a batch.
const STREAMS: usize = 8;
const WINDOW: usize = 8;
const BATCH: usize = 500;

/// Measures all three alternately.
pub async fn measure(rounds: usize, table: &mut Table) {
    let (mut to_zadd, mut to_script) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let zadd = zadd();
        let script = raw_script().await;
        let formid = collect_stream().await;
        to_zadd.push((formid, zadd));
        to_script.push((formid, script));
    }
    table.pairs("CollectStream / redis-benchmark -P 16 ZADD", "/s", &to_zadd, Bar::AtLeast(0.3));
    table.pairs("CollectStream / the collect script called directly", "/s", &to_script, Bar::AtLeast(0.7));
}

fn random_user() -> usize {
    rand::random_range(0..USERS)
}

/// Plain ZADDs to the sets of random users. Returns form ids per second.
fn zadd() -> f64 {
    let redis = Redis::alone();
    let port = redis.url().rsplit(':').next().unwrap().to_owned();
    let output = Command::new("redis-benchmark")
        .args(["-p", &port, "-P", "16", "-r", &USERS.to_string(), "-n", &FORM_IDS.to_string(), "--csv"])
        .args(["ZADD", "user:__rand_int__", "1", "f:__rand_int__"])
        .output()
        .expect("redis-benchmark is installed with redis-server");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures = text.lines().last().unwrap_or_default();
    figures.split(',').nth(1).and_then(|rate| rate.trim_matches('"').parse().ok()).expect("a rate from redis-benchmark")
}

/// Calls the collect script with prepared commands. As many form ids are in flight, and in one script call, as with the
/// streams below.
async fn raw_script() -> f64 {
    let redis = Redis::alone();
    let app = AppId::parse(APP).unwrap();
    let mut buckets = vec![Vec::new(); 512];
    for _ in 0..FORM_IDS {
        let credential = packed(random_user(), &form_id());
        buckets[usize::from(Bucket::of(&credential.openid, 512).0)].push(credential);
    }
    let each = STREAMS * WINDOW * BATCH / 512;
    let sha = Script::new(collect_script()).get_hash().to_owned();
    let mut commands = Vec::new();
    for turn in 0..buckets.iter().map(Vec::len).max().unwrap().div_ceil(each) {
        for (bucket, credentials) in buckets.iter().enumerate() {
            let Some(part) = credentials.chunks(each).nth(turn) else { continue };
            let keys = BucketKeys::new(&app, Bucket(bucket as u16));
            let mut command = redis::cmd("EVALSHA");
            command.arg(&sha).arg(2).arg(keys.users()).arg(keys.ledger()).arg(120).arg(86400);
            for credential in part {
                command.arg(credential.openid.as_str()).arg(credential.record());
            }
            commands.push(command.get_packed_command());
        }
    }
    let address = redis.url().trim_start_matches("redis://").to_owned();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(collect_script());
    stream.write_all(&load.get_packed_command()).await.unwrap();
    let mut buffer = vec![0; 1 << 16];
    let _ = stream.read(&mut buffer).await.unwrap();

    let begun = Instant::now();
    let (mut reader, mut writer) = stream.into_split();
    let total = commands.len();
    // As many script calls are in flight as there are buckets. The reply to a script whose form ids are all new is an
    // empty list, four bytes.
    let window = std::sync::Arc::new(tokio::sync::Semaphore::new(512));
    let permits = std::sync::Arc::clone(&window);
    let sending = tokio::spawn(async move {
        for commands in commands.chunks(32) {
            permits.acquire_many(commands.len() as u32).await.unwrap().forget();
            writer.write_all(&commands.concat()).await.unwrap();
        }
        writer
    });
    let mut answered = 0;
    while answered < total {
        let read = reader.read(&mut buffer).await.unwrap();
        assert!(
            read > 0 && !buffer[..read].contains(&b'-'),
            "the script failed: {}",
            String::from_utf8_lossy(&buffer[..read])
        );
        let replies = buffer[..read].iter().filter(|byte| **byte == b'*').count();
        window.add_permits(replies);
        answered += replies;
    }
    let rate = FORM_IDS as f64 / begun.elapsed().as_secs_f64();
    drop(sending.await);
    rate
}

/// Measures the collector as a process, which gets its input over streams.
async fn collect_stream() -> f64 {
    let redis = Redis::alone();
    let port = free_port();
    let mut command = program("collector");
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--apps", APP, "--redis-url", &redis.url()]);
    let _collector = start(command);
    let channels = channels(port, STREAMS).await;
    testing::eventually("the collector is ready", Duration::from_secs(20), async || ready(channels[0].clone()).await)
        .await;
    let mut shares: Vec<Vec<CollectStreamRequest>> =
        (0..STREAMS).map(|_| (0..FORM_IDS / STREAMS / BATCH).map(|number| batch(number as u64)).collect()).collect();
    let begun = Instant::now();
    let streams: Vec<_> =
        channels.into_iter().zip(shares.drain(..)).map(|(channel, share)| tokio::spawn(feed(channel, share))).collect();
    let mut stored = 0;
    for stream in streams {
        stored += stream.await.unwrap();
    }
    let rate = stored as f64 / begun.elapsed().as_secs_f64();
    assert_eq!(stored, FORM_IDS / STREAMS / BATCH * BATCH * STREAMS, "every form id was new");
    rate
}

fn batch(sequence: u64) -> CollectStreamRequest {
    let credentials = (0..BATCH)
        .map(|_| Credential { openid: openid(random_user()), right: Some(Right::FormId(form_id())), obtained_at: None })
        .collect();
    CollectStreamRequest { sequence, app_id: APP.into(), credentials }
}

async fn ready(channel: Channel) -> bool {
    let user = OpenId::parse("oNobody").unwrap();
    let request = server::proto::GetInventoryRequest { app_id: APP.into(), openid: user.as_str().into() };
    CollectorServiceClient::new(channel).get_inventory(request).await.is_ok()
}

/// Sends the batches of a stream, with up to `WINDOW` of them unacknowledged. Returns the number of form ids stored.
async fn feed(channel: Channel, share: Vec<CollectStreamRequest>) -> usize {
    let mut share = VecDeque::from(share);
    let (sender, receiver) = tokio::sync::mpsc::channel(WINDOW);
    for request in share.drain(..WINDOW.min(share.len())) {
        sender.send(request).await.unwrap();
    }
    let mut client = CollectorServiceClient::new(channel);
    let mut answers = client.collect_stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut sender = Some(sender);
    let mut stored = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        stored += answer.stored as usize;
        match (share.pop_front(), &sender) {
            (Some(request), Some(open)) => open.send(request).await.unwrap(),
            _ => sender = None,
        }
    }
    stored
}
