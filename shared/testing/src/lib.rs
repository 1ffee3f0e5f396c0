//! Test support: a real Redis for each test, a collector of traces, and services that run as real processes.
//!
//! The helpers panic on errors, because a test that cannot continue must fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod callers;
mod cluster;
mod content;
mod flags;
pub mod http2;
mod metrics;
mod otlp;
mod overload;
mod oversized;
mod patience;
mod process;
mod proxy;
pub mod readme;
mod redis;
pub mod resp;
mod sentinel;
mod server;
mod size;
mod tinyproxy;
pub mod tls;
mod tools;

pub use callers::{CallersFile, bearer, called, reason, whole};
pub use content::call_with;
pub use flags::{duration_flags, flags_amiss};
pub use metrics::{Scrape, http, listeners};
pub use otlp::{Span, SpanKind, StatusCode, TraceCollector, attribute};
pub use overload::{assert_overloaded, refuses_what_is_too_many};
pub use oversized::{Oversized, SilentStream, called_raw, oversized_requests};
pub use patience::note;
pub use process::{Process, cpu_time, free_port};
pub use proxy::slowed;
pub use redis::{Redis, store_config};
pub use server::Server;
pub use size::{sized, soak};
pub use tinyproxy::Tinyproxy;
pub use tools::{buf_curl, complained, grpcurl, grpcurl_tls, printed};

use std::time::Duration;

/// Polls a condition until it holds. There is no timeout, because a busy machine must not fail a test. The test runner
/// ends a test that hangs (slow-timeout in .config/nextest.toml). Its output then names the condition, since a
/// condition that takes longer than `usual` is printed.
pub async fn eventually(what: &str, usual: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let mut wait = patience::Wait::new(what, usual);
    while !holds().await {
        wait.check();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Replaces the first text of each pair by the second, everywhere in `text`. Inserted texts are not searched again, so
/// a replacement may contain the first text of another pair.
pub fn replaced(text: &str, pairs: &[(&str, &str)]) -> String {
    let (mut done, mut rest) = (String::new(), text);
    let next = |rest: &str| pairs.iter().filter_map(|(from, to)| Some((rest.find(from)?, *from, *to))).min();
    while let Some((at, from, to)) = next(rest) {
        done += &rest[..at];
        done += to;
        rest = &rest[at + from.len()..];
    }
    done + rest
}

/// Unix time in seconds.
pub fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}
