//! Ten times as many calls as a service can serve: what happens to the calls and to the service.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use server::proto::collector_service_client::CollectorServiceClient;
use server::proto::credential::Right;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{CollectRequest, Credential, SendTemplateRequest, TemplateValue};
use testing::{Process, Redis, assert_overloaded, eventually, free_port, slowed};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::setup::{
    APP, CONNECTIONS, change_sandbox, channels, dispatcher, fill, form_id, openid, packed, program, sandbox, start,
    submit,
};
use crate::table::{Bar, Table};

/// Number of concurrent calls that a service accepts.
const AT_ONCE: usize = 8;
/// Duration of the overload, and its factor.
const TOO_MUCH: Duration = Duration::from_secs(20);
const TIMES: f64 = 10.0;
/// Duration of a measurement of the usual rate.
const LOOK: Duration = Duration::from_secs(2);
/// Interval between two bursts of calls.
const PACE: Duration = Duration::from_millis(5);
/// Number of users whose form ids one Collect contains.
const USERS: usize = 20;
/// Number of users that messages go to, and of form ids per user: several times the number of messages served.
const RECIPIENTS: usize = 400;
const FORM_IDS: usize = 40;

/// Measures both services, and the effect of the limit on concurrent calls.
pub async fn measure(rounds: usize, table: &mut Table) {
    let redis = Redis::alone();
    // Redis is slowed down, so that a call mostly waits. This machine also makes the calls, and must not be the
    // bottleneck.
    let at = redis.url().strip_prefix("redis://").unwrap().parse().unwrap();
    let away = format!("redis://{}", slowed(at, Duration::from_millis(20)).await);
    let (process, channels) = collector(&away, AT_ONCE).await;
    ten_times_too_much("Collect", &process, collecting(channels), table).await;

    let (_sandbox, base_url) = sandbox().await;
    let redis = stocked(&base_url).await;
    let (process, channels, _apps) = dispatcher(&redis, &base_url, &["--max-requests", &AT_ONCE.to_string()]).await;
    change_sandbox(&base_url, &serde_json::json!({"latency_ms": 50})).await;
    ten_times_too_much("SendTemplate", &process, sending(channels), table).await;

    let mut bounded = Vec::new();
    for _ in 0..rounds {
        bounded.push((median_of_300_callers(16).await, median_of_300_callers(1_000_000).await));
    }
    table.pairs("Collect of 300 callers, 16 at once / all at once", "us", &bounded, Bar::AtMost(0.5));
}

/// Starts a collector, and connects to it.
pub async fn collector(redis_url: &str, at_once: usize) -> (Process, Vec<Channel>) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = program("collector");
    command.args(["--apps", APP, "--listen", &address.to_string(), "--redis-url", redis_url]);
    command.args(["--max-requests", &at_once.to_string()]);
    (start(command), channels(address.port(), CONNECTIONS).await)
}

/// Collect calls with form ids of users that have none yet.
pub fn collecting(channels: Vec<Channel>) -> impl Fn() -> Call {
    let calls = AtomicUsize::new(0);
    move || {
        let number = calls.fetch_add(1, Ordering::Relaxed);
        let mut client = CollectorServiceClient::new(channels[number % channels.len()].clone());
        let users = number * USERS..(number + 1) * USERS;
        let right = || Some(Right::FormId(form_id()));
        let credentials = users.map(|user| Credential { openid: openid(user), right: right(), obtained_at: None });
        let request = CollectRequest { app_id: APP.into(), credentials: credentials.collect() };
        Box::pin(async move { client.collect(request).await.map(drop) })
    }
}

/// Starts a Redis with form ids of the users that messages go to.
pub async fn stocked(base_url: &str) -> Redis {
    let redis = Redis::alone();
    for _ in 0..FORM_IDS {
        let ids = submit(base_url, RECIPIENTS).await;
        fill(&redis, ids.iter().enumerate().map(|(user, id)| packed(user, id))).await;
    }
    redis
}

/// SendTemplate calls to random users, so that no pattern of calls favors some users.
pub fn sending(channels: Vec<Channel>) -> impl Fn() -> Call {
    let calls = AtomicUsize::new(0);
    move || {
        let number = calls.fetch_add(1, Ordering::Relaxed);
        let mut client = DispatcherServiceClient::new(channels[number % channels.len()].clone());
        Box::pin(async move {
            let value = TemplateValue { value: number.to_string(), color: String::new() };
            let message = SendTemplateRequest {
                app_id: APP.into(),
                openid: openid(rand::random_range(0..RECIPIENTS)),
                template_id: "template-of-the-benchmark".into(),
                data: HashMap::from([("keyword1".into(), value)]),
                ..SendTemplateRequest::default()
            };
            client.send_template(message).await.map(drop)
        })
    }
}

/// One call, which gives its result.
pub type Call = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// Durations of the served calls and of the refused calls, ascending.
#[derive(Default)]
struct Measured {
    served: Vec<Duration>,
    refused: Vec<Duration>,
}

