//! Broadcasts, from the call to the last message.

mod audience;
mod basics;
mod calls;
pub mod example;
mod intervals;
mod lists;
mod outages;
mod pauses;
mod permits;
mod quota;
mod states;
mod stops;
mod storm;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::fixture::{APP, Fixture, Running, connect, fact, reason, serving};
use dispatcher::clock::Clock;
use domain::{Credential, CredentialId, Grant, GrantUses, Kind, LIFETIME, OpenId, TemplateId};
use sandbox::{Granting, Submission};
use server::proto::broadcast_request::Audience;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{
    AddRecipientsRequest, AddRecipientsResponse, AllReachable, BroadcastInfo, BroadcastPreview, BroadcastRequest,
    BroadcastResponse, BroadcastState, BroadcastTally, CancelBroadcastRequest, GetBroadcastRequest,
    ListUndeliveredRequest, PauseBroadcastRequest, Recipient, Recipients, ResumeBroadcastRequest,
    StartBroadcastRequest, TemplateValue, WatchBroadcastRequest,
};
use store::credentials::{MAX_COLLECT, Packed};
use testing::{eventually, note, now};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A broadcast to all reachable users.
pub fn to_all() -> BroadcastRequest {
    BroadcastRequest {
        app_id: APP.into(),
        template_id: "template-1".into(),
        data: HashMap::from([("keyword1".into(), value("hello"))]),
        audience: Some(Audience::AllReachable(AllReachable {})),
        ..BroadcastRequest::default()
    }
}

/// A broadcast to these users.
pub fn to_list(openids: &[&str]) -> BroadcastRequest {
    let list = openids.iter().map(|openid| recipient(openid)).collect();
    BroadcastRequest { audience: Some(Audience::Recipients(Recipients { list })), ..to_all() }
}

pub fn recipient(openid: &str) -> Recipient {
    Recipient { openid: openid.into(), ..Recipient::default() }
}

pub fn value(text: &str) -> TemplateValue {
    TemplateValue { value: text.into(), color: String::new() }
}

/// RPCs whose request is complete with an app and a broadcast.
pub const CALLS: [&str; 8] = [
    "AddRecipients",
    "StartBroadcast",
    "PauseBroadcast",
    "ResumeBroadcast",
    "CancelBroadcast",
    "GetBroadcast",
    "WatchBroadcast",
    "ListUndelivered",
];

impl Running {
    /// Makes one of the [`CALLS`].
    pub async fn call(&self, name: &str, app: &str, id: &str) -> Result<(), Status> {
        let (mut client, app_id, broadcast_id) = (self.client.clone(), app.to_owned(), id.to_owned());
        match name {
            "AddRecipients" => {
                let request = AddRecipientsRequest { app_id, broadcast_id, ..Default::default() };
                client.add_recipients(request).await.map(drop)
            }
            "StartBroadcast" => client.start_broadcast(StartBroadcastRequest { app_id, broadcast_id }).await.map(drop),
            "PauseBroadcast" => client.pause_broadcast(PauseBroadcastRequest { app_id, broadcast_id }).await.map(drop),
            "ResumeBroadcast" => {
                client.resume_broadcast(ResumeBroadcastRequest { app_id, broadcast_id }).await.map(drop)
            }
            "CancelBroadcast" => {
                client.cancel_broadcast(CancelBroadcastRequest { app_id, broadcast_id }).await.map(drop)
            }
            "GetBroadcast" => client.get_broadcast(GetBroadcastRequest { app_id, broadcast_id }).await.map(drop),
            "WatchBroadcast" => {
                let request = WatchBroadcastRequest { app_id, broadcast_id, interval: None };
                client.watch_broadcast(request).await.map(drop)
            }
            _ => {
                let request = ListUndeliveredRequest { app_id, broadcast_id, ..Default::default() };
                client.list_undelivered(request).await.map(drop)
            }
        }
    }

    /// Makes one of the [`CALLS`] for a broadcast of the app, which must succeed.
    pub async fn done(&self, name: &str, id: &str) {
        self.call(name, APP, id).await.unwrap();
    }

    /// Calls Broadcast and returns the whole response.
    pub async fn answer(&self, request: BroadcastRequest) -> Result<BroadcastResponse, Status> {
        self.client.clone().broadcast(request).await.map(tonic::Response::into_inner)
    }

