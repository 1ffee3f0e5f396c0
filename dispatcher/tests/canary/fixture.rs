//! Runs both services as processes with full logging, and collects all that they print, answer and export.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use server::proto::collector_service_client::CollectorServiceClient;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use testing::{CallersFile, Process, TraceCollector, eventually, http};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::lying_upstream::TOKEN_LIES;
use crate::secrets::{BEARER, CALLBACK_TOKEN, EXPORTER, OPENID, PROXY_PASSWORD, SECRET, SERVER_KEY, TOKEN, found};

pub const SOON: Duration = Duration::from_secs(30);

/// The app whose token endpoint works.
pub const APP: &str = "wx0000000000000000";
/// An app with an unknown WeChat host name.
pub const NOWHERE: &str = "wx1111111111111111";
/// An app whose WeChat refuses connections.
pub const CLOSED: &str = "wx2222222222222222";

/// A free port below the range of ephemeral ports, from which many connections take their local port while services
/// start.
pub fn port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 60 * 200;
    loop {
        let port = 20_000 + (first + TRIED.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The app id for one way in which the token endpoint answers, for each of the two token endpoints.
pub fn app_of(lie: usize, endpoint: usize) -> String {
    format!("wx33333333{endpoint:04}{lie:04}")
}

/// The app id of one of [`SOURCES`] apps with another source of tokens, or with a proxy.
pub fn with_source(number: usize) -> String {
    format!("wx44444444{number:08}")
}

pub const SOURCES: usize = 1 + 2 * TOKEN_LIES.len() + 5;

/// The permissions of a caller that may call everything for all apps.
pub const EVERYTHING: &str =
    "apps = ['*']\npermissions = ['collect', 'read', 'erase', 'send', 'broadcast', 'broadcast_all', 'operate']";

pub type Metadata = fn(Request<()>) -> Result<Request<()>, Status>;
type Connection = InterceptedService<Channel, Metadata>;
pub type Dispatcher = DispatcherServiceClient<Connection>;
pub type Collector = CollectorServiceClient<Connection>;

/// Collects all output of the services.
pub struct Fixture {
    pub traces: TraceCollector,
    pub format: &'static str,
    wechat: String,
    /// A proxy that refuses, and echoes the request.
    quoting_proxy: String,
    folder: tempfile::TempDir,
    callers: CallersFile,
    /// Secrets that are generated during the test, in addition to the constants in `secrets`.
    made: Mutex<Vec<(&'static str, String)>>,
    seen: Mutex<Vec<(String, Vec<u8>)>>,
    pages: Mutex<Vec<String>>,
    metrics: Mutex<Vec<u16>>,
    logs: Mutex<Vec<PathBuf>>,
}

impl Fixture {
    pub async fn new(format: &'static str, wechat: String) -> Self {
        let fixture = Self {
            traces: TraceCollector::start().await,
            format,
            wechat,
            quoting_proxy: quoting_proxy().await,
            folder: tempfile::tempdir().unwrap(),
            callers: CallersFile::new(&[("everything", &format!("token_sha256 = ['TOKEN({BEARER})']\n{EVERYTHING}"))]),
            made: Mutex::default(),
            seen: Mutex::default(),
            pages: Mutex::default(),
            metrics: Mutex::default(),
            logs: Mutex::default(),
        };
        fixture.keep_hashes(&fixture.callers);
        fixture
    }

    /// Adds a secret to search for.
    pub fn keep_secret(&self, what: &'static str, secret: &str) {
        self.made.lock().unwrap().push((what, secret.to_owned()));
    }

    /// Adds a private key: no line of it may be found.
    pub fn keep_key(&self, pem: &str) {
        let lines = pem.lines().filter(|line| line.len() > 16 && !line.starts_with("-----"));
        lines.for_each(|line| self.keep_secret("a private key", line));
    }

    /// Adds the token hashes of a callers file.
    pub fn keep_hashes(&self, callers: &CallersFile) {
        let text = std::fs::read_to_string(callers.path()).unwrap();
        for hash in text.split('\'').filter(|part| part.len() == 64) {
            self.keep_secret("the hash of a caller's token", hash);
            self.keep_secret("the hash of a caller's token", &hash.to_uppercase());
        }
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn log(&self, name: &str) -> PathBuf {
        let mut logs = self.logs.lock().unwrap();
        let path = self.folder.path().join(format!("{name}-{}.log", logs.len()));
        logs.push(path.clone());
        path
    }

    /// Starts a dispatcher with these flags and the common ones.
    pub fn dispatcher(&self, flags: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dispatcher"));
        command.args(self.flags(flags)).env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization={EXPORTER}"));
        Process::start_printing(&mut command, &self.log("dispatcher"))
    }

    /// Starts a collector: this test binary, which runs `collector_process` only.
    pub fn collector(&self, flags: &[&str]) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "collector_process", "--ignored", "--nocapture"]);
        command.env("CANARY_COLLECTOR", self.flags(flags).join("\n"));
        command.env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization={EXPORTER}"));
        Process::start_printing(&mut command, &self.log("collector"))
    }

    fn flags(&self, flags: &[&str]) -> Vec<String> {
        let (traces, port, [callers, file]) = (self.traces.url(), port(), self.callers.flags());
        self.metrics.lock().unwrap().push(port);
        let metrics = format!("127.0.0.1:{port}");
        let common = ["--log", "trace", "--log-format", self.format, "--metrics-listen", &metrics];
        let usual = ["--drain-wait", "0s", "--drain-timeout", "1s", "--buckets", "4", "--redis-timeout", "1s"];
        let mut all: Vec<String> = common.iter().chain(&usual).chain(flags).map(ToString::to_string).collect();
        for (flag, value) in [("--otlp-endpoint", traces), (&callers, file)] {
            if !flags.contains(&flag) {
                all.extend([flag.to_owned(), value]);
            }
        }
        all
    }

    /// Reads the metrics pages of all processes that run, and requests another path of the same servers.
    pub async fn read_pages(&self) {
        let ports = self.metrics.lock().unwrap().clone();
        for address in ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))) {
            for path in ["/metrics".to_owned(), format!("/{OPENID}?access_token={BEARER}")] {
                if let Ok((head, body)) = http(address, "GET", &path).await {
                    self.pages.lock().unwrap().push(format!("{head}{body}"));
                }
            }
        }
    }

    /// All metrics pages that were read.
    pub fn pages(&self) -> String {
        self.pages.lock().unwrap().concat()
    }

    /// The apps file with an app for each failure of WeChat.
    pub fn apps_file(&self) -> String {
        let mut text = String::new();
        let mut app = |id: &str, base_url: &str, token: &str| {
            text += &format!(
                "[apps.{id}]\nsecret = \"{SECRET}\"\nbase_url = \"{base_url}\"\ntoken = \"{token}\"\n\
                 timeout = \"500ms\"\nconnect_timeout = \"300ms\"\n"
            );
        };
        app(APP, &self.wechat, "stable_token");
        app(NOWHERE, "http://no-such-host.invalid", "token");
        app(CLOSED, &format!("http://127.0.0.1:{}", port()), "token");
        for lie in 0..TOKEN_LIES.len() {
            for (endpoint, token) in ["stable_token", "token"].into_iter().enumerate() {
                app(&app_of(lie, endpoint), &format!("{}/{lie}", self.wechat), token);
            }
        }
        text += &self.apps_with_other_sources();
        self.file("apps.toml", &text)
    }

    /// Apps whose tokens come from elsewhere, and apps with a proxy. All of them fail except the first.
    fn apps_with_other_sources(&self) -> String {
        let headers = self.file("token-server-headers", &format!("authorization: Bearer {SERVER_KEY}\n"));
        let server = |place: &str, method: &str| {
            format!(
                "token_url = \"{}/{place}/tokens?key={SERVER_KEY}\"\ntoken_method = \"{method}\"\n\
                 token_headers_file = {headers:?}\ntoken_report = \"invalid\"\nbase_url = \"{}\"\n",
                self.wechat, self.wechat
            )
        };
        let file = |name: &str, content: &str| {
            format!("token_file = {:?}\nbase_url = \"{}\"\n", self.file(name, content), self.wechat)
        };
        let proxied = |proxy: &str| {
            format!(
                "secret = \"{SECRET}\"\nbase_url = \"https://no-such-host.invalid\"\n\
                 proxy = \"http://user:{PROXY_PASSWORD}@{proxy}\"\n"
            )
        };
        let proxy_file = self.file("proxy", &format!("http://user:{PROXY_PASSWORD}@{}\n", self.quoting_proxy));
        let mut apps = vec![server("fine", "GET")];
        let lies = (0..TOKEN_LIES.len()).flat_map(|lie| ["GET", "POST"].map(|method| server(&lie.to_string(), method)));
        apps.extend(lies);
        apps.push(file("token", &format!("{TOKEN} {TOKEN}")));
        apps.push(format!("token_file = \"/does/not/exist\"\nbase_url = \"{}\"\n", self.wechat));
        apps.push(proxied(self.wechat.trim_start_matches("http://")));
        apps.push(proxied(&format!("127.0.0.1:{}", port())));
        apps.push(format!(
            "secret = \"{SECRET}\"\nbase_url = \"https://no-such-host.invalid\"\nproxy_file = {proxy_file:?}\n"
        ));
        let waits = "timeout = \"500ms\"\nconnect_timeout = \"300ms\"\n";
        apps.iter().enumerate().map(|(number, app)| format!("[apps.{}]\n{app}{waits}", with_source(number))).collect()
    }

    pub fn callback_tokens(&self) -> String {
        self.file("callback-tokens.toml", &format!("[callback_tokens]\n{APP} = \"{CALLBACK_TOKEN}\"\n"))
    }

    /// Records an answer: of a failure, all that the caller receives.
    pub fn note<T>(&self, what: &str, answer: Result<T, Status>) -> Result<T, Status> {
        if let Err(status) = &answer {
            let mut bytes = format!("{status:?} {status} {:?}", status.metadata()).into_bytes();
            bytes.extend_from_slice(status.message().as_bytes());
            bytes.extend_from_slice(status.details());
            self.seen.lock().unwrap().push((format!("the status of {what}"), bytes));
        }
        answer
    }

    /// All that the processes printed so far.
    pub fn printed(&self) -> String {
        let logs = self.logs.lock().unwrap();
        logs.iter().map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()).collect()
    }

    /// Number of failures that callers received.
    pub fn failures(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// All leaks that are found, at most one for each kind of secret and kind of output.
    pub fn leaks(&self) -> Vec<String> {
        let (mut leaks, made) = (BTreeMap::new(), self.made.lock().unwrap());
        let mut search = |place: &str, bytes: &[u8]| {
            for (what, around) in found(bytes, &made) {
                leaks.entry(format!("{what} in {place}")).or_insert(around);
            }
        };
        for path in &*self.logs.lock().unwrap() {
            let name = path.file_name().unwrap().to_string_lossy();
            search(&format!("the log of a {}", name.split('-').next().unwrap()), &std::fs::read(path).unwrap());
        }
        for (what, bytes) in &*self.seen.lock().unwrap() {
            search(what, bytes);
        }
        search("a metrics page", self.pages().as_bytes());
        for export in self.traces.exports() {
            search("a trace", &prost::Message::encode_to_vec(&export));
        }
        leaks.into_iter().map(|(place, around)| format!("{place}: ...{around}...")).collect()
    }
}

