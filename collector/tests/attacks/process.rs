//! A collector as a process of its own, whose memory can be measured and which shares no threads with its callers.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use testing::{Process, Redis, eventually, free_port, slowed};

use crate::support::*;

pub struct CollectorProcess {
    pub process: Process,
    pub address: SocketAddr,
    /// Where probes are answered.
    pub probes: SocketAddr,
}

impl CollectorProcess {
    /// Starts one on this Redis, with further flags; answers once it serves.
    pub async fn start(redis_url: &str, flags: &[&str]) -> Self {
        let [address, probes] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
        command.args(["--apps", APP, "--buckets", "4", "--log", "warn", "--redis-url", redis_url]);
        command.args(["--listen", &address.to_string(), "--probe-listen", &probes.to_string()]);
        // However busy this machine is.
        command.args(["--redis-timeout", "60s"]);
        let process = Process::start(command.args(flags));
        // Where it knows its callers, health needs no token.
        eventually("it serves", SOON, async || is_serving(address).await).await;
        Self { process, address, probes }
    }
}

/// A Redis, and where it answers so slowly that a call waits most of its time.
pub async fn slow_redis() -> (Redis, String) {
    let redis = Redis::alone();
    let at = redis.url().strip_prefix("redis://").unwrap().parse().unwrap();
    let slow = slowed(at, Duration::from_millis(20)).await;
    (redis, format!("redis://{slow}"))
}