    pub async fn preview(&self, request: BroadcastRequest) -> BroadcastPreview {
        let request = BroadcastRequest { validate_only: true, ..request };
        self.answer(request).await.unwrap().preview.unwrap()
    }

    pub async fn add(&self, id: &str, openids: &[&str], exclude: &[&str]) -> Result<AddRecipientsResponse, Status> {
        let request = AddRecipientsRequest {
            app_id: APP.into(),
            broadcast_id: id.into(),
            recipients: openids.iter().map(|openid| recipient(openid)).collect(),
            exclude: exclude.iter().map(ToString::to_string).collect(),
        };
        self.client.clone().add_recipients(request).await.map(tonic::Response::into_inner)
    }

    /// All users who were not reached, each with the reason and the errcode.
    pub async fn undelivered(&self, id: &str) -> BTreeMap<String, (String, Option<i32>)> {
        undelivered(&mut self.client.clone(), id).await
    }

    /// Waits until `count` messages of a broadcast are delivered.
    pub async fn until_delivered(&self, id: &str, count: u64) {
        eventually("enough messages are delivered", Duration::from_secs(20), async || {
            tally(&self.look(id).await).delivered >= count
        })
        .await;
    }

    pub async fn broadcast(&self, request: BroadcastRequest) -> Result<BroadcastInfo, Status> {
        self.client.clone().broadcast(request).await.map(|response| response.into_inner().broadcast.unwrap())
    }

    pub async fn look(&self, id: &str) -> BroadcastInfo {
        look(&mut self.client.clone(), id).await.unwrap()
    }

    /// Watches a broadcast until it is in this state.
    pub async fn until(&self, id: &str, state: BroadcastState) -> BroadcastInfo {
        self.until_any(id, &[state]).await
    }

    /// Watches a broadcast until it is in one of these states.
    pub async fn until_any(&self, id: &str, states: &[BroadcastState]) -> BroadcastInfo {
        let watch = async {
            let request = WatchBroadcastRequest {
                app_id: APP.into(),
                broadcast_id: id.into(),
                interval: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
            };
            let mut stream = self.client.clone().watch_broadcast(request).await.unwrap().into_inner();
            let mut last = None;
            while let Some(update) = stream.message().await.unwrap() {
                let info = update.broadcast.unwrap();
                assert_adds_up(&info);
                if states.contains(&info.state()) {
                    return info;
                }
                last = Some(info);
            }
            panic!("the watch ended before the state was one of {states:?}: {last:?}");
        };
        tokio::pin!(watch);
        loop {
            match tokio::time::timeout(Duration::from_secs(30), &mut watch).await {
                Ok(info) => return info,
                Err(_) => note(&format!("still waiting for {states:?}: {:?}", self.look(id).await)),
            }
        }
    }
}

