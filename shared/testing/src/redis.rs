//! A Redis of the test's own: own ports, own folders, gone with the test. One server, a cluster, or a master under
//! Sentinels.

use std::time::Duration;

use shared::store::credentials::KEEP_ONCE;
use shared::store::{RedisConfig, RedisUrl, Store, StoreConfig};

use crate::server::{Server, start_all, start_on_free_ports, wait};
use crate::tls::Authority;
use crate::{cluster, sentinel};

/// Keeps nothing on disk.
const FLEETING: [&str; 4] = ["--save", "", "--appendonly", "no"];

/// Survives a kill: append-only, fsync at each write.
const DURABLE: [&str; 6] = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

/// How long a master may be silent where a test does not kill it: longer than a busy machine is.
const PATIENT: Duration = Duration::from_secs(10);

/// The same where a test does.
const QUICK: Duration = Duration::from_secs(2);

/// A running Redis.
#[derive(Debug)]
pub struct Redis {
    shape: Shape,
    servers: Vec<Server>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Alone,
    /// Three masters and three replicas.
    Cluster,
    /// A master, a replica, three Sentinels.
    Sentinel,
}

impl Redis {
    /// Starts one that keeps nothing on disk; of the kind that FORMID_TEST_REDIS names: `alone` unless it says `cluster` or
    /// `sentinel`.
    pub fn start() -> Self {
        Self::start_with(&FLEETING)
    }

    /// Starts one that survives a kill.
    pub fn durable() -> Self {
        Self::start_with(&DURABLE)
    }

    /// Starts one with settings as redis-server takes them.
    pub fn start_with(settings: &[&str]) -> Self {
        match std::env::var("FORMID_TEST_REDIS").as_deref() {
            Err(_) | Ok("" | "alone") => Self::alone_with(settings),
            Ok("cluster") => Self::start_as(Shape::Cluster, settings, PATIENT),
            Ok("sentinel") => Self::start_as(Shape::Sentinel, settings, PATIENT),
            Ok(other) => panic!("FORMID_TEST_REDIS is {other}, but must be alone, cluster or sentinel"),
        }
    }

    /// One server, whatever the environment says, that survives a kill.
    pub fn durable_alone() -> Self {
        Self::alone_with(&DURABLE)
    }

    /// One server, whatever the environment says: for tests that look into Redis by themselves.
    pub fn alone() -> Self {
        Self::alone_with(&FLEETING)
    }

    /// The same with settings.
    pub fn alone_with(settings: &[&str]) -> Self {
        Self::start_as(Shape::Alone, settings, PATIENT)
    }

    /// Starts a cluster of three masters with a replica each, which takes over two seconds after its master is silent.
    pub fn cluster() -> Self {
        Self::start_as(Shape::Cluster, &FLEETING, QUICK).with_replicas()
    }

    /// Starts a master and a replica under three Sentinels, which replace the master two seconds after it is silent.
    pub fn sentinel() -> Self {
        Self::start_as(Shape::Sentinel, &FLEETING, QUICK).with_replicas()
    }

    /// Waits until each master passes on what it does, which begins up to a second after its replica has all.
    fn with_replicas(self) -> Self {
        for master in self.servers.iter().filter(|server| server.ask(&["ROLE"]).contains("\r\nmaster\r\n")) {
            wait("replicas are online", || master.has_replica());
        }
        self
    }

    /// A cluster whose other masters go on while one is away.
    pub fn cluster_that_goes_on() -> Self {
        let settings = [&FLEETING[..], &["--cluster-require-full-coverage", "no"]].concat();
        Self::start_as(Shape::Cluster, &settings, QUICK).with_replicas()
    }

    /// One server that is encrypted.
    pub fn encrypted(by: &Authority) -> Self {
        let settings = FLEETING.map(str::to_owned).to_vec();
        let make = |[port, tls_port]: [u16; 2]| vec![Server::new(port, settings.clone()).encrypted(tls_port, by)];
        Self { shape: Shape::Alone, servers: start_on_free_ports(make) }
    }

