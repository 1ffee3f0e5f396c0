//! Dispatchers that die and stop in the middle of sends, as the clients see it.

use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use testing::eventually;

use crate::load::{Done, Load};
use crate::rig::{Client, Ended, Rig, Service, all_delivered};

const MESSAGES: usize = 200;

/// Users of the load, which sends at most 100 messages a second, for as long as it finds users.
const USERS: usize = 3000;

const SOON: Duration = Duration::from_secs(30);

/// A dispatcher that dies leaves messages behind, which another may take over after the lease.
const SHORT_LEASE: [&str; 6] = ["--lease", "2s", "--reap-interval", "200ms", "--drain-wait", "300ms"];

/// One dispatcher after the other is killed while messages are under way; only the first comes back.
async fn survives_kills(client: impl FnOnce(&Rig) -> Option<Command>) {
    let mut rig = Rig::start(&SHORT_LEASE).await;
    let Some(mut command) = client(&rig) else { return };
    command.args(["--at-once", "8", "--patience", "3600"]);
    // Slow enough that there is a middle: some 60 a second.
    let slow = sandbox::Settings { latency_ms: 100, jitter_ms: 50, ..rig.sandbox.settings() };
    rig.sandbox.set_settings(slow).unwrap();
    let client = Client::start(command, rig.orders(MESSAGES), Duration::ZERO);
    rig.delivered(40).await;
    rig.kill(Service::Dispatcher, 0);
    rig.start_replica(Service::Dispatcher, 0).await;
    rig.delivered(120).await;
    rig.kill(Service::Dispatcher, 1);
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

/// One replica after the other is stopped as an operator does it and started again, each once `some_more` happened.
async fn restart_all(rig: &mut Rig, mut some_more: impl AsyncFnMut(&Rig)) {
    for service in [Service::Collector, Service::Dispatcher] {
        for which in [0, 1] {
            some_more(rig).await;
            rig.stop(service, which).await;
            rig.start_replica(service, which).await;
        }
    }
    some_more(rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_and_nothing_is_lost_or_sent_twice_while_all_replicas_are_restarted_under_load() {
    let mut rig = Rig::start_both(&["--drain-wait", "500ms"]).await;
    let load = Load::new(&rig.addresses(Service::Collector), &rig.addresses(Service::Dispatcher)).await;
    // Two rights for each user, so that a second message to one would go out.
    let (users, rights) = rig.submissions(USERS, 2);
    load.collect_all(rights).await;
    let under_way = load.start(users);
    restart_all(&mut rig, async |_| {
        let enough = load.ended() + 200;
        eventually("calls end", SOON, async || load.ended() >= enough || under_way.is_finished()).await;
    })
    .await;
    load.enough();
    let done = under_way.await.unwrap();
    let Done { collected, sent, batches, resumed } = done;
    let [transparent, repeated] = [&load.transparent, &load.repeated].map(|count| count.load(Ordering::Relaxed));
    println!("{done:?}, {transparent} transparent retries, {repeated} by the policy");
    assert!(resumed >= 1, "the stream came through a restart of its collector");
    let books = rig.books();
    assert_eq!((books.delivered, books.delivered_twice, books.answers.len()), (sent, 0, 1), "{books:?}");
    let ledger = rig.ledger().await;
    let taken_in = 2 * USERS as u64 + collected + batches;
    assert_eq!((ledger.collected, ledger.consumed, ledger.available), (taken_in, sent, taken_in - sent), "{ledger:?}");
}

/// A client that has no patience of its own: the library repeats, by the service config.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_service_config_alone_no_call_fails_in_a_restart_of_all_replicas() {
    let mut rig = Rig::start_both(&["--drain-wait", "500ms"]).await;
    let Some(mut command) = rig.python() else { return };
    command.arg("--policy-only");
    // More than it will come to: the load goes on for as long as the restarts take.
    let client = Client::start(command, rig.orders(3000), Duration::from_millis(20));
    restart_all(&mut rig, async |rig| rig.delivered(rig.books().delivered + 25).await).await;
    client.enough();
    let Ended { well, given, lines, told } = client.end().await;
    assert_eq!(lines, all_delivered(given), "{told}");
    assert!(well);
    let books = rig.books();
    assert_eq!((books.delivered, books.delivered_twice), (given as u64, 0), "{books:?}");
    // It would tell of each call that it repeats by itself.
    assert_eq!(told, "");
}
