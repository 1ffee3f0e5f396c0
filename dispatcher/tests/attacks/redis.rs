//! A Redis in which a key has a value of the wrong type.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use domain::OpenId;
use sandbox::{FaultKind, Rule};
use server::proto::broadcast_request::Audience;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{AllReachable, BroadcastRequest, BroadcastState, GetBroadcastRequest, ListBroadcastsRequest};
use store::broadcast::BroadcastId;
use store::keys::BucketKeys;
use testing::{Process, Redis, eventually};
use tonic::transport::Channel;

use crate::fixture::{APP, Fixture, any_port, connect, message, reason, serving};

const SOON: Duration = Duration::from_secs(60);
const USERS: u64 = 20;

/// A dispatcher that logs to a file, and twenty users in four buckets.
struct Scene {
    fixture: Fixture,
    client: DispatcherServiceClient<Channel>,
    log: PathBuf,
    _process: Process,
}

impl Scene {
    async fn new() -> Self {
        let fixture = Fixture::with_buckets(Redis::alone(), 4).await.patiently();
        for number in 0..USERS {
            fixture.submit(&format!("o{number}"), 1).await;
        }
        let (log, port) = (PathBuf::from(fixture.file("log", "")), any_port());
        let mut command = fixture.command(port, &["--lease", "6s"]);
        let process = Process::start(command.stderr(File::create(&log).unwrap()));
        let channel = connect(port).await;
        serving(channel.clone(), true).await;
        Self { fixture, client: DispatcherServiceClient::new(channel), log, _process: process }
    }

    async fn broadcast(&mut self) -> String {
        let audience = Some(Audience::AllReachable(AllReachable {}));
        let request =
            BroadcastRequest { app_id: APP.into(), template_id: "t".into(), audience, ..BroadcastRequest::default() };
        // The broadcast is stored and begins even if its tally for the answer cannot be read.
        if let Err(status) = self.client.broadcast(request).await {
            assert_eq!(reason(&status), "INTERNAL");
        }
        let list = ListBroadcastsRequest { app_id: APP.into(), ..ListBroadcastsRequest::default() };
        self.client.list_broadcasts(list).await.unwrap().into_inner().broadcasts[0].broadcast_id.clone()
    }

    fn ask(&self, command: &str) -> String {
        self.fixture.redis.servers()[0].ask(&[command])
    }

    /// Number of scripts that failed.
    fn failed(&self) -> u32 {
        let stats = self.ask("INFO commandstats");
        let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
        line.split("failed_calls=").nth(1).map_or(0, |count| count.trim().parse().unwrap())
    }

    /// Waits until three more scripts have failed, then reads the log: there is one warning that names the key, and few
    /// other warnings.
    async fn assert_quiet(&self, key: &str) {
        let before = self.failed();
        eventually("scripts fail again", SOON, async || self.failed() >= before + 3).await;
        let text = std::fs::read_to_string(&self.log).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
        let found: Vec<_> = lines.iter().filter(|line| line.contains("holds the wrong type")).collect();
        assert!(found.len() == 1 && found[0].contains(key), "{text}");
        let others: Vec<_> = lines.iter().filter(|line| !line.contains("append-only")).collect();
        assert!(others.len() <= 3, "{text}");
    }

    async fn is_done(&self, broadcast_id: &str) -> bool {
        let request = GetBroadcastRequest { app_id: APP.into(), broadcast_id: broadcast_id.into() };
        let answer = self.client.clone().get_broadcast(request).await;
        answer.is_ok_and(|answer| answer.into_inner().broadcast.unwrap().state() == BroadcastState::Done)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_bucket_does_not_block_others_and_is_retried_slowly() {
    let mut scene = Scene::new().await;
    let keys = |openid: &str| {
        BucketKeys::new(&scene.fixture.app(), scene.fixture.store.bucket_of(&OpenId::parse(openid).unwrap())).users()
    };
    let bad = keys("o0");
    let others = (0..USERS).filter(|number| keys(&format!("o{number}")) != bad).count() as u64;
    scene.ask(&format!("RENAME {bad} {bad}:saved"));
    scene.ask(&format!("SET {bad} x"));
    let mut client = scene.client.clone();
    let status = client.send_template(message("o0", "x")).await.unwrap_err();
    assert_eq!(reason(&status), "INTERNAL");
    let id = scene.broadcast().await;
    eventually("the users of the other buckets have their message", SOON, async || scene.fixture.delivered() == others)
        .await;
    scene.assert_quiet(&bad).await;

    scene.ask(&format!("DEL {bad}"));
    scene.ask(&format!("RENAME {bad}:saved {bad}"));
    eventually("the broadcast is done", SOON, async || scene.is_done(&id).await).await;
    assert_eq!(scene.fixture.delivered(), USERS);
    scene.fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn message_that_cannot_be_settled_is_given_up_eventually() {
    let mut scene = Scene::new().await;
    // WeChat answers late, so that the key becomes unusable while a message is in flight.
    let rule = Rule { times: Some(1), hang_ms: Some(2000), ..Rule::new(FaultKind::HangAfter) };
    scene.fixture.sandbox.add_faults(vec![rule]).unwrap();
    let id = scene.broadcast().await;
    let broadcast = BroadcastId::parse(&id).unwrap();
    let parts: Vec<_> = scene
        .fixture
        .store
        .buckets()
        .map(|bucket| BucketKeys::new(&scene.fixture.app(), bucket).broadcast(&broadcast))
        .collect();
    let mut hit = None;
    eventually("a message is in flight", SOON, async || {
        hit = parts.iter().find(|part| !scene.ask(&format!("SCARD {}", part.flight())).starts_with(":0")).cloned();
        hit.is_some()
    })
    .await;
    let tally = hit.unwrap().tally();
    scene.ask(&format!("RENAME {tally} {tally}:saved"));
    scene.ask(&format!("SET {tally} x"));
    scene.assert_quiet(&tally.replace(&id, "*")).await;
}
