//! Runs a collector as a separate process, so that its memory can be measured and it shares no threads with its
//! callers.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use testing::{Process, Redis, eventually, free_port, slowed};

use crate::fixture::*;

pub struct CollectorProcess {
    pub process: Process,
    pub address: SocketAddr,
    /// The address for probes.
    pub probes: SocketAddr,
}

impl CollectorProcess {
    /// Starts a collector with this Redis and further flags, and waits until it serves.
    pub async fn start(redis_url: &str, flags: &[&str]) -> Self {
        let [address, probes] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
        command.args(["--apps", APP, "--buckets", "4", "--log", "warn", "--redis-url", redis_url]);
        command.args(["--listen", &address.to_string(), "--probe-listen", &probes.to_string()]);
        // Long enough for a busy machine.
        command.args(["--redis-timeout", "60s"]);
        let process = Process::start(command.args(flags));
        // Health needs no token, even with a callers file.
        eventually("it serves", SOON, async || is_serving(address).await).await;
        Self { process, address, probes }
    }
}

/// A Redis, and the URL of a proxy that delays its answers, so that calls spend most of their time waiting.
pub async fn slow_redis() -> (Redis, String) {
    let redis = Redis::alone();
    let at = redis.url().strip_prefix("redis://").unwrap().parse().unwrap();
    let slow = slowed(at, Duration::from_millis(20)).await;
    (redis, format!("redis://{slow}"))
}
