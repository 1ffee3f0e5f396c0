//! Dispatchers that die and stop in the middle of sends, as the clients see it.

use std::process::Command;
use std::time::Duration;

use crate::rig::{Client, Ended, Rig, all_delivered};

const MESSAGES: usize = 200;

/// A dispatcher that dies leaves messages behind, which another may take over after the lease.
const SHORT_LEASE: [&str; 6] = ["--lease", "2s", "--reap-interval", "200ms", "--drain-wait", "300ms"];

/// One dispatcher after the other is killed while messages are under way; only the first comes back.
async fn survives_kills(client: impl FnOnce(&Rig) -> Option<Command>) {
    let mut rig = Rig::start(&SHORT_LEASE).await;
    let Some(mut command) = client(&rig) else { return };
    command.args(["--at-once", "8"]);
    // Slow enough that there is a middle: some 60 a second.
    let slow = sandbox::Settings { latency_ms: 100, jitter_ms: 50, ..rig.sandbox.settings() };
    rig.sandbox.set_settings(slow).unwrap();
    let client = Client::start(command, rig.orders(MESSAGES), Duration::ZERO);
    rig.delivered(40).await;
    rig.kill_dispatcher(0);
    rig.start_dispatcher(0).await;
    rig.delivered(120).await;
    rig.kill_dispatcher(1);
    let Ended { well, lines, told, .. } = client.end().await;
    assert_eq!(lines, all_delivered(MESSAGES), "{told}");
    assert!(well);
    let books = rig.books();
    assert_eq!((books.delivered, books.messages, books.delivered_twice), (200, 200, 0), "{books:?}");
    // A message that was in hand at a kill is known to the other dispatcher as under way.
    assert!(told.contains("REQUEST_UNDER_WAY"), "no kill hit a message: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_client_loses_no_message_and_sends_none_twice_when_dispatchers_are_killed() {
    survives_kills(|rig| Some(rig.rust())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_loses_no_message_and_sends_none_twice_when_dispatchers_are_killed() {
    survives_kills(Rig::python).await;
}

/// 50 messages a second, and both dispatchers are restarted meanwhile, one after the other.
async fn survives_restarts(client: impl FnOnce(&Rig) -> Option<Command>) -> String {
    let mut rig = Rig::start(&["--drain-wait", "500ms"]).await;
    let Some(command) = client(&rig) else { return String::new() };
    // More than it will come to: the load goes on for as long as the restarts take.
    let client = Client::start(command, rig.orders(3000), Duration::from_millis(20));
    for which in [0, 1] {
        rig.delivered(rig.books().delivered + 25).await;
        rig.stop_dispatcher(which).await;
        rig.start_dispatcher(which).await;
    }
    rig.delivered(rig.books().delivered + 25).await;
    client.enough();
    let Ended { well, given, lines, told } = client.end().await;
    assert_eq!(lines, all_delivered(given), "{told}");
    assert!(well);
    let books = rig.books();
    assert_eq!((books.delivered, books.delivered_twice), (given as u64, 0), "{books:?}");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_client_gets_through_a_restart_of_all_dispatchers() {
    survives_restarts(|rig| Some(rig.rust())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_service_config_alone_no_call_fails_in_a_restart_of_all_dispatchers() {
    let told = survives_restarts(|rig| {
        let mut command = rig.python()?;
        command.arg("--policy-only");
        Some(command)
    });
    // It would tell of each call that it repeats by itself.
    assert_eq!(told.await, "");
}