    /// A cluster that is encrypted.
    pub fn encrypted_cluster(by: &Authority) -> Self {
        let servers = cluster::start(&FLEETING.map(str::to_owned), QUICK, Some(by));
        Self { shape: Shape::Cluster, servers }
    }

    fn start_as(shape: Shape, settings: &[&str], silence: Duration) -> Self {
        let settings: Vec<_> = settings.iter().map(ToString::to_string).collect();
        let servers = match shape {
            Shape::Alone => start_on_free_ports(|[port]| vec![Server::new(port, settings.clone())]),
            Shape::Cluster => cluster::start(&settings, silence, None),
            Shape::Sentinel => sentinel::start(&settings, silence),
        };
        Self { shape, servers }
    }

    /// Kills all of it, as a loss of power would.
    pub fn kill(&mut self) {
        self.servers.iter_mut().for_each(Server::kill);
    }

    /// Starts what is down again, on the same ports and folders; waits until it answers.
    pub fn resume(&mut self) {
        for server in self.servers.iter_mut().filter(|server| !server.is_there()) {
            // The system gives the port to connections too, for a moment.
            wait("redis-server starts again", || start_all(std::slice::from_mut(server)));
        }
        if self.shape == Shape::Cluster {
            wait("the cluster is whole again", || self.servers.iter().all(cluster::is_ready));
        }
    }

    /// The server that takes commands for a key now; waits until there is one.
    pub fn master(&mut self, key: &str) -> &mut Server {
        let mut found = None;
        wait("there is a master", || {
            found = self.servers.iter().position(|server| server.is_master_of(key));
            found.is_some()
        });
        &mut self.servers[found.unwrap_or_default()]
    }

    /// Waits until the master of a key has a replica that knows all that was written so far, and returns that master.
    ///
    /// Which server that is may change meanwhile: on a busy machine a master that did not answer in time is replaced, and
    /// takes itself for the master until the Sentinels or the other nodes tell it.
    pub fn replicated_master(&mut self, key: &str) -> &mut Server {
        let mut found = None;
        wait("the master has a replica with all data", || {
            found = self.servers.iter().position(|server| server.is_master_of(key) && server.is_replicated(key));
            found.is_some()
        });
        &mut self.servers[found.unwrap_or_default()]
    }

    /// Where it is.
    pub fn url(&self) -> String {
        let at = |server: &Server| format!("127.0.0.1:{}", server.tls_port.unwrap_or(server.port));
        let scheme = if self.servers[0].tls_port.is_some() { "rediss" } else { "redis" };
        let list = |servers: &[Server]| servers.iter().map(at).collect::<Vec<_>>().join(",");
        match self.shape {
            Shape::Alone => format!("{scheme}://{}", at(&self.servers[0])),
            // Any of its nodes would do.
            Shape::Cluster => format!("{scheme}-cluster://{}", list(&self.servers)),
            Shape::Sentinel => format!("{scheme}-sentinel://{}/{}", list(&self.servers[2..]), sentinel::MASTER),
        }
    }

    /// Runs a command on every server but the Sentinels.
    pub fn everywhere(&self, command: &str) {
        for server in self.servers.iter().filter(|server| !server.ask(&["ROLE"]).contains("sentinel")) {
            let answer = server.ask(&[command]);
            assert!(!answer.is_empty() && !answer.starts_with('-'), "{command}: {answer}");
        }
    }

    /// All its servers.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// A store on it with 4 buckets, so that users share them, and the usual cap.
    pub async fn store(&self) -> Store {
        let store = Store::new(&store_config(self.url())).unwrap();
        store.prepare().await.unwrap();
        store
    }
}

/// The settings of [`Redis::store`].
pub fn store_config(url: String) -> StoreConfig {
    let url = RedisUrl::parse(&url, None).unwrap();
    let redis = RedisConfig { url, connections: 2, timeout: Duration::from_secs(60) };
    StoreConfig { redis, buckets: 4, cap: 120, keep_once: KEEP_ONCE }
}
