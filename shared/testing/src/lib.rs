//! What the tests stand on: a real Redis that belongs to the test, a collector of traces, and services run as real
//! processes.
//!
//! A test that cannot go on should fail loudly, so the helpers panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod callers;
mod cluster;
mod flags;
mod metrics;
mod otlp;
mod overload;
mod process;
mod proxy;
mod redis;
pub mod resp;
mod sentinel;
mod server;
pub mod tls;
mod tools;

pub use callers::{CallersFile, bearer, called, reason, whole};
pub use flags::flags_amiss;
pub use metrics::{Scrape, http, listeners};
pub use otlp::{Span, TraceCollector, attribute};
pub use overload::withstands_ten_times_too_much;
pub use process::{Process, free_port};
pub use proxy::slowed;
pub use redis::{Redis, store_config};
pub use server::Server;
pub use tools::{buf_curl, complained, grpcurl, grpcurl_tls, printed};

use std::time::{Duration, Instant};

/// Polls a condition until it holds; panics with `what` after `bound`.
pub async fn eventually(what: &str, bound: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < bound, "{what}: not within {bound:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}
