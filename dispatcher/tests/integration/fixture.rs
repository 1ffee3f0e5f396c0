//! The fixture of the dispatcher tests: a real Redis, the sandbox in place of WeChat, and a real dispatcher.

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use clap::Parser as _;
use dispatcher::settings::{Args, Settings};
use domain::dependency::Dependency as _;
use domain::{AppId, Credential, CredentialId, Grant, GrantUses, Kind, LIFETIME, OpenId, TemplateId};
use sandbox::{Endpoint as WeChatEndpoint, FaultKind, Granting, Rule, Sandbox, Submission};
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{SendTemplateRequest, SendTemplateResponse, TemplateValue};
use store::credentials::Packed;
use store::{Store, StoreConfig};
use testing::{Process, Redis, eventually, free_port, now, store_config};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

pub const APP: &str = "wx0123456789abcdef";
pub const SECRET: &str = "the-secret-of-the-app";

/// Faults that lose an answer: the dispatcher cannot know whether WeChat processed the call.
pub const LOST_ANSWERS: [FaultKind; 6] = [
    FaultKind::Http500After,
    FaultKind::Http500Before,
    FaultKind::CutAfter,
    FaultKind::CutBefore,
    FaultKind::NotJsonAfter,
    FaultKind::HangAfter,
];

/// A Redis, a sandbox, and the settings for dispatchers that use them.
pub struct Fixture {
    pub redis: Redis,
    pub store: Store,
    pub sandbox: Sandbox,
    pub base_url: String,
    buckets: u16,
    /// The line of the apps file about the app's source of access tokens.
    pub token_source: String,
    /// Further lines for the app in the apps file.
    pub app_settings: String,
    /// Timeouts of WeChat calls and Redis commands, and the lease.
    pub waits: [&'static str; 3],
    /// The WeChat endpoint to which faults apply.
    pub endpoint: WeChatEndpoint,
    folder: tempfile::TempDir,
}

/// Waits that are long enough for a busy machine.
const PATIENT: [&str; 3] = ["20s", "20s", "60s"];

impl Fixture {
    pub async fn new() -> Self {
        Self::on(Redis::start()).await
    }

    /// A fixture whose dispatchers do not treat an answer as lost on a busy machine: for tests in which no answer is lost.
    pub async fn patient() -> Self {
        Self::new().await.patiently()
    }

    /// Sets the waits of [`Fixture::patient`].
    pub fn patiently(self) -> Self {
        Self { waits: PATIENT, ..self }
    }

    /// A patient fixture whose app sends subscription messages by default.
    pub async fn subscribing() -> Self {
        Self::patient().await.subscribed()
    }

    /// Makes subscription messages the default of the app.
    pub fn subscribed(self) -> Self {
        Self { app_settings: "delivery = \"subscription\"\n".into(), endpoint: WeChatEndpoint::Subscribe, ..self }
    }

    pub async fn on(redis: Redis) -> Self {
        // Few buckets, so that users share them.
        Self::with_buckets(redis, 4).await
    }

    pub async fn with_buckets(redis: Redis, buckets: u16) -> Self {
        let sandbox = Sandbox::new(sandbox::Settings::default());
        sandbox.add_app(APP, SECRET).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(sandbox::serve(listener, sandbox.clone(), std::future::pending()));
        let store = Store::new(&StoreConfig { buckets, ..store_config(redis.url()) }).unwrap();
        store.prepare().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self {
            redis,
            store,
            sandbox,
            base_url,
            buckets,
            token_source: format!("secret = \"{SECRET}\""),
            app_settings: String::new(),
            waits: ["500ms", "2s", "2s"],
            endpoint: WeChatEndpoint::Send,
            folder,
        }
    }

    pub fn app(&self) -> AppId {
        AppId::parse(APP).unwrap()
    }