async fn quoting_proxy() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or_default();
            let request = String::from_utf8_lossy(&request[..length]).replace("\r\n", " ");
            let head = format!("HTTP/1.1 407 {request}\r\nx-quoted: {request} {PROXY_PASSWORD}\r\n");
            let _ = stream.write_all(format!("{head}content-length: 0\r\n\r\n").as_bytes()).await;
        }
    });
    address
}

/// Callers send their token, and a header of their own.
fn with_metadata(mut request: Request<()>) -> Result<Request<()>, Status> {
    let metadata = request.metadata_mut();
    metadata.insert("authorization", format!("Bearer {BEARER}").parse().unwrap());
    metadata.insert("x-request-id", BEARER.parse().unwrap());
    Ok(request)
}

async fn channel(port: u16) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", SocketAddr::from(([127, 0, 0, 1], port)))).unwrap();
    eventually("the service listens", SOON, async || endpoint.connect().await.is_ok()).await;
    endpoint.connect_lazy()
}

/// Waits until the health check reports serving (`wanted`) or not serving.
pub async fn serving(port: u16, wanted: bool) {
    let channel = channel(port).await;
    eventually("the health check has the expected status", SOON, async || {
        let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
        answer.is_ok_and(|answer| answer.into_inner().status == 1) == wanted
    })
    .await;
}

pub async fn dispatcher(port: u16) -> Dispatcher {
    DispatcherServiceClient::with_interceptor(channel(port).await, with_metadata)
}

pub async fn collector(port: u16) -> Collector {
    CollectorServiceClient::with_interceptor(channel(port).await, with_metadata)
}
