//! Ten times what a collector can do.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use testing::{Process, Redis, eventually, free_port, slowed, withstands_ten_times_too_much};

use super::*;

/// Calls at once, and users in each.
const AT_ONCE: usize = 8;
const USERS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_withstands_ten_times_what_it_can_do_and_loses_nothing_of_what_it_took_in() {
    let redis = Redis::alone();
    // So far away that a call waits most of its time.
    let at = redis.url().strip_prefix("redis://").unwrap().parse().unwrap();
    let redis_url = format!("redis://{}", slowed(at, Duration::from_millis(20)).await);
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
    command.args(["--apps", APP, "--listen", &address.to_string(), "--redis-url", &redis_url, "--log", "warn"]);
    let process = Process::start(command.args(["--buckets", "4", "--max-requests", &AT_ONCE.to_string()]));
    eventually("it serves", SOON, async || is_serving(address).await).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(Client::new(connect(address).await));
    }
    let calls = AtomicUsize::new(0);
    let clients = Arc::new(clients);
    let served = withstands_ten_times_too_much(&process, AT_ONCE, move || {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let mut client = clients[call % clients.len()].clone();
        async move {
            let users = (0..USERS).map(|user| form(&format!("o{call}x{user}"), "f")).collect();
            collect(&mut client, users).await.map(drop)
        }
    });
    let served = served.await;
    let ledger = redis.store().await.ledger(&app()).await.unwrap();
    assert_eq!(ledger.collected, (served * USERS) as u64);
}
