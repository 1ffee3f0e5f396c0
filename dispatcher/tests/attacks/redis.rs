//! A Redis in which a key holds something else than it should.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use sandbox::{FaultKind, Rule};
use shared::credential::OpenId;
use shared::proto::broadcast_request::Audience;
use shared::proto::dispatcher_service_client::DispatcherServiceClient;
use shared::proto::{AllReachable, BroadcastRequest, BroadcastState, GetBroadcastRequest, ListBroadcastsRequest};
use shared::store::broadcast::BroadcastId;
use shared::store::keys::BucketKeys;
use testing::{Process, Redis, eventually};
use tonic::transport::Channel;

use crate::rig::{APP, Rig, any_port, connect, message, reason, serving};

const SOON: Duration = Duration::from_secs(60);
const USERS: u64 = 20;

/// A dispatcher with its log in a file, and a broadcast to twenty users in four buckets.
struct Scene {
    rig: Rig,
    client: DispatcherServiceClient<Channel>,
    log: PathBuf,
    _process: Process,
}

impl Scene {
    async fn new() -> Self {
        let rig = Rig::with_buckets(Redis::alone(), 4).await.patiently();
        for number in 0..USERS {
            rig.submit(&format!("o{number}"), 1).await;
        }
        let (log, port) = (PathBuf::from(rig.file("log", "")), any_port());
        let mut command = rig.command(port, &["--lease", "6s"]);
        let process = Process::start(command.stderr(File::create(&log).unwrap()));
        let channel = connect(port).await;
        serving(channel.clone(), true).await;
        Self { rig, client: DispatcherServiceClient::new(channel), log, _process: process }
    }

    async fn broadcast(&mut self) -> String {
        let audience = Some(Audience::AllReachable(AllReachable {}));
        let request =
            BroadcastRequest { app_id: APP.into(), template_id: "t".into(), audience, ..BroadcastRequest::default() };
        // It is stored and begins, also where it cannot be summed up for the answer.
        if let Err(status) = self.client.broadcast(request).await {
            assert_eq!(reason(&status), "INTERNAL");
        }
        let list = ListBroadcastsRequest { app_id: APP.into(), ..ListBroadcastsRequest::default() };
        self.client.list_broadcasts(list).await.unwrap().into_inner().broadcasts[0].broadcast_id.clone()
    }

    fn ask(&self, command: &str) -> String {
        self.rig.redis.servers()[0].ask(&[command])
    }

    /// How many scripts failed.
    fn failed(&self) -> u32 {
        let stats = self.ask("INFO commandstats");
        let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
        line.split("failed_calls=").nth(1).map_or(0, |count| count.trim().parse().unwrap())
    }

    /// Waits until so many more scripts have failed, and looks at the log: the key is named once, and that is all.
    async fn assert_quiet(&self, key: &str) {
        let before = self.failed();
        eventually("it is tried again", SOON, async || self.failed() >= before + 3).await;
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
async fn a_bucket_that_cannot_be_used_holds_up_no_other_and_is_not_tried_all_the_time() {
    let mut scene = Scene::new().await;
    let keys = |openid: &str| {
        BucketKeys::new(&scene.rig.app(), scene.rig.store.bucket_of(&OpenId::parse(openid).unwrap())).users()
    };
    let bad = keys("o0");
    let others = (0..USERS).filter(|number| keys(&format!("o{number}")) != bad).count() as u64;
    scene.ask(&format!("RENAME {bad} {bad}:saved"));
    scene.ask(&format!("SET {bad} x"));
    let mut client = scene.client.clone();
    let status = client.send_template(message("o0", "x")).await.unwrap_err();
    assert_eq!(reason(&status), "INTERNAL");
    let id = scene.broadcast().await;
    eventually("the others have it", SOON, async || scene.rig.delivered() == others).await;
    scene.assert_quiet(&bad).await;

    scene.ask(&format!("DEL {bad}"));
    scene.ask(&format!("RENAME {bad}:saved {bad}"));
    eventually("it is done", SOON, async || scene.is_done(&id).await).await;
    assert_eq!(scene.rig.delivered(), USERS);
    scene.rig.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_settled_is_left_and_not_tried_for_ever() {
    let mut scene = Scene::new().await;
    // So that the key goes wrong while the message is on its way.
    let rule = Rule { times: Some(1), hang_ms: Some(2000), ..Rule::new(FaultKind::HangAfter) };
    scene.rig.sandbox.add_faults(vec![rule]).unwrap();
    let id = scene.broadcast().await;
    let broadcast = BroadcastId::parse(&id).unwrap();
    let parts: Vec<_> = scene
        .rig
        .store
        .buckets()
        .map(|bucket| BucketKeys::new(&scene.rig.app(), bucket).broadcast(&broadcast))
        .collect();
    let mut hit = None;
    eventually("a message is on its way", SOON, async || {
        hit = parts.iter().find(|part| !scene.ask(&format!("SCARD {}", part.flight())).starts_with(":0")).cloned();
        hit.is_some()
    })
    .await;
    let tally = hit.unwrap().tally();
    scene.ask(&format!("RENAME {tally} {tally}:saved"));
    scene.ask(&format!("SET {tally} x"));
    scene.assert_quiet(&tally.replace(&id, "*")).await;
}
