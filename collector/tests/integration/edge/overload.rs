//! Far more concurrent calls than a collector accepts.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use testing::{Process, Redis, eventually, free_port, refuses_what_is_too_many};

use super::*;

/// Maximum number of concurrent calls, and number of users in each call.
const AT_ONCE: usize = 8;
const USERS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overloaded_collector_refuses_calls_and_loses_none_it_accepted() {
    let redis = Redis::alone();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
    command.args(["--apps", APP, "--listen", &address.to_string(), "--redis-url", &redis.url(), "--log", "warn"]);
    // Calls wait for a Redis that hangs, and must not time out meanwhile.
    command.args(["--buckets", "4", "--max-requests", &AT_ONCE.to_string(), "--redis-timeout", "10m"]);
    let process = Process::start(&mut command);
    eventually("it serves", SOON, async || is_serving(address).await).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(Client::new(connect(address).await));
    }
    let calls = AtomicUsize::new(0);
    let clients = Arc::new(clients);
    let call = move || {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let mut client = clients[call % clients.len()].clone();
        async move {
            let users = (0..USERS).map(|user| form(&format!("o{call}x{user}"), "f")).collect();
            collect(&mut client, users).await.map(drop)
        }
    };
    let server = &redis.servers()[0];
    let served = refuses_what_is_too_many(&process, AT_ONCE, call, || server.hang(), || server.go_on()).await;
    let ledger = redis.store().await.ledger(&app()).await.unwrap();
    assert_eq!(ledger.collected, (served * USERS) as u64);
}
