//! A Redis for one test, with its own ports and directories, removed with the test: one server, a cluster, or a master
//! with Sentinels.

use std::time::Duration;

use domain::dependency::Dependency as _;
use store::retention::KEEP_ONCE;
use store::{RedisConfig, RedisUrl, Store, StoreConfig};

use crate::server::{Server, start_all, start_on_free_ports, wait};
use crate::tls::Authority;
use crate::{cluster, sentinel};

/// Settings: nothing is kept on disk.
const FLEETING: [&str; 4] = ["--save", "", "--appendonly", "no"];

/// Settings: data survives a kill, by an append-only file with an fsync at each write.
const DURABLE: [&str; 6] = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

/// How long a master may be silent before it counts as failed, if the test kills none: longer than a busy machine
/// delays it.
const PATIENT: Duration = Duration::from_secs(10);

/// The same, if the test kills masters.
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
    /// Starts a Redis that keeps nothing on disk. FORMID_TEST_REDIS selects its kind: `alone` (the default), `cluster`
    /// or `sentinel`.
    pub fn start() -> Self {
        Self::start_with(&FLEETING)
    }

    /// Starts a Redis whose data survives a kill.
    pub fn durable() -> Self {
        Self::start_with(&DURABLE)
    }

    /// Starts a Redis with these arguments of redis-server.
    pub fn start_with(settings: &[&str]) -> Self {
        match std::env::var("FORMID_TEST_REDIS").as_deref() {
            Err(_) | Ok("" | "alone") => Self::alone_with(settings),
            Ok("cluster") => Self::start_as(Shape::Cluster, settings, PATIENT),
            Ok("sentinel") => Self::start_as(Shape::Sentinel, settings, PATIENT),
            Ok(other) => panic!("FORMID_TEST_REDIS is {other}, but must be alone, cluster or sentinel"),
        }
    }

    /// Starts one server whose data survives a kill, regardless of FORMID_TEST_REDIS.
    pub fn durable_alone() -> Self {
        Self::alone_with(&DURABLE)
    }

    /// Starts one server, regardless of FORMID_TEST_REDIS, for tests that read Redis directly.
    pub fn alone() -> Self {
        Self::alone_with(&FLEETING)
    }

    /// Starts one server with these arguments of redis-server, regardless of FORMID_TEST_REDIS.
    pub fn alone_with(settings: &[&str]) -> Self {
        Self::start_as(Shape::Alone, settings, PATIENT)
    }

    /// Starts a cluster of three masters with a replica each. A replica takes over two seconds after its master became
    /// silent.
    pub fn cluster() -> Self {
        Self::start_as(Shape::Cluster, &FLEETING, QUICK).with_replicas()
    }

    /// Starts a master and a replica with three Sentinels, which replace the master two seconds after it became silent.
    pub fn sentinel() -> Self {
        Self::start_as(Shape::Sentinel, &FLEETING, QUICK).with_replicas()
    }

    /// Waits until each master replicates its writes. This begins up to a second after its replica has loaded all data.
    fn with_replicas(self) -> Self {
        for master in self.servers.iter().filter(|server| server.ask(&["ROLE"]).contains("\r\nmaster\r\n")) {
            wait("replicas are online", || master.has_replica());
        }
        self
    }

    /// Starts a cluster whose other masters keep serving while one is down.
    pub fn cluster_that_goes_on() -> Self {
        let settings = [&FLEETING[..], &["--cluster-require-full-coverage", "no"]].concat();
        Self::start_as(Shape::Cluster, &settings, QUICK).with_replicas()
    }

    /// Starts one server with TLS.
    pub fn encrypted(by: &Authority) -> Self {
        let settings = FLEETING.map(str::to_owned).to_vec();
        let make = |[port, tls_port]: [u16; 2]| vec![Server::new(port, settings.clone()).encrypted(tls_port, by)];
        Self { shape: Shape::Alone, servers: start_on_free_ports(make) }
    }

    /// Starts a cluster with TLS.
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

    /// Kills all servers, as a power failure would.
    pub fn kill(&mut self) {
        self.servers.iter_mut().for_each(Server::kill);
    }

    /// Restarts the servers that are down, on the same ports and directories, and waits until they answer.
    pub fn resume(&mut self) {
        for server in self.servers.iter_mut().filter(|server| !server.is_there()) {
            // An outgoing connection may have the port for a moment.
            wait("redis-server starts again", || start_all(std::slice::from_mut(server)));
        }
        if self.shape == Shape::Cluster {
            wait("the cluster is ready again", || self.servers.iter().all(cluster::is_ready));
        }
    }

    /// The current master of a key. Waits until there is one.
    pub fn master(&mut self, key: &str) -> &mut Server {
        let mut found = None;
        wait("there is a master", || {
            found = self.servers.iter().position(|server| server.is_master_of(key));
            found.is_some()
        });
        &mut self.servers[found.unwrap_or_default()]
    }

    /// Waits until the master of a key has a replica with all writes so far, and returns that master.
    ///
    /// The master can change meanwhile. On a busy machine a master that answers too late is replaced, and acts as the
    /// master until the Sentinels or the other nodes tell it about the failover.
    pub fn replicated_master(&mut self, key: &str) -> &mut Server {
        let mut found = None;
        wait("the master has a replica with all writes", || {
            found = self.servers.iter().position(|server| server.is_master_of(key) && server.is_replicated(key));
            found.is_some()
        });
        &mut self.servers[found.unwrap_or_default()]
    }

    /// The URL of this Redis, as the services take it.
    pub fn url(&self) -> String {
        let at = |server: &Server| format!("127.0.0.1:{}", server.tls_port.unwrap_or(server.port));
        let scheme = if self.servers[0].tls_port.is_some() { "rediss" } else { "redis" };
        let list = |servers: &[Server]| servers.iter().map(at).collect::<Vec<_>>().join(",");
        match self.shape {
            Shape::Alone => format!("{scheme}://{}", at(&self.servers[0])),
            // Any one of its nodes would be enough.
            Shape::Cluster => format!("{scheme}-cluster://{}", list(&self.servers)),
            Shape::Sentinel => format!("{scheme}-sentinel://{}/{}", list(&self.servers[2..]), sentinel::MASTER),
        }
    }

    /// Runs a command on every server except the Sentinels.
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

    /// A store on this Redis with the usual cap, and with 4 buckets, so that users share them.
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
