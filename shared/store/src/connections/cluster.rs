//! Connections to a cluster. The library's client has one connection to each node, shared by all tasks, and routes each
//! command to the node of its key.
//!
//! There is no pool here. A pool lends connections to one address and replaces broken ones; the client does that itself
//! for each node. But the client does not look for another master while the one it knows is silent: it neither answers
//! nor refuses, for example after a power loss or in a partitioned network. The client would keep asking that node
//! until the operating system gives up the connection, which takes a quarter of an hour. Therefore, after each command
//! that times out, a new client is created from the cluster's current state and replaces the old one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_redis::redis::cluster::{ClusterClient, ClusterClientBuilder};
use deadpool_redis::redis::cluster_async::ClusterConnection;
use deadpool_redis::redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use deadpool_redis::redis::{self, Cmd, ConnectionInfo, FromRedisValue, Value};
use futures_util::future;
use tracing::debug;

use super::RedisConfig;
use crate::redact::{self, Redacted};
use crate::{Error, keys};

/// The shortest and the longest pause before a command is retried, in milliseconds. Each retry asks the cluster again
/// for its slot map.
const PAUSES: (u64, u64) = (20, 250);

/// Number of keys, spread over the cluster, that are read to check whether it accepts commands.
const PROBES: usize = 8;

/// Shared clients of the cluster.
pub(crate) struct Cluster {
    lanes: Box<[Arc<Lane>]>,
    next: AtomicUsize,
}

/// A slot for one client of the library.
struct Lane {
    client: ClusterClient,
    timeout: Duration,
    shared: Mutex<Option<Shared>>,
    filling: tokio::sync::Mutex<()>,
    /// Whether a replacement of the current client is being created.
    renewing: AtomicBool,
}

/// A client in use. The number distinguishes it from its replacement.
#[derive(Clone)]
struct Shared {
    connection: ClusterConnection,
    number: usize,
}

impl Cluster {
    /// Creates the slots without opening a connection. `nodes` are the first nodes to contact; the cluster reports the
    /// others.
    pub(super) fn new(nodes: &[ConnectionInfo], config: &RedisConfig) -> Result<Self, Error> {
        let mut builder = ClusterClientBuilder::new(nodes.to_vec())
            // While the client reads the slot map, all commands wait. One silent node must not use up their whole
            // timeout.
            .connection_timeout(config.timeout / 4)
            .response_timeout(config.timeout)
            .overall_response_timeout(Some(config.timeout))
            // More retries than fit into the timeout, so that the timeout ends them.
            .retries((config.timeout.as_millis() as u64 / PAUSES.0).clamp(10, 1000) as u32)
            .min_retry_wait(PAUSES.0)
            .max_retry_wait(PAUSES.1)
            .retry_wait_formula(PAUSES.1, 1);
        if let Some(certificates) = config.url.certificates() {
            builder = builder.certs(certificates);
        }
        let client = builder.build()?;
        let lane = |_| Arc::new(Lane::new(client.clone(), config.timeout));
        Ok(Self { lanes: (0..config.connections.max(1)).map(lane).collect(), next: AtomicUsize::new(0) })
    }

    /// Runs one command on the node of its first key. See [`super::Connections::run`].
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let (lane, mut shared) = self.lane().await?;
        let result = command.query_async(&mut shared.connection).await;
        lane.look_at(&result, shared.number);
        Ok(result?)
    }

    /// Runs a command on every master. Fails if it fails on any.
    pub(super) async fn everywhere(&self, command: &Cmd) -> Result<Vec<Value>, Error> {
        let (lane, mut shared) = self.lane().await?;
        // Without a response policy, the library returns the replies by node.
        let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let result = shared.connection.route_command(command.clone(), masters).await;
        lane.look_at(&result, shared.number);
        let Value::Map(answers) = result? else {
            return Err(Error::Corrupt("expected one reply per cluster master".into()));
        };
        answers.into_iter().map(|(_, answer)| Ok(answer.extract_error()?)).collect()
    }

    /// Checks whether any master accepts commands. A master that answers a PING may still refuse to serve its slots.
    pub(super) async fn ping(&self) -> Result<(), Error> {
        let look = async |probe: usize| self.run::<Option<Value>>(redis::cmd("GET").arg(keys::probe(probe))).await;
        let probes = (0..PROBES).map(|probe| Box::pin(look(probe)));
        future::select_ok(probes).await.map(drop)
    }

    async fn lane(&self) -> Result<(&Arc<Lane>, Shared), Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let lane = &self.lanes[number % self.lanes.len()];
        let there = lane.shared().clone();
        match there {
            Some(shared) => Ok((lane, shared)),
            // Boxed: the future is large and rarely needed.
            None => Ok((lane, Box::pin(lane.fill(number)).await?)),
        }
    }
}

impl Lane {
    fn new(client: ClusterClient, timeout: Duration) -> Self {
        let (shared, filling, renewing) = Default::default();
        Self { client, timeout, shared, filling, renewing }
    }

    fn shared(&self) -> MutexGuard<'_, Option<Shared>> {
        // The value is replaced as a whole, so a panic of another thread cannot leave it half changed.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the client, and creates it if there is none. One task creates it; the others wait.
    async fn fill(&self, number: usize) -> Result<Shared, Error> {
        let fill = async {
            let _filling = self.filling.lock().await;
            let there = self.shared().clone();
            if let Some(there) = there {
                return Ok(there);
            }
            let connection = self.client.get_async_connection().await;
            let shared = Shared { connection: connection.map_err(|error| redact::not_open(&error))?, number };
            *self.shared() = Some(shared.clone());
            Ok(shared)
        };
        match tokio::time::timeout(self.timeout, fill).await {
            Ok(filled) => filled,
            Err(_) => Err(Error::Unavailable("timed out waiting for a connection".into())),
        }
    }

    /// After a command that timed out, creates a client that replaces the one that was used. The old one stays in use
    /// meanwhile, since it may still work for all other keys.
    fn look_at<T>(self: &Arc<Self>, result: &Result<T, redis::RedisError>, number: usize) {
        let lost = result.as_ref().err().is_some_and(|error| error.is_timeout() || error.is_unrecoverable_error());
        let current = || self.shared().as_ref().is_some_and(|shared| shared.number == number);
        if !lost || !current() || self.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let lane = Arc::clone(self);
        tokio::spawn(async move {
            match tokio::time::timeout(2 * lane.timeout, lane.client.get_async_connection()).await {
                Ok(Ok(connection)) => *lane.shared() = Some(Shared { connection, number: number.wrapping_add(1) }),
                Ok(Err(error)) => debug!(error = %Redacted(&error), "reconnecting to the cluster failed"),
                Err(_) => debug!("reconnecting to the cluster timed out"),
            }
            lane.renewing.store(false, Ordering::Release);
        });
    }
}
