//! A fixture: a Redis, a sandbox in place of WeChat, two collectors, two dispatchers, and the clients. All are
//! processes except for the sandbox.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sandbox::{Books, Sandbox, Submission};
use server::proto::collector_service_client::CollectorServiceClient;
use server::proto::{Credential, GetStockRequest, Ledger};
use testing::{Process, Redis, eventually, free_port};
use tokio::net::TcpListener;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::load::form;

pub const APP: &str = "wx0123456789abcdef";
const SECRET: &str = "the-secret-of-the-app";
const SOON: Duration = Duration::from_secs(30);

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").canonicalize().unwrap()
}

/// Content of a file of the checkout.
pub fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A Python with the packages that the client requires, which deploy/test.sh creates. `None` if they are not available.
pub fn python() -> Option<String> {
    let python = std::env::var("FORMID_PYTHON").unwrap_or_default();
    assert!(
        !python.is_empty(),
        "FORMID_PYTHON is not set to a Python with the client's packages; ./deploy/test.sh sets it"
    );
    if python == "none" {
        eprintln!("skipped: no Python with the client's packages is available");
        return None;
    }
    Some(python)
}

pub struct Fixture {
    pub sandbox: Sandbox,
    redis: Redis,
    folder: tempfile::TempDir,
    flags: Flags,
    collectors: [Replica; 2],
    dispatchers: [Replica; 2],
}

/// A port, and the process that listens on it. `None` while it is down.
type Replica = (u16, Option<Process>);

/// Additional flags of the services.
#[derive(Default)]
struct Flags {
    both: Vec<String>,
    dispatchers: Vec<String>,
}

/// One of the two services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Collector,
    Dispatcher,
}

impl Fixture {
    /// Starts with additional flags for the dispatchers.
    pub async fn start(flags: &[&str]) -> Self {
        Self::start_with(Flags { dispatchers: owned(flags), ..Flags::default() }).await
    }

    /// Starts with additional flags for both services.
    pub async fn start_both(flags: &[&str]) -> Self {
        Self::start_with(Flags { both: owned(flags), ..Flags::default() }).await
    }

    async fn start_with(flags: Flags) -> Self {
        let redis = Redis::start();
        let sandbox = Sandbox::new(sandbox::Settings::default());
        sandbox.add_app(APP, SECRET).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(sandbox::serve(listener, sandbox.clone(), std::future::pending()));
        let folder = tempfile::tempdir().unwrap();
        // Long enough for a busy machine, unless the test needs a short lease.
        let timeout = if flags.dispatchers.iter().any(|flag| flag == "--lease") { "1s" } else { "20s" };
        let apps = format!(
            "[apps.{APP}]\nsecret = \"{SECRET}\"\nbase_url = \"{base_url}\"\ntimeout = \"{timeout}\"\nconnect_timeout = \"1s\"\n"
        );
        std::fs::write(folder.path().join("apps.toml"), apps).unwrap();
        let down = || [(); 2].map(|()| (free_port(), None));
        let mut fixture = Self { collectors: down(), dispatchers: down(), sandbox, redis, folder, flags };
        for service in [Service::Collector, Service::Dispatcher] {
            fixture.start_replica(service, 0).await;
            fixture.start_replica(service, 1).await;
        }
        fixture
    }

    fn replica(&mut self, service: Service, which: usize) -> &mut Replica {
        match service {
            Service::Collector => &mut self.collectors[which],
            Service::Dispatcher => &mut self.dispatchers[which],
        }
    }

    /// Starts a replica, always on its own port. Returns once it is ready.
    pub async fn start_replica(&mut self, service: Service, which: usize) {
        let apps_file = self.folder.path().join("apps.toml").display().to_string();
        let (name, own) = match service {
            Service::Collector => ("collector", vec!["--apps".to_owned(), APP.to_owned()]),
            Service::Dispatcher => {
                let apps = ["--apps-file".to_owned(), apps_file];
                ("dispatcher", [&apps[..], &self.flags.dispatchers].concat())
            }
        };
        let flags = [&own[..], &self.flags.both].concat();
        let port = self.replica(service, which).0;
        self.replica(service, which).1 = Some(start(name, port, &self.redis, &flags));
        serving(port).await;
    }

    /// Kills a replica.
    pub fn kill(&mut self, service: Service, which: usize) {
        self.replica(service, which).1 = None;
    }

    /// Stops a replica gracefully. Returns once it has drained.
    pub async fn stop(&mut self, service: Service, which: usize) {
        let process = self.replica(service, which).1.as_mut().expect("the replica is running");
        process.signal("TERM");
        assert_eq!(process.wait(SOON).await, Some(0), "the {service:?} did not exit with 0");
    }

    /// Addresses of both replicas.
    pub fn addresses(&self, service: Service) -> [String; 2] {
        let replicas = match service {
            Service::Collector => &self.collectors,
            Service::Dispatcher => &self.dispatchers,
        };
        replicas.each_ref().map(|(port, _)| format!("127.0.0.1:{port}"))
    }

    /// Input lines for the clients: this many orders, each of a user who has submitted a form.
    pub fn orders(&self, count: usize) -> Vec<String> {
        let users: Vec<_> = (0..count).map(|number| format!("oUser{number}")).collect();
        let ids = self.sandbox.submit(APP, users.iter().map(Submission::form).collect()).unwrap();
        users.iter().zip(ids).enumerate().map(|(number, (user, id))| format!("{number} {user} {id}\n")).collect()
    }