impl Measured {
    fn of(calls: Vec<(Duration, Result<(), Status>)>) -> Self {
        let mut measured = Self::default();
        for (took, ended) in calls {
            match ended {
                Ok(()) => measured.served.push(took),
                Err(status) => {
                    assert_overloaded(&status);
                    measured.refused.push(took);
                }
            }
        }
        measured.served.sort_unstable();
        measured.refused.sort_unstable();
        measured
    }
}

/// A percentile of a sorted list, in milliseconds.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    sorted.get(sorted.len() * percent / 100).map_or(0.0, |took| took.as_secs_f64() * 1000.0)
}

async fn timed(call: Call) -> (Duration, Result<(), Status>) {
    let begun = Instant::now();
    let ended = call.await;
    (begun.elapsed(), ended)
}

/// Runs this many callers for `time`. Each calls again as soon as its call has ended.
async fn in_turn(callers: usize, time: Duration, call: &(impl Fn() -> Call + Sync)) -> Measured {
    let begun = Instant::now();
    let caller = async |_| {
        let mut calls = Vec::new();
        while begun.elapsed() < time {
            calls.push(timed(call()).await);
        }
        calls
    };
    Measured::of(join_all((0..callers).map(caller)).await.concat())
}

/// Makes this many calls per second for `time`, whether or not earlier ones have ended.
async fn at_a_rate(rate: f64, time: Duration, call: &impl Fn() -> Call) -> Measured {
    let (begun, mut tasks, mut calls, mut made) = (Instant::now(), JoinSet::new(), Vec::new(), 0);
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while begun.elapsed() < time {
        ticks.tick().await;
        while f64::from(made) < begun.elapsed().as_secs_f64() * rate {
            tasks.spawn(timed(call()));
            made += 1;
        }
        while let Some(ended) = tasks.try_join_next() {
            calls.push(ended.unwrap());
        }
    }
    calls.extend(tasks.join_all().await);
    Measured::of(calls)
}

/// Waits until calls are served. The service waits for Redis for a moment after its start.
pub async fn serves(call: &impl Fn() -> Call) {
    eventually("the service serves calls", Duration::from_secs(20), async || call().await.is_ok()).await;
}

/// Measures a service under ten times its capacity. A call must spend its time waiting rather than computing.
async fn ten_times_too_much(what: &str, process: &Process, call: impl Fn() -> Call + Sync, table: &mut Table) {
    serves(&call).await;
    // Opens connections and fills caches.
    in_turn(AT_ONCE, LOOK / 4, &call).await;
    let usual = in_turn(AT_ONCE, LOOK, &call).await;
    let rate = usual.served.len() as f64 / LOOK.as_secs_f64();
    let before = process.peak_memory();
    let crowded = at_a_rate(TIMES * rate, TOO_MUCH, &call).await;
    let grown = process.peak_memory().saturating_sub(before);

    let over = Instant::now();
    let well = LOOK / 8;
    while (in_turn(AT_ONCE, well, &call).await.served.len() as f64) < 0.5 * rate * well.as_secs_f64() {
        assert!(over.elapsed() < TOO_MUCH, "the service does not recover");
    }
    let recovery = (over.elapsed() - well).as_secs_f64();

    let offered = (crowded.served.len() + crowded.refused.len()) as f64 / TOO_MUCH.as_secs_f64() / rate;
    let row = |figure: &str| format!("{what} at 10 times its capacity: {figure}");
    table.figure(&row("offered"), "times", offered, Bar::AtLeast(8.0));
    let served = crowded.served.len() as f64 / TOO_MUCH.as_secs_f64() / rate;
    table.figure(&row("served"), "of usual", served, Bar::AtLeast(0.5));
    table.figure(&row("p99 of the served"), "ms", percentile(&crowded.served, 99), Bar::AtMost(1000.0));
    table.figure(&row("p90 of the refused"), "ms", percentile(&crowded.refused, 90), Bar::AtMost(500.0));
    table.figure(&row("memory"), "MB more", grown as f64 / f64::from(1 << 20), Bar::AtMost(48.0));
    table.figure(&row("usual again after"), "s", recovery, Bar::AtMost(2.0));
}

/// The median duration in microseconds of the served calls of 300 callers. A caller calls again immediately, or after
/// the retry delay if it was refused.
async fn median_of_300_callers(at_once: usize) -> f64 {
    let redis = Redis::alone();
    let (_collector, channels) = collector(&redis.url(), at_once).await;
    let call = collecting(channels);
    serves(&call).await;
    let begun = Instant::now();
    let caller = async |_| {
        let mut served = Vec::new();
        while begun.elapsed() < LOOK {
            let (took, ended) = timed(call()).await;
            match ended {
                Ok(()) => served.push(took),
                Err(status) => {
                    assert_overloaded(&status);
                    let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
                    tokio::time::sleep(retry.unwrap()).await;
                }
            }
        }
        served
    };
    let mut served = join_all((0..300).map(caller)).await.concat();
    served.sort_unstable();
    percentile(&served, 50) * 1000.0
}
