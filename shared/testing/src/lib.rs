//! What the tests stand on: a real Redis that belongs to the test, a collector of traces, and services run as real
//! processes.
//!
//! A test that cannot go on should fail loudly, so the helpers panic.
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
mod redis;
pub mod resp;
mod sentinel;
mod server;
mod size;
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
pub use tools::{buf_curl, complained, grpcurl, grpcurl_tls, printed};

use std::time::Duration;

/// Polls a condition until it holds, however long that takes. A busy machine is no failure; a test that hangs is ended by
/// the test runner (slow-timeout in .config/nextest.toml), and its output then names the condition, which is printed when
/// it takes longer than `usual`.
pub async fn eventually(what: &str, usual: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let mut wait = patience::Wait::new(what, usual);
    while !holds().await {
        wait.check();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A text with each pair's first part replaced by its second, wherever it stands in `text` itself: what is put in is not
/// looked at again, so that no place can be taken for the name of another.
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

/// Seconds since 1970.
pub fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}
