//! Services with little load: how soon they answer, also while the trace collector never answers, and how well a
//! broadcast keeps a pace that is far below its maximum.

use std::time::Instant;

use testing::Redis;
use tokio::net::TcpListener;

use crate::broadcast;
use crate::overload::{Call, collecting, collector, sending, serves, stocked};
use crate::setup::{dispatcher, sandbox};
use crate::table::{Bar, Table};

/// Number of calls, made one after another.
const CALLS: usize = 100;
/// Messages per second of the broadcast, and its number of users.
const PACE: u32 = 100;
const USERS: usize = 1000;

/// Measures all figures.
pub async fn measure(table: &mut Table) {
    let redis = Redis::alone();
    let (_collector, channels) = collector(&redis.url(), CALLS).await;
    let took = one_by_one(collecting(channels)).await;
    table.figure("Collect at rest: best", "ms", took[0], Bar::AtMost(10.0));

    // A trace collector that accepts connections and never answers.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", deaf.local_addr().unwrap());
    let (_sandbox, base_url) = sandbox().await;
    let redis = stocked(&base_url).await;
    let flags = ["--otlp-endpoint", &endpoint, "--trace-ratio", "1"];
    let (_dispatcher, channels, _apps) = dispatcher(&redis, &base_url, &flags).await;
    let took = one_by_one(sending(channels)).await;
    table.figure("SendTemplate, trace collector never answers: slowest", "ms", took[CALLS - 1], Bar::AtMost(1000.0));

    let rate = broadcast::paced(USERS, PACE).await;
    table.figure("Broadcast at 100 a second", "/s", rate, Bar::AtLeast(90.0));
}

/// The durations of calls in milliseconds, ascending.
async fn one_by_one(call: impl Fn() -> Call) -> Vec<f64> {
    serves(&call).await;
    let mut took = Vec::new();
    for _ in 0..CALLS {
        let begun = Instant::now();
        call().await.unwrap();
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    took
}
