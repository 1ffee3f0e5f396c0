//! Ten times what a dispatcher can do.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shared::proto::Outcome;
use shared::proto::dispatcher_service_client::DispatcherServiceClient;
use testing::{Process, free_port, withstands_ten_times_too_much};

use crate::rig::{Rig, connect, message, request, serving};

/// Sends at once.
const AT_ONCE: usize = 8;
/// Users, each with enough for one in so many of the calls that are served.
const USERS: usize = 200;
const RIGHTS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatcher_withstands_ten_times_what_it_can_do_and_sends_just_what_it_took_in() {
    let rig = Rig::patient().await;
    for user in 0..USERS {
        rig.submit(&format!("oUser{user}"), RIGHTS).await;
    }
    let port = free_port();
    let mut flags = rig.flags(&["--max-requests", &AT_ONCE.to_string()]);
    flags[1] = format!("127.0.0.1:{port}");
    let process = Process::start(Command::new(env!("CARGO_BIN_EXE_dispatcher")).args(flags));
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(DispatcherServiceClient::new(connect(port).await));
    }
    serving(connect(port).await, true).await;
    // So that what it can do is known.
    rig.sandbox.set_settings(sandbox::Settings { latency_ms: 50, ..rig.sandbox.settings() }).unwrap();
    let calls = AtomicUsize::new(0);
    let clients = Arc::new(clients);
    let served = withstands_ten_times_too_much(&process, AT_ONCE, move || {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let mut client = clients[call % clients.len()].clone();
        async move {
            // Drawn, so that no rhythm gives some users more than their share.
            let (user, text) = (format!("oUser{}", rand::random_range(0..USERS)), call.to_string());
            let message = if call.is_multiple_of(2) { message(&user, &text) } else { request(&user, &text, &text) };
            let sent = client.send_template(message).await?.into_inner();
            assert_eq!(sent.outcome(), Outcome::Delivered);
            Ok(())
        }
    });
    let served = served.await;
    assert_eq!(rig.delivered(), served as u64);
    rig.assert_settled(0).await;
}