    /// Writes a file for a service and returns its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Writes the apps file with the timeout of a WeChat call.
    fn apps_file(&self, timeout: &str) -> String {
        let text = format!(
            "[apps.{APP}]\n{}\nbase_url = \"{}\"\ntimeout = \"{timeout}\"\nconnect_timeout = \"200ms\"\n{}",
            self.token_source, self.base_url, self.app_settings
        );
        self.file("apps.toml", &text)
    }

    /// Flags of a dispatcher with short retry and reaper intervals.
    pub fn flags(&self, extra: &[&str]) -> Vec<String> {
        let [timeout, redis_timeout, lease] = self.waits;
        // A lease must be longer than a WeChat call may take, also if the test sets the lease.
        let timeout = if extra.contains(&"--lease") && timeout == PATIENT[0] { "5s" } else { timeout };
        let apps_file = self.apps_file(timeout);
        let mut flags = ["--listen", "127.0.0.1:0", "--drain-wait", "0s"].map(String::from).to_vec();
        flags.extend(["--buckets".into(), self.buckets.to_string()]);
        flags.extend(["--redis-url".into(), self.redis.url(), "--apps-file".into(), apps_file]);
        // A flag in `extra` replaces the default.
        for pair in [
            ["--redis-timeout", redis_timeout],
            ["--lease", lease],
            ["--lease-margin", "60s"],
            ["--backoff", "5ms"],
            ["--reap-interval", "100ms"],
            ["--log", "warn"],
        ] {
            if !extra.contains(&pair[0]) {
                flags.extend(pair.map(String::from));
            }
        }
        flags.extend(extra.iter().map(ToString::to_string));
        flags
    }

    pub fn settings(&self, extra: &[&str]) -> Settings {
        Settings::read(&Args::parse_from(std::iter::once("dispatcher".to_owned()).chain(self.flags(extra)))).unwrap()
    }

    /// A dispatcher in this process.
    pub async fn dispatcher(&self) -> Running {
        self.dispatcher_with(&[]).await
    }

    pub async fn dispatcher_with(&self, extra: &[&str]) -> Running {
        let running = Running::start(self.settings(extra)).await;
        serving(connect(running.address.port()).await, true).await;
        running
    }

    /// A dispatcher as a separate process.
    pub fn process(&self, port: u16) -> Process {
        Process::start(&mut self.command(port, &[]))
    }

    /// The command that starts a dispatcher process, with further flags.
    pub fn command(&self, port: u16, extra: &[&str]) -> Command {
        // Clients must reach the dispatcher on the same port after a crash.
        let listen = format!("127.0.0.1:{port}");
        let mut flags: Vec<String> = self.flags(extra);
        flags[1] = listen;
        let mut command = Command::new(env!("CARGO_BIN_EXE_dispatcher"));
        command.args(flags);
        command
    }

    /// Users submit forms: the sandbox issues the form ids and the store gets them. Returns the form ids.
    pub async fn submit(&self, openid: &str, count: usize) -> Vec<String> {
        self.obtain((0..count).map(|_| Submission::form(openid)).collect(), Kind::FormId, 1, now()).await
    }

    /// A user pays at `at` (seconds since 1970). Returns the prepay id.
    pub async fn pay(&self, openid: &str, at: i64) -> String {
        let mut submission = Submission::prepay(openid);
        submission.submitted_at = Some(at as u64);
        self.obtain(vec![submission], Kind::PrepayId, 3, at).await.remove(0)
    }

    async fn obtain(&self, submissions: Vec<Submission>, kind: Kind, uses: u8, at: i64) -> Vec<String> {
        let openids: Vec<_> = submissions.iter().map(|submission| submission.openid.clone()).collect();
        let ids = self.sandbox.submit(APP, submissions).unwrap();
        for (openid, id) in openids.iter().zip(&ids) {
            self.collect(openid, id, kind, uses, at).await;
        }
        ids
    }

