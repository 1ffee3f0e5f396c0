//! A broadcast to 200,000 users, compared with as many bare HTTP posts: its rate, its memory, its longest Redis
//! command, and its effect on the latency of SendTemplate.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deadpool_redis::redis;
use dispatcher::apps_file::Apps;
use dispatcher::wechat::client::Client;
use dispatcher::wechat::message::{Delivery, Message, Value};
use dispatcher::wechat::reply::Reply;
use domain::config_errors::ConfigErrors;
use domain::{AppId, CredentialId, OpenId, TemplateId};
use server::proto::broadcast_request::Audience;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{
    AllReachable, BroadcastInfo, BroadcastRequest, BroadcastState, CancelBroadcastRequest, SendTemplateRequest,
    TemplateValue, WatchBroadcastRequest,
};
use testing::{Process, Redis};
use tonic::transport::Channel;

use crate::setup::{self, APP, SECRET, dispatcher, fill, openid, packed, sandbox, submit};
use crate::table::{Bar, Table, median};

/// Number of users of the broadcast, and of the smaller broadcast that its memory is compared with.
const USERS: (usize, usize) = (200_000, 20_000);
/// Number of messages in flight.
const IN_FLIGHT: usize = 64;
/// Single messages sent during the broadcast: their rate per second, and their number.
const SENDS: (f64, usize) = (200.0, 2000);
/// Redis commands that take longer are logged, in microseconds.
const SLOW: u64 = 1000;

/// Measures all figures. The two measurements of a pair alternate.
pub async fn measure(rounds: usize, table: &mut Table) {
    let (mut rates, mut memory, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let bare = bare_posts().await;
        let (small, large) = (broadcast(USERS.1).await, broadcast(USERS.0).await);
        rates.push((large.rate, bare));
        memory.push(large.peak_mb - small.peak_mb);
        slowest.push(large.slowest_ms);
    }
    let pace = median(rates.iter().map(|(rate, _)| *rate)) / 2.0;
    let mut tails = Vec::new();
    for _ in 0..rounds {
        let alone = beside(None).await;
        let with = beside(Some(pace as u32)).await;
        tails.push((with.as_micros() as f64, alone.as_micros() as f64));
    }
    table.pairs("Broadcast to 200,000 / as many bare HTTP posts", "/s", &rates, Bar::AtLeast(0.6));
    table.pairs("SendTemplate p99 beside a broadcast at half pace / alone", "us", &tails, Bar::AtMost(3.0));
    table.figure("Peak memory from 20,000 to 200,000 users", "MB more", median(memory.into_iter()), Bar::AtMost(10.0));
    table.figure("Longest single command in Redis", "ms", median(slowest.into_iter()), Bar::AtMost(10.0));
}

/// The figures of a broadcast.
struct Figures {
    rate: f64,
    peak_mb: f64,
    slowest_ms: f64,
}

/// Posts the same messages without formid, from as many tasks as the broadcast has messages in flight. Returns messages
/// per second.
async fn bare_posts() -> f64 {
    let (_sandbox, base_url) = sandbox().await;
    let ids = Arc::new(submit(&base_url, USERS.0).await);
    let apps = format!("[apps.{APP}]\nsecret = \"{SECRET}\"\nbase_url = \"{base_url}\"\n");
    let apps = Apps::parse(&apps, &mut ConfigErrors::default()).expect("the apps file is valid");
    let client = Client::new(Arc::clone(apps.get(&AppId::parse(APP).unwrap()).unwrap()), None).unwrap();
    let token: Arc<str> = client.fetch_token(false).await.expect("a token").token.into();
    let message = Arc::new(message());
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let posts = (0..IN_FLIGHT).map(|_| {
        let (client, token, message) = (client.clone(), Arc::clone(&token), Arc::clone(&message));
        let (ids, next) = (Arc::clone(&ids), Arc::clone(&next));
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(id) = ids.get(number) else { return };
                let (openid, id) = (OpenId::parse(openid(number)).unwrap(), CredentialId::parse(id.as_str()).unwrap());
                let reply = client.send(message.delivery, &token, message.body(&openid, &id)).await;
                assert!(matches!(reply, Reply::Answered { errcode: 0, .. }), "{reply:?}");
            }
        })
    });
    for post in posts.collect::<Vec<_>>() {
        post.await.unwrap();
    }
    USERS.0 as f64 / begun.elapsed().as_secs_f64()
}

/// A Redis and a sandbox with users, and a dispatcher that uses them.
struct Stage {
    dispatcher: Process,
    channels: Vec<Channel>,
    redis: Redis,
    _sandbox: Process,
    _apps: tempfile::NamedTempFile,
}

/// Each user has one form id. The first `singles` users, who also get single messages, have two more.
async fn stage(users: usize, singles: usize) -> Stage {
    let (sandbox, base_url) = sandbox().await;
    let redis = setup::redis();
    for count in [users, singles, singles] {
        let ids = submit(&base_url, count).await;
        fill(&redis, ids.iter().enumerate().map(|(user, id)| packed(user, id))).await;
    }
    let in_flight = IN_FLIGHT.to_string();
    let (dispatcher, channels, apps) = dispatcher(&redis, &base_url, &["--broadcast-in-flight", &in_flight]).await;
    Stage { dispatcher, channels, redis, _sandbox: sandbox, _apps: apps }
}

