//! Replicas that are killed or stopped in the middle of calls, as the clients see it.

use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use testing::eventually;

use crate::fixture::{Client, Ended, Fixture, Service, all_delivered};
use crate::load::{Done, Load};

const MESSAGES: usize = 200;

/// Number of users of the load, which sends at most 100 messages per second, while there are users left.
const USERS: usize = 3000;

const SOON: Duration = Duration::from_secs(30);

/// A killed dispatcher leaves messages in flight, which another may take over after the lease.
const SHORT_LEASE: [&str; 6] = ["--lease", "2s", "--reap-interval", "200ms", "--drain-wait", "300ms"];

/// Kills one dispatcher after the other while messages are in flight. Only the first is started again.
async fn survives_kills(client: impl FnOnce(&Fixture) -> Option<Command>) {
    let mut fixture = Fixture::start(&SHORT_LEASE).await;
    let Some(mut command) = client(&fixture) else { return };
    command.args(["--at-once", "8", "--patience", "3600"]);
    // Slow enough that a kill hits messages in flight: about 60 messages per second.
    let slow = sandbox::Settings { latency_ms: 100, jitter_ms: 50, ..fixture.sandbox.settings() };
    fixture.sandbox.set_settings(slow).unwrap();
    let client = Client::start(command, fixture.orders(MESSAGES), Duration::ZERO);
    fixture.delivered(40).await;
    fixture.kill(Service::Dispatcher, 0);
    fixture.start_replica(Service::Dispatcher, 0).await;
    fixture.delivered(120).await;
    fixture.kill(Service::Dispatcher, 1);
    let Ended { well, lines, told, .. } = client.end().await;
    assert_eq!(lines, all_delivered(MESSAGES), "{told}");
    assert!(well);
    let books = fixture.books();
    assert_eq!((books.delivered, books.messages, books.delivered_twice), (200, 200, 0), "{books:?}");
    // The other dispatcher answers that a message of the killed one is in progress.
    assert!(told.contains("REQUEST_UNDER_WAY"), "no message was in flight at a kill: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_client_sends_each_message_once_when_dispatchers_die() {
    survives_kills(|fixture| Some(fixture.rust())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_client_sends_each_message_once_when_dispatchers_die() {
    survives_kills(Fixture::python).await;
}

/// Stops each replica gracefully, one after the other, and starts it again, each time after `some_more` has completed.
async fn restart_all(fixture: &mut Fixture, mut some_more: impl AsyncFnMut(&Fixture)) {
    for service in [Service::Collector, Service::Dispatcher] {
        for which in [0, 1] {
            some_more(fixture).await;
            fixture.stop(service, which).await;
            fixture.start_replica(service, which).await;
        }
    }
    some_more(fixture).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restart_under_load_fails_no_call_and_loses_nothing() {
    let mut fixture = Fixture::start_both(&["--drain-wait", "500ms"]).await;
    let load = Load::new(&fixture.addresses(Service::Collector), &fixture.addresses(Service::Dispatcher)).await;
    // Two form ids for each user, so that a second message to a user would be delivered.
    let (users, rights) = fixture.submissions(USERS, 2);
    load.collect_all(rights).await;
    let under_way = load.start(users);
    restart_all(&mut fixture, async |_| {
        let enough = load.ended() + 200;
        eventually("calls end", SOON, async || load.ended() >= enough || under_way.is_finished()).await;
    })
    .await;
    load.enough();
    let done = under_way.await.unwrap();
    let Done { collected, sent, batches, resumed } = done;
    let [transparent, repeated] = [&load.transparent, &load.repeated].map(|count| count.load(Ordering::Relaxed));
    println!("{done:?}, {transparent} transparent retries, {repeated} by the policy");
    assert!(resumed >= 1, "the stream was not resumed after a restart of its collector");
    let books = fixture.books();
    assert_eq!((books.delivered, books.delivered_twice, books.answers.len()), (sent, 0, 1), "{books:?}");
    let ledger = fixture.ledger().await;
    let taken_in = 2 * USERS as u64 + collected + batches;
    assert_eq!((ledger.collected, ledger.consumed, ledger.available), (taken_in, sent, taken_in - sent), "{ledger:?}");
}

/// A client without retries of its own: the gRPC library retries as the service config says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restart_fails_no_call_with_the_service_config_alone() {
    let mut fixture = Fixture::start_both(&["--drain-wait", "500ms"]).await;
    let Some(mut command) = fixture.python() else { return };
    command.arg("--policy-only");
    // More orders than needed: the load continues until the restarts are done.
    let client = Client::start(command, fixture.orders(3000), Duration::from_millis(20));
    restart_all(&mut fixture, async |fixture| fixture.delivered(fixture.books().delivered + 25).await).await;
    client.enough();
    let Ended { well, given, lines, told } = client.end().await;
    assert_eq!(lines, all_delivered(given), "{told}");
    assert!(well);
    let books = fixture.books();
    assert_eq!((books.delivered, books.delivered_twice), (given as u64, 0), "{books:?}");
    // The client prints each retry of its own.
    assert_eq!(told, "");
}
