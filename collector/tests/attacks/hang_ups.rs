//! Callers that cancel their calls while others use the same connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use server::proto::GetInventoryRequest;
use testing::http2::{Peer, framed};
use testing::{Redis, Scrape};
use tokio::task::JoinSet;

use crate::fixture::*;
use crate::process::{CollectorProcess, slow_redis};

fn inventory() -> GetInventoryRequest {
    GetInventoryRequest { app_id: APP.into(), openid: "oUser".into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canceled_calls_do_not_end_other_calls_on_the_connection() {
    const CALLERS: u64 = 400;
    const ROUNDS: u64 = 60;
    let (_redis, redis_url) = slow_redis().await;
    let collector = CollectorProcess::start(&redis_url, &[]).await;
    let client = Client::new(connect(collector.address).await);
    let enough = Arc::new(AtomicBool::new(false));
    let (mut patient, stop) = (client.clone(), Arc::clone(&enough));
    let patient = tokio::spawn(async move {
        let mut answered = 0;
        while !stop.load(Ordering::Relaxed) {
            patient.get_inventory(inventory()).await.unwrap();
            answered += 1;
        }
        answered
    });
    let mut tasks = JoinSet::new();
    for caller in 0..CALLERS {
        let client = client.clone();
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                let patience = Duration::from_millis(1 + (caller + round) % 5);
                let call = async { client.clone().get_inventory(inventory()).await };
                // A call that is answered before the timeout must succeed.
                if let Ok(answer) = tokio::time::timeout(patience, call).await {
                    answer.unwrap();
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    enough.store(true, Ordering::Relaxed);
    assert!(patient.await.unwrap() > 0);
}

/// The attack known as "rapid reset": calls that are reset as soon as they are opened, as fast as the collector reads
/// them. The number of concurrent calls stays within its limit, other callers are served, and memory does not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_do_not_exceed_limits_or_block_others() {
    const RESETS: usize = 100_000;
    const AT_ONCE: usize = 500;
    let redis = Redis::alone();
    let (_, [_, metrics]) = testing::listeners().await;
    let listen = metrics.to_string();
    let flags = ["--max-requests", "50", "--metrics-listen", &listen];
    let collector = CollectorProcess::start(&redis.url(), &flags).await;
    let mut client = Client::new(connect(collector.address).await);
    collect(&mut client, vec![form("oUser", "f")]).await.unwrap();
    let before = collector.process.peak_memory();

    let attackers = (0..4).map(|_| {
        tokio::spawn(async move {
            let mut peer = Peer::connect(collector.address, 65_535).await;
            let message = framed(&inventory());
            for _ in 0..RESETS / 4 / AT_ONCE {
                for _ in 0..AT_ONCE {
                    let stream = peer.open("/formid.v1.CollectorService/GetInventory", &[]);
                    peer.data(stream, &message, false);
                    peer.reset(stream);
                }
                // Closing the connection is also a valid defense of the collector.
                if peer.flush().await.is_err() {
                    return;
                }
            }
        })
    });
    let attackers: Vec<_> = attackers.collect();
    let mut served = 0;
    while !attackers.iter().all(tokio::task::JoinHandle::is_finished) {
        match client.get_inventory(inventory()).await {
            Ok(_) => served += 1,
            Err(status) => assert_eq!(reason(&status), "OVERLOADED"),
        }
        let in_flight = Scrape::of(metrics).await.value("formid_requests_in_flight", &[]);
        assert!(in_flight <= 50 + 4 * AT_ONCE as u64, "{in_flight} calls in flight");
    }
    client.get_inventory(inventory()).await.unwrap();
    let grown = collector.process.peak_memory() - before;
    assert!(served > 0 && grown < 64 << 20, "{served} served, {} kB more", grown >> 10);
}