    /// Users, and the form ids that each has submitted.
    pub fn submissions(&self, users: usize, each: usize) -> (Vec<String>, Vec<Credential>) {
        let users: Vec<_> = (0..users).map(|number| format!("oUser{number}")).collect();
        let submitters: Vec<_> = users.iter().flat_map(|user| std::iter::repeat_n(user, each)).collect();
        let submissions = submitters.iter().map(|user| Submission::form(user.as_str())).collect();
        let ids = self.sandbox.submit(APP, submissions).unwrap();
        let rights = submitters.iter().zip(ids).map(|(user, id)| form((*user).clone(), id)).collect();
        (users, rights)
    }

    /// The ledger of the app.
    pub async fn ledger(&self) -> Ledger {
        let address = format!("http://{}", self.addresses(Service::Collector)[0]);
        let mut client = CollectorServiceClient::connect(address).await.unwrap();
        let stock = client.get_stock(GetStockRequest { app_id: APP.into() }).await.unwrap();
        stock.into_inner().ledger.unwrap()
    }

    /// The Rust client.
    pub fn rust(&self) -> Command {
        self.rust_by(&self.addresses(Service::Dispatcher).join(","))
    }

    /// The Rust client with dispatchers at these addresses.
    pub fn rust_by(&self, dispatchers: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_example-client"));
        command.args(["--app", APP, "--collector", &self.addresses(Service::Collector).join(",")]);
        command.args(["--dispatcher", dispatchers]);
        command
    }

    /// The Python client, if a Python is available.
    pub fn python(&self) -> Option<Command> {
        self.python_by(&self.addresses(Service::Dispatcher).join(","))
    }

    /// The Python client with dispatchers at these addresses.
    pub fn python_by(&self, dispatchers: &str) -> Option<Command> {
        let mut command = Command::new(python()?);
        command.arg(root().join("proto/clients/python/client.py"));
        let collectors = self.addresses(Service::Collector).join(",");
        command.args(["--app", APP, "--collector", &format!("ipv4:{collectors}")]);
        command.args(["--dispatcher", &format!("ipv4:{dispatchers}")]);
        Some(command)
    }

    pub fn books(&self) -> Books {
        self.sandbox.books(Some(APP)).unwrap()
    }

    /// Waits until this many messages are delivered.
    pub async fn delivered(&self, count: u64) {
        eventually("messages arrive", SOON, async || self.books().delivered >= count).await;
    }
}

fn owned(flags: &[&str]) -> Vec<String> {
    flags.iter().map(ToString::to_string).collect()
}

/// Starts a service of this build. Its program is in the same folder as the clients' unless only they were built.
fn start(name: &str, port: u16, redis: &Redis, flags: &[String]) -> Process {
    let program = Path::new(env!("CARGO_BIN_EXE_example-client")).with_file_name(name);
    assert!(program.is_file(), "{} does not exist: run cargo build --workspace --bins", program.display());
    let mut command = Command::new(program);
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--redis-url", &redis.url(), "--log", "warn"]);
    command.args(["--redis-timeout", "20s"]);
    Process::start(command.args(flags))
}

async fn serving(port: u16) {
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect_lazy();
    eventually("the service is healthy", SOON, async || {
        let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest { service: String::new() }).await;
        answer.is_ok_and(|answer| answer.into_inner().status == 1)
    })
    .await;
}

/// A running client.
pub struct Client {
    enough: Arc<AtomicBool>,
    feeder: JoinHandle<usize>,
    runner: JoinHandle<Output>,
}

/// The result of a client.
pub struct Ended {
    /// Whether it exited with 0.
    pub well: bool,
    /// Number of input lines that it was given.
    pub given: usize,
    /// Lines of its standard output, sorted.
    pub lines: Vec<String>,
    /// Its standard error.
    pub told: String,
}

impl Client {
    /// Starts a client, and gives it one line after each `pause`.
    pub fn start(mut command: Command, lines: Vec<String>, pause: Duration) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let enough = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&enough);
        let feeder = std::thread::spawn(move || {
            let begun = Instant::now();
            for (number, line) in lines.iter().enumerate() {
                std::thread::sleep((pause * number as u32).saturating_sub(begun.elapsed()));
                // A write fails if the client has exited. Its standard error then says why.
                if stop.load(Ordering::Relaxed) || input.write_all(line.as_bytes()).is_err() {
                    return number;
                }
            }
            lines.len()
        });
        let runner = std::thread::spawn(move || child.wait_with_output().unwrap());
        Self { enough, feeder, runner }
    }

    /// Stops giving it lines.
    pub fn enough(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// Waits until the client has exited.
    pub async fn end(self) -> Ended {
        eventually("the client ends", Duration::from_secs(90), async || self.runner.is_finished()).await;
        let (given, output) = (self.feeder.join().unwrap(), self.runner.join().unwrap());
        let [printed, told] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        let mut lines: Vec<_> = printed.lines().map(str::to_owned).collect();
        lines.sort();
        Ended { well: output.status.success(), given, lines, told }
    }
}

/// The output of a client that delivered all of `count` orders.
pub fn all_delivered(count: usize) -> Vec<String> {
    let mut lines: Vec<_> = (0..count).map(|number| format!("{number}: delivered")).collect();
    lines.sort();
    lines
}
