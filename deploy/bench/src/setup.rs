//! The programs that a measurement needs, and its users and form ids.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use domain::dependency::Dependency as _;
use domain::{AppId, Credential, CredentialId, Grant, GrantUses, Kind, LIFETIME, OpenId, TemplateId};
use store::credentials::{MAX_COLLECT, Packed};
use store::{Store, StoreConfig};
use testing::{Process, Redis, eventually, free_port};
use tonic::transport::{Channel, Endpoint};

pub use crate::bare::{APP, SECRET};

/// Number of connections to a service.
pub const CONNECTIONS: usize = 4;

/// A program of this workspace, built into the same folder as the benchmark.
pub fn program(name: &str) -> Command {
    let path: PathBuf = std::env::current_exe().unwrap().with_file_name(name);
    assert!(path.exists(), "{} does not exist: deploy/bench.sh builds it", path.display());
    let mut command = Command::new(path);
    command.env("FORMID_LOG", "warn").env("SANDBOX_LOG", "warn");
    command
}

/// A 32-digit hex form id, never the same twice.
pub fn form_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The openid of a user by number, as long as WeChat's openids.
pub fn openid(user: usize) -> String {
    format!("oBENCH-{user:021}")
}

/// A form id as the collector would store it.
pub fn packed(user: usize, form_id: &str) -> Packed {
    let expiry = (testing::now() as u64 + LIFETIME.as_secs()) as u32;
    let id = CredentialId::parse(form_id).unwrap();
    Packed::new(OpenId::parse(openid(user)).unwrap(), &Credential { kind: Kind::FormId, id, uses: 1, expiry })
}

/// A grant of a user as the collector would store it.
pub fn granted(user: usize, template: &str) -> Packed {
    let grant = Grant { template: TemplateId::parse(template).unwrap(), uses: GrantUses::Count(1) };
    Packed::grant(OpenId::parse(openid(user)).unwrap(), &grant, None)
}

/// Stores credentials as the collector does, with its usual settings.
pub async fn fill(redis: &Redis, credentials: impl Iterator<Item = Packed>) {
    let store = Store::new(&StoreConfig { buckets: 512, ..testing::store_config(redis.url()) }).unwrap();
    store.prepare().await.unwrap();
    let app = AppId::parse(APP).unwrap();
    let mut buckets = BTreeMap::<_, Vec<_>>::new();
    for credential in credentials {
        buckets.entry(store.bucket_of(&credential.openid)).or_default().push(credential);
    }
    for (bucket, credentials) in buckets {
        for part in credentials.chunks(MAX_COLLECT) {
            store.collect(&app, bucket, part).await.unwrap();
        }
    }
}

/// Connects to a service that was just started.
pub async fn channels(port: u16, count: usize) -> Vec<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().tcp_nodelay(true);
    eventually("the service listens", Duration::from_secs(20), async || endpoint.connect().await.is_ok()).await;
    let mut channels = Vec::new();
    for _ in 0..count {
        channels.push(endpoint.connect().await.unwrap());
    }
    channels
}

/// Starts a program, which ends when the returned value is dropped.
pub fn start(mut command: Command) -> Process {
    Process::start(&mut command)
}

/// Starts a Redis with persistence, as in production.
pub fn redis() -> Redis {
    Redis::alone_with(&["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"])
}

/// Starts a dispatcher for the app. Returns it, connections to it, and its apps file.
pub async fn dispatcher(
    redis: &Redis,
    base_url: &str,
    flags: &[&str],
) -> (Process, Vec<Channel>, tempfile::NamedTempFile) {
    let mut apps = tempfile::NamedTempFile::new().unwrap();
    writeln!(apps, "[apps.{APP}]\nsecret = \"{SECRET}\"\nbase_url = \"{base_url}\"").unwrap();
    let port = free_port();
    let mut command = program("dispatcher");
    command
        .args(["--listen", &format!("127.0.0.1:{port}"), "--redis-url", &redis.url(), "--apps-file"])
        .arg(apps.path())
        .args(flags);
    (start(command), channels(port, CONNECTIONS).await, apps)
}

/// Submits a form of each user to the sandbox. Returns the form ids.
pub async fn submit(base_url: &str, count: usize) -> Vec<String> {
    let ids: Vec<String> = (0..count).map(|_| form_id()).collect();
    let submission = |(user, id)| serde_json::json!({"openid": openid(user), "kind": "form", "id": id});
    tell(base_url, "submissions", ids.iter().enumerate().map(submission).collect()).await;
    ids
}

/// Adds a grant of each user to the sandbox.
pub async fn accept(base_url: &str, template: &str, count: usize) {
    let grant = |user| serde_json::json!({"openid": openid(user), "template_id": template});
    tell(base_url, "grants", (0..count).map(grant).collect()).await;
}

/// Changes settings of the sandbox.
pub async fn change_sandbox(base_url: &str, settings: &serde_json::Value) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = http.put(format!("{base_url}/sandbox/settings")).header("content-type", "application/json");
    assert!(
        request.body(settings.to_string()).send().await.unwrap().status().is_success(),
        "the sandbox refused settings"
    );
}

/// Posts what users do to the sandbox, in parts.
async fn tell(base_url: &str, what: &str, all: Vec<serde_json::Value>) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for part in all.chunks(10_000) {
        let body = serde_json::json!({"app_id": APP, what: part}).to_string();
        let request =
            http.post(format!("{base_url}/sandbox/{what}")).header("content-type", "application/json").body(body);
        assert!(request.send().await.unwrap().status().is_success(), "the sandbox refused {what}");
    }
}

/// Starts a sandbox. Returns it and its base URL.
pub async fn sandbox() -> (Process, String) {
    let port = free_port();
    let mut command = program("sandbox");
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--app", &format!("{APP}={SECRET}")]);
    let process = start(command);
    let base_url = format!("http://127.0.0.1:{port}");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    eventually("the sandbox listens", Duration::from_secs(20), async || {
        http.get(format!("{base_url}/sandbox/books")).send().await.is_ok()
    })
    .await;
    (process, base_url)
}