    /// Stores a credential. The sandbox may or may not know it.
    pub async fn collect(&self, openid: &str, id: &str, kind: Kind, uses: u8, at: i64) {
        let expiry = (at as u64 + LIFETIME.as_secs()) as u32;
        let openid = OpenId::parse(openid).unwrap();
        let bucket = self.store.bucket_of(&openid);
        let credential = Credential { kind, id: CredentialId::parse(id).unwrap(), uses, expiry };
        let duplicates = self.store.collect(&self.app(), bucket, &[Packed::new(openid, &credential)]).await.unwrap();
        assert!(duplicates.is_empty());
    }

    /// A user accepts a template `count` times: the sandbox knows it, and the store gets the grant.
    pub async fn accept(&self, openid: &str, template: &str, count: u16) {
        let granting = Granting { count: count.into(), ..Granting::new(openid, template) };
        self.sandbox.grant(APP, vec![granting]).unwrap();
        self.collect_grant(openid, template, GrantUses::Count(count)).await;
    }

    /// Stores a grant. The sandbox may or may not know it.
    pub async fn collect_grant(&self, openid: &str, template: &str, uses: GrantUses) {
        let (openid, template) = (OpenId::parse(openid).unwrap(), TemplateId::parse(template).unwrap());
        let bucket = self.store.bucket_of(&openid);
        let packed = Packed::grant(openid, &Grant { template, uses }, None);
        assert!(self.store.collect(&self.app(), bucket, &[packed]).await.unwrap().is_empty());
    }

    /// Number of messages that a user's grants of a template allow.
    pub async fn granted(&self, openid: &str, template: &str) -> u32 {
        let (openid, template) = (OpenId::parse(openid).unwrap(), TemplateId::parse(template).unwrap());
        let inventory = self.store.inventory(&self.app(), &openid, now(), 0).await.unwrap();
        inventory.get(&(Kind::Grant, Some(template))).map_or(0, |available| available.messages)
    }

    /// Number of messages that a user's resting credentials allow, and when the last rest ends.
    pub async fn resting(&self, openid: &str) -> (u32, u32) {
        let inventory = self.store.inventory(&self.app(), &OpenId::parse(openid).unwrap(), now(), 0).await.unwrap();
        inventory.values().fold((0, 0), |(messages, until), one| (messages + one.resting, until.max(one.resting_until)))
    }

    /// Stores form ids that the sandbox does not know.
    pub async fn collect_dead(&self, openid: &str, count: usize) {
        for _ in 0..count {
            self.collect(openid, &format!("{:032x}", rand::random::<u128>()), Kind::FormId, 1, now() - 60).await;
        }
    }

    /// Adds latency, and injects each of these faults into one call in fifty.
    pub fn inject_faults(&self, faults: &[FaultKind]) {
        let rules = faults.iter().enumerate().map(|(seed, kind)| Rule {
            probability: Some(0.02),
            seed: Some(seed as u64),
            hang_ms: (*kind == FaultKind::HangAfter).then_some(700),
            endpoint: self.endpoint,
            ..Rule::new(*kind)
        });
        self.sandbox.add_faults(rules.collect()).unwrap();
        let slow = sandbox::Settings { latency_ms: 5, jitter_ms: 10, ..self.sandbox.settings() };
        self.sandbox.set_settings(slow).unwrap();
    }

    /// The next `times` calls fail with this fault.
    pub fn fault(&self, kind: FaultKind, times: u64) {
        self.sandbox.add_faults(vec![Rule { times: Some(times), endpoint: self.endpoint, ..Rule::new(kind) }]).unwrap();
    }

    /// The next `times` calls are answered with this errcode.
    pub fn answer(&self, errcode: i32, times: u64) {
        let endpoint = self.endpoint;
        let rule = Rule { times: Some(times), errcode: Some(errcode), endpoint, ..Rule::new(FaultKind::Answer) };
        self.sandbox.add_faults(vec![rule]).unwrap();
    }

