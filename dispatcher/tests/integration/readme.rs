//! The commands of the READMEs, run in order as a new user would, against services in the state that the quickstart leaves.

use std::time::Duration;

use testing::readme::{Ran, Steps};
use testing::{Redis, eventually};

use crate::broadcast::example;
use crate::fixture::{Fixture, message};
use crate::whole::Collector;

/// Starts the services in the state that the quickstart leaves, in which alice, bob and 300 more users have a form id
/// each; runs the commands, and compares what they print with what the README shows.
async fn run(steps: Steps) -> (Fixture, Vec<Ran>) {
    // 512 is the default number of buckets.
    let fixture = Fixture::with_buckets(Redis::start(), 512).await;
    let collector = Collector::start(&fixture, &[]).await;
    let dispatcher = fixture.dispatcher_with(&["--lease", "30s"]).await;
    fixture.submit("alice", 2).await;
    dispatcher.send(message("alice", "ready")).await.unwrap();
    fixture.submit("bob", 1).await;
    for user in 1..=300 {
        fixture.submit(&format!("user-{user}"), 1).await;
    }

    let (collector, dispatcher_at) = (collector.address.to_string(), dispatcher.address.to_string());
    // Only the tests that use the client need it to be built.
    let client = "cargo run -q -p dispatcher --example broadcast --";
    let program = steps.have(client).then(|| format!("'{}' --address {dispatcher_at}", example::program().display()));
    let redis_cli = format!("redis-cli -u {}", fixture.redis.url());
    let mut places = vec![
        ("127.0.0.1:7001", collector.as_str()),
        ("127.0.0.1:7002", &dispatcher_at),
        ("http://127.0.0.1:8700", &fixture.base_url),
        ("redis-cli -p 7000", &redis_cli),
        (client, program.as_deref().unwrap_or_default()),
    ];
    places.retain(|(shown, _)| steps.have(shown));
    let folder = tempfile::tempdir().unwrap();
    let ran = steps.run(folder.path(), &places).await;
    for ran in &ran {
        ran.assert_as_shown();
    }
    eventually("nothing is in flight", Duration::from_secs(20), async || {
        fixture.store.ledger(&fixture.app()).await.unwrap().leased == 0
    })
    .await;
    (fixture, ran)
}

/// Whether a message of each generation was delivered.
fn assert_both_generations(fixture: &Fixture) {
    let delivered = fixture.sandbox.deliveries(crate::fixture::APP, &sandbox::Reading::default()).unwrap();
    assert!(delivered.iter().any(|delivery| delivery.msgid.is_some()));
    assert!(delivered.iter().any(|delivery| delivery.msgid.is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_first_readme_do_what_is_shown() {
    let (fixture, _) = run(Steps::of("README.md", "default")).await;
    assert_both_generations(&fixture);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_api_do_what_is_shown() {
    let (_, ran) = run(Steps::of("proto/README.md", "default")).await;
    let refused = ran.iter().filter(|ran| ran.is_to_fail()).count();
    assert!(ran.len() >= 12 && refused >= 1, "{} commands, {refused} of which are to fail", ran.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_collector_do_what_is_shown() {
    run(Steps::of("collector/README.md", "default")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_dispatcher_do_what_is_shown() {
    let (fixture, ran) = run(Steps::of("dispatcher/README.md", "default")).await;
    let refused = ran.iter().filter(|ran| ran.is_to_fail()).count();
    assert!(ran.len() >= 10 && refused >= 1, "{} commands, {refused} of which are to fail", ran.len());
    assert_both_generations(&fixture);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_architecture_do_what_is_shown() {
    run(Steps::of("shared/README.md", "default")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_operators_do_what_is_shown() {
    run(Steps::of("deploy/README.md", "default")).await;
}
