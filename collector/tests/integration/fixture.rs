//! Runs a collector in the test process, with helpers for calls.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser as _;
use collector::StartError;
use collector::settings::{Args, Settings};
use domain::{AppId, OpenId};
use prost_types::Timestamp;
use server::proto::collector_service_client::CollectorServiceClient;
use server::proto::credential::Right;
use server::proto::{
    CollectRequest, CollectResponse, CollectStatus, CollectStreamRequest, Credential, EventAction, GetInventoryRequest,
    GetInventoryResponse, ReportEventsRequest, ReportEventsResponse,
};
use store::Store;
use store::record::Record;
use testing::Redis;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

/// The app of the tests' collectors.
pub const APP: &str = "wx0123456789abcdef";

/// A timeout that is longer than any step of a test should take.
pub const SOON: Duration = Duration::from_secs(15);

pub type Client = CollectorServiceClient<Channel>;

/// A collector in this process.
pub struct Collector {
    address: SocketAddr,
    /// The address of its metrics.
    pub metrics: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), StartError>>,
}

impl Collector {
    /// Starts a collector with 4 buckets, as [`Redis::store`] has, and with further flags.
    pub async fn start(redis: &Redis, flags: &[&str]) -> Self {
        let url = redis.url();
        let usual = ["collector", "--buckets", "4", "--redis-url", &url, "--drain-wait", "0s"];
        // A long timeout, because the machine may be busy.
        let more = [["--apps", APP], ["--redis-timeout", "20s"]].into_iter().filter(|[flag, _]| !flags.contains(flag));
        let flags: Vec<_> = usual.into_iter().chain(more.flatten()).chain(flags.iter().copied()).collect();
        let settings = Settings::read(&Args::parse_from(flags)).unwrap();
        let (listeners, [address, metrics]) = testing::listeners().await;
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { stopped.await.unwrap_or(()) };
        Self { address, metrics, stop, served: tokio::spawn(collector::run(listeners, settings, shutdown)) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub async fn client(&self) -> Client {
        CollectorServiceClient::new(connect(self.address).await)
    }

    /// Starts the shutdown; the returned task ends when the collector has stopped.
    pub fn stop(self) -> JoinHandle<Result<(), StartError>> {
        self.stop.send(()).unwrap();
        self.served
    }

    /// Whether the health check returns SERVING.
    pub async fn is_serving(&self) -> bool {
        is_serving(self.address).await
    }
}

/// Starts a collector, waits until it serves, and connects a client.
pub async fn collector(redis: &Redis, flags: &[&str]) -> (Collector, Client) {
    let collector = Collector::start(redis, flags).await;
    testing::eventually("it serves", SOON, async || collector.is_serving().await).await;
    let client = collector.client().await;
    (collector, client)
}

pub async fn connect(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// Whether the health check returns SERVING, both for the server and for the service.
pub async fn is_serving(address: SocketAddr) -> bool {
    let Ok(channel) = Channel::from_shared(format!("http://{address}")).unwrap().connect().await else {
        return false;
    };
    let mut health = HealthClient::new(channel);
    for service in ["", "formid.v1.CollectorService"] {
        match health.check(HealthCheckRequest { service: service.into() }).await {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => {}
            _ => return false,
        }
    }
    true
}

pub fn app() -> AppId {
    AppId::parse(APP).unwrap()
}

pub fn form(openid: &str, id: &str) -> Credential {
    Credential { openid: openid.into(), right: Some(Right::FormId(id.into())), obtained_at: None }
}

pub fn prepay(openid: &str, id: &str) -> Credential {
    Credential { openid: openid.into(), right: Some(Right::PrepayId(id.into())), obtained_at: None }
}

/// The credential, obtained this many seconds ago.
pub fn aged(credential: Credential, seconds: i64) -> Credential {
    let obtained_at = Some(Timestamp { seconds: testing::now() - seconds, nanos: 0 });
    Credential { obtained_at, ..credential }
}

pub fn request(credentials: Vec<Credential>) -> CollectRequest {
    CollectRequest { app_id: APP.into(), credentials }
}

pub fn batch(sequence: u64, credentials: Vec<Credential>) -> CollectStreamRequest {
    CollectStreamRequest { sequence, app_id: APP.into(), credentials }
}

/// Calls Collect; returns the status of each credential.
pub async fn collect(client: &mut Client, credentials: Vec<Credential>) -> Result<Vec<CollectStatus>, Status> {
    let CollectResponse { results } = client.collect(request(credentials)).await?.into_inner();
    Ok(results.iter().map(|result| result.status()).collect())
}

pub async fn inventory(client: &mut Client, openid: &str) -> GetInventoryResponse {
    let request = GetInventoryRequest { app_id: APP.into(), openid: openid.into() };
    client.get_inventory(request).await.unwrap().into_inner()
}

/// Calls ReportEvents without a signature.
pub async fn report(client: &mut Client, body: &str) -> Result<ReportEventsResponse, Status> {
    let request = ReportEventsRequest { app_id: APP.into(), body: body.into(), ..ReportEventsRequest::default() };
    client.report_events(request).await.map(tonic::Response::into_inner)
}

pub fn actions(response: &ReportEventsResponse) -> Vec<(EventAction, u32)> {
    response.results.iter().map(|result| (result.action(), result.messages)).collect()
}

/// The ids of the credentials that the store holds for a user.
pub async fn stored(store: &Store, openid: &str) -> Vec<String> {
    let records = store.records(&app(), &OpenId::parse(openid).unwrap()).await.unwrap();
    records.into_iter().map(|Record { credential, .. }| credential.id.as_str().to_owned()).collect()
}

/// The reason of an error.
pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "formid");
    info.reason.clone()
}

/// The bad fields of an error, sorted.
pub fn bad_fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let mut fields: Vec<_> =
        details.bad_request().unwrap().field_violations.iter().map(|violation| violation.field.clone()).collect();
    fields.sort();
    fields
}

/// The retry pushback for client libraries, in milliseconds.
pub fn pushback(status: &Status) -> Option<String> {
    status.metadata().get(server::rpc::status::PUSHBACK).map(|value| value.to_str().unwrap().to_owned())
}

/// WeChat's event for a popup that the user answered at `created`; each item is a template and its status.
pub fn popup(created: i64, items: &[(&str, &str)]) -> String {
    let items: Vec<_> = items
        .iter()
        .map(|(template, status)| {
            format!(r#"{{"TemplateId":"{template}","SubscribeStatusString":"{status}","PopupScene":"0"}}"#)
        })
        .collect();
    format!(
        r#"{{"ToUserName":"gh_1","FromUserName":"oUser","CreateTime":"{created}","MsgType":"event",
            "Event":"subscribe_msg_popup_event","List":[{}]}}"#,
        items.join(",")
    )
}

/// WeChat's signature of the parameters of a push.
pub fn signature(token: &str, timestamp: &str, nonce: &str) -> String {
    let mut parts = [token, timestamp, nonce];
    parts.sort_unstable();
    sha1_smol::Sha1::from(parts.concat()).digest().to_string()
}