    /// Number of messages that the user's credentials allow.
    pub async fn left(&self, openid: &str) -> u32 {
        let openid = OpenId::parse(openid).unwrap();
        let inventory = self.store.inventory(&self.app(), &openid, now(), 0).await.unwrap();
        inventory.values().map(|available| available.messages).sum()
    }

    /// Asserts the invariants that hold when no message is in flight: only the `in_doubt` leases are left, the ledger
    /// matches the stock, and no message was delivered twice.
    pub async fn assert_settled(&self, in_doubt: u64) {
        let ledger = self.store.ledger(&self.app()).await.unwrap();
        assert_eq!(ledger.leased, in_doubt, "{ledger:?}");
        let stock = self.store.stock(&self.app(), now(), u64::MAX).await.unwrap();
        let ids: u64 = stock.days.values().map(|count| count.messages).sum();
        let available = ids + stock.templates.values().map(|granted| granted.messages + granted.resting).sum::<u64>();
        assert_eq!(ledger.available(), available, "{ledger:?}");
        let books = self.sandbox.books(Some(APP)).unwrap();
        assert_eq!(books.delivered_twice, 0, "{books:?}");
    }

    pub fn delivered(&self) -> u64 {
        self.sandbox.books(Some(APP)).unwrap().delivered
    }
}

/// A dispatcher in this process. It stops when this is dropped.
pub struct Running {
    pub client: DispatcherServiceClient<Channel>,
    pub address: std::net::SocketAddr,
    /// Address of the metrics.
    pub metrics: std::net::SocketAddr,
    /// Dropping the sender begins the drain.
    _stop: oneshot::Sender<()>,
}

impl Running {
    pub async fn start(settings: Settings) -> Self {
        let (listeners, [address, metrics]) = testing::listeners().await;
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(async move {
            dispatcher::run(listeners, settings, async {
                let _ = stopped.await;
            })
            .await
        });
        let client = DispatcherServiceClient::new(connect(address.port()).await);
        Self { client, address, metrics, _stop: stop }
    }

    pub async fn send(&self, request: SendTemplateRequest) -> Result<SendTemplateResponse, Status> {
        self.client.clone().send_template(request).await.map(tonic::Response::into_inner)
    }
}

/// Connects to a service that may still be starting.
pub async fn connect(port: u16) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    eventually("the service listens", Duration::from_secs(20), async || endpoint.connect().await.is_ok()).await;
    endpoint.connect_lazy()
}

/// Waits until the health check reports serving (`wanted`) or not serving.
pub async fn serving(channel: Channel, wanted: bool) {
    eventually("the health check has the expected status", Duration::from_secs(20), async || {
        let request = HealthCheckRequest { service: "formid.v1.DispatcherService".into() };
        let answer = HealthClient::new(channel.clone()).check(request).await;
        answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving) == wanted
    })
    .await;
}

pub fn any_port() -> u16 {
    free_port()
}

/// A message to a user. Messages differ by their text.
pub fn message(openid: &str, text: &str) -> SendTemplateRequest {
    SendTemplateRequest {
        app_id: APP.into(),
        openid: openid.into(),
        template_id: "template-1".into(),
        data: HashMap::from([("keyword1".into(), TemplateValue { value: text.into(), color: String::new() })]),
        ..Default::default()
    }
}

/// The same message with a request id, so that the request can be repeated.
pub fn request(openid: &str, text: &str, request_id: &str) -> SendTemplateRequest {
    SendTemplateRequest { request_id: request_id.into(), ..message(openid, text) }
}

/// The reason of an error.
pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "formid");
    info.reason.clone()
}

/// A metadata value of an error.
pub fn fact(status: &Status, key: &str) -> Option<String> {
    status.get_error_details().error_info().and_then(|info| info.metadata.get(key).cloned())
}

/// The fields that an error names.
pub fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    details
        .bad_request()
        .map(|bad| bad.field_violations.iter().map(|field| field.field.clone()).collect())
        .unwrap_or_default()
}
