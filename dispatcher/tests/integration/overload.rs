//! Far more concurrent calls than a dispatcher accepts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use server::proto::Outcome;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use testing::{Process, Redis, free_port, refuses_what_is_too_many};

use crate::fixture::{Fixture, connect, message, request, serving};

/// Maximum number of concurrent calls of the dispatcher.
const AT_ONCE: usize = 8;
/// Number of users. Each has more form ids than the accepted calls will use.
const USERS: usize = 400;
const FORM_IDS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overloaded_dispatcher_refuses_the_excess_and_sends_the_rest() {
    let fixture = Fixture::on(Redis::alone()).await.patiently();
    for _ in 0..FORM_IDS {
        fixture.submit_crowd(0..USERS).await;
    }
    let port = free_port();
    // Calls wait for a Redis that hangs. The Redis timeout is so long that they do not give up.
    let flags = ["--max-requests", &AT_ONCE.to_string(), "--redis-timeout", "10m"];
    let process = Process::start(&mut fixture.command(port, &flags));
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(DispatcherServiceClient::new(connect(port).await));
    }
    serving(connect(port).await, true).await;
    let calls = AtomicUsize::new(0);
    let clients = Arc::new(clients);
    let call = move || {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let mut client = clients[call % clients.len()].clone();
        async move {
            let (user, text) = (format!("oUser{}", call % USERS), call.to_string());
            let message = if call.is_multiple_of(2) { message(&user, &text) } else { request(&user, &text, &text) };
            let sent = client.send_template(message).await?.into_inner();
            assert_eq!(sent.outcome(), Outcome::Delivered);
            Ok(())
        }
    };
    let server = &fixture.redis.servers()[0];
    let served = refuses_what_is_too_many(&process, AT_ONCE, call, || server.hang(), || server.go_on()).await;
    assert_eq!(fixture.delivered(), served as u64);
    fixture.assert_settled(0).await;
}
