//! Redis is lost and restored from an older snapshot, with the scripts of `deploy/kubernetes/components/redis`. The README
//! of that folder says what comes back with the snapshot and what to do. This test does that.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use domain::OpenId;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{BroadcastRequest, BroadcastState, CancelBroadcastRequest, Outcome, SendTemplateRequest};
use tempfile::TempDir;
use testing::{Process, Redis, eventually, now};
use tonic::Code;
use tonic::transport::Channel;

use crate::broadcast::{assert_refused, tally, to_all, to_list};
use crate::fixture::{APP, Fixture, any_port, connect, reason, request, serving};

/// Users of the broadcast, and how many of them have a second form id.
const USERS: usize = 400;
const SPARE: usize = 100;

const USUAL: Duration = Duration::from_secs(60);

/// Without the pause before a snapshot is transferred.
const SETTINGS: [&str; 6] = ["--save", "", "--appendonly", "yes", "--repl-diskless-sync-delay", "0"];

/// Runs one of the scripts for the Redis of the fixture.
fn run(script: &str, fixture: &Fixture, backups: &TempDir, snapshot: &str) {
    let mut command = Command::new("sh");
    command.arg(testing::readme::root().join("deploy/kubernetes/components/redis").join(script));
    command.env("REDIS_SERVER", fixture.redis.url().trim_start_matches("redis://"));
    command.env("BACKUPS", backups.path()).env("SNAPSHOT", snapshot);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A dispatcher as a process, which is killed when it is dropped: its messages in flight stay in flight.
async fn process(fixture: &Fixture) -> (Process, DispatcherServiceClient<Channel>) {
    let port = any_port();
    let process = fixture.process(port);
    let channel = connect(port).await;
    serving(channel.clone(), true).await;
    (process, DispatcherServiceClient::new(channel))
}

async fn deliver(client: &mut DispatcherServiceClient<Channel>, request: SendTemplateRequest) {
    assert_eq!(client.send_template(request).await.unwrap().into_inner().outcome(), Outcome::Delivered);
}

/// The users of the broadcast who received its message so far.
fn reached(fixture: &Fixture) -> BTreeSet<String> {
    fixture.received().into_keys().filter(|openid| openid.starts_with("oUser")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_snapshot_brings_back_what_the_readme_says() {
    let mut fixture = Fixture::on(Redis::alone_with(&SETTINGS)).await;
    fixture.waits = ["5s", "2s", "7s"];
    let backups = tempfile::tempdir().unwrap();
    fixture.submit_crowd(0..USERS).await;
    fixture.submit_crowd(0..SPARE).await;
    for openid in ["oBefore", "oSpare"] {
        fixture.submit(openid, 2).await;
    }
    for openid in ["oOnce", "oErased"] {
        fixture.submit(openid, 1).await;
    }
    fixture.pay("oPayer", now() - 600).await;

    // Before the snapshot: a message, a broadcast that was not started, and one that is under way.
    let (killed, mut client) = process(&fixture).await;
    deliver(&mut client, request("oBefore", "before", "r-before")).await;
    let held = BroadcastRequest { hold: true, template_id: "template-2".into(), ..to_list(&["oBefore"]) };
    let held = client.broadcast(held).await.unwrap().into_inner().broadcast.unwrap().broadcast_id;
    let crowd: Vec<String> = (0..USERS).map(|user| format!("oUser{user}")).collect();
    let crowd: Vec<&str> = crowd.iter().map(String::as_str).collect();
    let spring = BroadcastRequest { messages_per_second: 60, request_id: "spring".into(), ..to_list(&crowd) };
    let spring = client.broadcast(spring).await.unwrap().into_inner().broadcast.unwrap().broadcast_id;
    eventually("a quarter of the users has the message", USUAL, async || reached(&fixture).len() > USERS / 4).await;
    drop(killed);
    run("backup.sh", &fixture, &backups, "");
    let before = reached(&fixture);

    // After it.
    let (killed, mut client) = process(&fixture).await;
    for (openid, id) in [("oOnce", "r-once"), ("oSpare", "r-spare"), ("oPayer", "r-payer")] {
        deliver(&mut client, request(openid, "after", id)).await;
    }
    fixture.store.erase(&fixture.app(), &OpenId::parse("oErased").unwrap()).await.unwrap();
    fixture.submit("oLate", 1).await;
    let cancel = CancelBroadcastRequest { app_id: APP.into(), broadcast_id: held.clone() };
    client.cancel_broadcast(cancel).await.unwrap();
    let lost = BroadcastRequest { template_id: "template-3".into(), hold: true, ..to_all() };
    let lost = client.broadcast(lost).await.unwrap().into_inner().broadcast.unwrap().broadcast_id;
    eventually("more users have the message", USUAL, async || reached(&fixture).len() > before.len() + 120).await;
    drop(killed);
    let between: BTreeSet<_> = reached(&fixture).difference(&before).cloned().collect();

    // Redis is lost with everything in it.
    fixture.redis = Redis::alone_with(&SETTINGS);
    let snapshot = std::fs::read_dir(backups.path()).unwrap().next().unwrap().unwrap().file_name();
    run("restore.sh", &fixture, &backups, snapshot.to_str().unwrap());
    fixture.store = fixture.redis.store().await;
    let restored = fixture.store.ledger(&fixture.app()).await.unwrap();

    // First a dispatcher that sends nothing of broadcasts.
    let first = fixture.dispatcher_with(&["--broadcast-tasks", "0"]).await;
    let found = first.look(&spring).await;
    assert_eq!(found.state(), BroadcastState::Running);
    assert!((1..=before.len() as u64).contains(&tally(&found).delivered), "{found:?}");
    assert_refused(&first.call("GetBroadcast", APP, &lost).await.unwrap_err(), Code::NotFound, "BROADCAST_NOT_FOUND");
    assert_eq!(first.look(&held).await.state(), BroadcastState::Pending, "it was cancelled after the snapshot");
    first.done("CancelBroadcast", &held).await;
    assert_eq!(first.look(&held).await.state(), BroadcastState::Cancelled);
    // What came back: a user who was erased, uses that were spent. What did not: what was collected later.
    assert_eq!((fixture.left("oErased").await, fixture.left("oPayer").await, fixture.left("oLate").await), (1, 3, 0));
    fixture.store.erase(&fixture.app(), &OpenId::parse("oErased").unwrap()).await.unwrap();
    // A request whose record survived sends nothing again, although the user has another form id.
    let calls = || fixture.sandbox.books(Some(APP)).unwrap().calls;
    let had = calls();
    let answer = first.send(request("oBefore", "before", "r-before")).await.unwrap();
    assert_eq!((answer.outcome(), answer.errcode, calls()), (Outcome::Delivered, Some(0), had));
    // A later one counts as new. The spent form id costs one call, with 41029, and is discarded.
    let dead = first.send(request("oOnce", "after", "r-once")).await.unwrap_err();
    assert_eq!((reason(&dead).as_str(), calls()), ("CREDENTIALS_DEAD", had + 1));
    assert_eq!(fixture.left("oOnce").await, 0);
    // With another credential the message is sent a second time.
    let again = first.send(request("oSpare", "after", "r-spare")).await.unwrap();
    assert_eq!((again.outcome(), again.attempts, calls()), (Outcome::Delivered, 2, had + 3));
    assert_eq!(first.send(request("oPayer", "after", "r-payer")).await.unwrap().outcome(), Outcome::Delivered);
    let received = fixture.received();
    let times = ["oBefore", "oOnce", "oSpare", "oPayer"].map(|openid| received[openid]);
    assert_eq!(times, [1, 1, 2, 2]);
    // The broadcast has not moved.
    first.done("PauseBroadcast", &spring).await;
    assert_eq!(tally(&first.look(&spring).await), tally(&found));
    assert_eq!(received.keys().filter(|openid| openid.starts_with("oUser")).count(), before.len() + between.len());

    // Then the broadcast goes on. It would pause, because many messages fail in a row.
    let second = fixture.dispatcher_with(&["--broadcast-failures", "100"]).await;
    second.done("ResumeBroadcast", &spring).await;
    let done = second.until(&spring, BroadcastState::Done).await;
    let received = fixture.received();
    let twice: BTreeSet<_> = crowd.iter().filter(|user| received[**user] == 2).map(ToString::to_string).collect();
    let has_spare = |user: &String| user["oUser".len()..].parse::<usize>().unwrap() < SPARE;
    let (spare, only): (BTreeSet<_>, BTreeSet<_>) = between.iter().cloned().partition(has_spare);
    // Those in flight at the time of the snapshot are asked about with the same form id.
    let flying = restored.leased as usize;
    let refused = second.undelivered(&spring).await;
    assert!(crowd.iter().all(|user| (1..=2).contains(&received[*user])));
    assert!(twice.is_subset(&spare) && twice.len() + flying >= spare.len() && !twice.is_empty(), "{twice:?} {spare:?}");
    assert!(refused.keys().all(|user| only.contains(user)) && refused.len() + flying >= only.len(), "{refused:?}");
    assert!(!refused.is_empty());
    let why = ("CREDENTIALS_DEAD".to_owned(), Some(41029));
    assert!(refused.values().all(|each| *each == why), "{refused:?}");
    assert_eq!(tally(&done).delivered as usize, USERS - refused.len());
    fixture.no_lease_left().await;
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    // Of the single messages, two form ids were refused.
    assert_eq!(ledger.discarded as usize, refused.len() + twice.len() + 2, "{ledger:?}");
}