async fn broadcast(users: usize) -> Figures {
    let stage = stage(users, 0).await;
    let mut redis = connect(&stage.redis).await;
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("slowlog-log-slower-than").arg(SLOW).query_async(&mut redis).await.unwrap();
    let _: () = redis::cmd("SLOWLOG").arg("RESET").query_async(&mut redis).await.unwrap();
    let mut client = DispatcherServiceClient::new(stage.channels[0].clone());
    let started = start(&mut client, 0).await;
    let done = until_done(&mut client, &started.broadcast_id).await;
    // The times are those of the broadcast's record, because a watcher sees the end up to a second later.
    let rate = users as f64 / (seconds(done.end_time) - seconds(done.create_time));
    assert_eq!(done.tally.unwrap().delivered, users as u64);
    let log: Vec<Vec<redis::Value>> = redis::cmd("SLOWLOG").arg("GET").arg(-1).query_async(&mut redis).await.unwrap();
    // An entry is: id, time, microseconds, command and arguments.
    let slowest =
        log.iter().map(|entry| redis::from_redis_value::<u64>(entry[2].clone()).unwrap()).max().unwrap_or(SLOW);
    Figures { rate, peak_mb: peak_mb(stage.dispatcher.id()), slowest_ms: slowest as f64 / 1000.0 }
}

/// Messages per second of a broadcast at a pace. The initial burst, the messages of a fifth of a second, is not
/// counted.
pub async fn paced(users: usize, pace: u32) -> f64 {
    let stage = stage(users, 0).await;
    let mut client = DispatcherServiceClient::new(stage.channels[0].clone());
    let started = start(&mut client, pace).await;
    let done = until_done(&mut client, &started.broadcast_id).await;
    (users as f64 - f64::from(pace) / 5.0) / (seconds(done.end_time) - seconds(done.create_time))
}

/// The p99 latency of single messages sent at a steady rate, alone or during a broadcast at a pace.
async fn beside(pace: Option<u32>) -> Duration {
    let (a_second, singles) = SENDS;
    let crowd = pace.map_or(0, |pace| (f64::from(pace) * singles as f64 / a_second * 2.0) as usize);
    let stage = stage(singles.max(crowd), singles).await;
    let mut client = DispatcherServiceClient::new(stage.channels[0].clone());
    let started = match pace {
        Some(pace) => Some(start(&mut client, pace).await.broadcast_id),
        None => None,
    };
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / a_second));
    let mut sends = Vec::new();
    for user in 0..singles {
        ticks.tick().await;
        let mut client = DispatcherServiceClient::new(stage.channels[user % stage.channels.len()].clone());
        sends.push(tokio::spawn(async move {
            let begun = Instant::now();
            let answer = client.send_template(single(user)).await;
            // Allowed only at first: the service waits for Redis for a moment after its start.
            assert!(answer.is_ok() || user < singles / 10, "{answer:?}");
            begun.elapsed()
        }));
    }
    let mut latencies = Vec::new();
    for send in sends {
        latencies.push(send.await.unwrap());
    }
    if let Some(broadcast_id) = started {
        let request = CancelBroadcastRequest { app_id: APP.into(), broadcast_id };
        client.cancel_broadcast(request).await.expect("the broadcast is still running");
    }
    let mut latencies = latencies.split_off(singles / 10);
    latencies.sort_unstable();
    latencies[latencies.len() * 99 / 100]
}

fn single(user: usize) -> SendTemplateRequest {
    let Message { template_id, page, .. } = message();
    let template_id = template_id.as_str().to_owned();
    SendTemplateRequest { app_id: APP.into(), openid: openid(user), template_id, page, ..Default::default() }
}

async fn start(client: &mut DispatcherServiceClient<Channel>, pace: u32) -> BroadcastInfo {
    let Message { template_id, page, data, .. } = message();
    let value = |value: Value| TemplateValue { value: value.value, color: value.color };
    let request = BroadcastRequest {
        app_id: APP.into(),
        template_id: template_id.as_str().to_owned(),
        page,
        data: data.into_iter().map(|(key, text)| (key, value(text))).collect::<HashMap<_, _>>(),
        audience: Some(Audience::AllReachable(AllReachable {})),
        messages_per_second: pace,
        ..Default::default()
    };
    loop {
        match client.broadcast(request.clone()).await {
            Ok(answer) => return answer.into_inner().broadcast.unwrap(),
            // The service waits for Redis for a moment after its start.
            Err(status) if status.code() == tonic::Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(status) => panic!("{status:?}"),
        }
    }
}

async fn until_done(client: &mut DispatcherServiceClient<Channel>, id: &str) -> BroadcastInfo {
    let request = WatchBroadcastRequest { app_id: APP.into(), broadcast_id: id.into(), interval: None };
    let mut updates = client.watch_broadcast(request).await.unwrap().into_inner();
    loop {
        let info =
            updates.message().await.unwrap().expect("the stream ends only after the broadcast").broadcast.unwrap();
        match info.state() {
            BroadcastState::Done => return info,
            BroadcastState::Running => {}
            state => panic!("{state:?}: {info:?}"),
        }
    }
}

fn seconds(time: Option<prost_types::Timestamp>) -> f64 {
    let time = time.unwrap();
    time.seconds as f64 + f64::from(time.nanos) / 1e9
}

fn message() -> Message {
    let value = |text: &str| Value { value: text.into(), color: String::new() };
    let template = TemplateId::parse("template-of-the-benchmark").unwrap();
    Message {
        page: "pages/sale?id=1".into(),
        data: [("keyword1".into(), value("the spring sale")), ("keyword2".into(), value("2026-11-22 12:00"))].into(),
        ..Message::empty(Delivery::FormId, template)
    }
}

async fn connect(redis: &Redis) -> redis::aio::MultiplexedConnection {
    redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Peak memory of a process in MB, as the kernel counts it.
fn peak_mb(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