/// All users who were not reached, each with the reason and the errcode.
pub async fn undelivered(
    client: &mut DispatcherServiceClient<Channel>,
    id: &str,
) -> BTreeMap<String, (String, Option<i32>)> {
    let (mut found, mut page_token) = (BTreeMap::new(), String::new());
    loop {
        let request = ListUndeliveredRequest { app_id: APP.into(), broadcast_id: id.into(), page_size: 0, page_token };
        let page = client.list_undelivered(request).await.unwrap().into_inner();
        for one in page.undelivered {
            assert!(found.insert(one.openid.clone(), (one.reason, one.errcode)).is_none(), "{} twice", one.openid);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

pub async fn look(client: &mut DispatcherServiceClient<Channel>, id: &str) -> Result<BroadcastInfo, Status> {
    let request = GetBroadcastRequest { app_id: APP.into(), broadcast_id: id.into() };
    let info = client.get_broadcast(request).await?.into_inner().broadcast.unwrap();
    assert_adds_up(&info);
    Ok(info)
}

/// Asserts what holds for every tally at any time.
pub fn assert_adds_up(info: &BroadcastInfo) {
    let tally = info.tally.as_ref().unwrap();
    let failed: u64 = tally.failed.iter().map(|failure| failure.count).sum();
    let ended = tally.delivered
        + tally.no_credential
        + tally.recently_messaged
        + tally.refused_by_user
        + tally.erased
        + tally.unknown
        + failed;
    assert_eq!(tally.audience, ended + tally.left, "{tally:?}");
    assert!(tally.in_flight <= tally.left, "{tally:?}");
}

pub fn tally(info: &BroadcastInfo) -> &BroadcastTally {
    info.tally.as_ref().unwrap()
}

/// Asserts the code and the reason of an error.
pub fn assert_refused(status: &Status, code: Code, name: &str) {
    assert_eq!((status.code(), reason(status).as_str()), (code, name), "{status:?}");
}

/// Asserts a WRONG_STATE error with this state.
pub fn assert_wrong_state(status: &Status, state: &str) {
    assert_refused(status, Code::FailedPrecondition, "WRONG_STATE");
    assert_eq!(fact(status, "state").as_deref(), Some(state));
}

impl Fixture {
    /// Changes settings of the sandbox by the names that its README uses.
    pub fn change(&self, fields: serde_json::Value) {
        self.sandbox.change_settings(fields.as_object().cloned().unwrap()).unwrap();
    }

    pub fn calls(&self) -> u64 {
        self.sandbox.books(Some(APP)).unwrap().calls
    }

    /// Number of messages that each user received.
    pub fn received(&self) -> BTreeMap<String, u32> {
        let all = sandbox::Reading { limit: Some(usize::MAX), ..sandbox::Reading::default() };
        let mut received = BTreeMap::new();
        for delivery in self.sandbox.deliveries(APP, &all).unwrap() {
            *received.entry(delivery.openid).or_default() += 1;
        }
        received
    }

    /// A dispatcher and its clock.
    pub async fn dispatcher_and_clock(&self, extra: &[&str]) -> (Running, Clock) {
        let settings = self.settings(extra);
        let clock = settings.clock.clone();
        let running = Running::start(settings).await;
        serving(connect(running.address.port()).await, true).await;
        (running, clock)
    }

    /// Stores one form id for each user `oUser0`, `oUser1` and so on. It is faster than `submit` for each.
    pub async fn submit_crowd(&self, users: std::ops::Range<usize>) {
        let openids: Vec<String> = users.map(|user| format!("oUser{user}")).collect();
        let submissions = openids.iter().map(Submission::form).collect();
        let ids = self.sandbox.submit(APP, submissions).unwrap();
        let expiry = (now() as u64 + LIFETIME.as_secs()) as u32;
        let packed = openids.into_iter().zip(ids).map(|(openid, id)| {
            let id = CredentialId::parse(id).unwrap();
            Packed::new(OpenId::parse(openid).unwrap(), &Credential { kind: Kind::FormId, id, uses: 1, expiry })
        });
        self.collect_crowd(packed).await;
    }

    /// Stores `count` grants of a template for each of these users.
    pub async fn accept_crowd(&self, users: std::ops::Range<usize>, template: &str, count: u16) {
        let openids: Vec<String> = users.map(|user| format!("oUser{user}")).collect();
        let granting = |openid| Granting { count: count.into(), ..Granting::new(openid, template) };
        self.sandbox.grant(APP, openids.iter().map(granting).collect()).unwrap();
        let template = TemplateId::parse(template).unwrap();
        let grant = Grant { template, uses: GrantUses::Count(count) };
        self.collect_crowd(
            openids.into_iter().map(|openid| Packed::grant(OpenId::parse(openid).unwrap(), &grant, None)),
        )
        .await;
    }

    async fn collect_crowd(&self, credentials: impl Iterator<Item = Packed>) {
        let mut by_bucket: HashMap<_, Vec<Packed>> = HashMap::new();
        for packed in credentials {
            by_bucket.entry(self.store.bucket_of(&packed.openid)).or_default().push(packed);
        }
        for (bucket, credentials) in by_bucket {
            for some in credentials.chunks(MAX_COLLECT) {
                self.store.collect(&self.app(), bucket, some).await.unwrap();
            }
        }
    }

    /// Waits until no lease is left.
    pub async fn no_lease_left(&self) {
        eventually("no lease is left", Duration::from_secs(20), async || {
            self.store.ledger(&self.app()).await.is_ok_and(|ledger| ledger.leased == 0)
        })
        .await;
    }
}
