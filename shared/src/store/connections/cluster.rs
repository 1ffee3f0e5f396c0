//! Connections to a cluster: the client of the library, which has one connection to each node, shared by all tasks, and
//! finds by itself which node has a key.
//!
//! There is no pool here: a pool lends connections to one address, gives up what breaks and opens it anew, and all that the
//! client does by itself, node by node. What it does not do is look for another master while the one it knows says nothing,
//! neither answering nor refusing, as after a loss of power or in a network that is cut: it would go on asking there for as
//! long as the system takes the connection for sound, a quarter of an hour. So each time a command was not answered in time
//! a new client is made beside the old one, from what the cluster says then, and takes its place.

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
use crate::store::told::{self, Told};
use crate::store::{Error, keys};

/// The shortest and the longest pause before a command is tried again, in milliseconds: each try asks the cluster anew who
/// has what.
const PAUSES: (u64, u64) = (20, 250);

/// How many keys, spread over the cluster, are looked for to see whether it takes commands.
const PROBES: usize = 8;

/// A way to all masters of a cluster.
pub(in crate::store) struct Cluster {
    lanes: Box<[Arc<Lane>]>,
    next: AtomicUsize,
}

/// A place for one client of the library.
struct Lane {
    client: ClusterClient,
    timeout: Duration,
    shared: Mutex<Option<Shared>>,
    filling: tokio::sync::Mutex<()>,
    /// A client is being made to take the place of the one there is.
    renewing: AtomicBool,
}

/// A client in use; the number tells it from its replacement.
#[derive(Clone)]
struct Shared {
    connection: ClusterConnection,
    number: usize,
}

impl Cluster {
    /// Connects to nobody yet. The nodes are those to begin with; the cluster tells of the others.
    pub(super) fn new(nodes: &[ConnectionInfo], config: &RedisConfig) -> Result<Self, Error> {
        let mut builder = ClusterClientBuilder::new(nodes.to_vec())
            // While the client looks who has what, all commands wait, and one node that does not answer must not take
            // all the time they have.
            .connection_timeout(config.timeout / 4)
            .response_timeout(config.timeout)
            .overall_response_timeout(Some(config.timeout))
            // More often than its time permits: that is what ends it.
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

    /// Runs one command, where its first key lies. See [`super::Connections::run`].
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let (lane, mut shared) = self.lane().await?;
        let result = command.query_async(&mut shared.connection).await;
        lane.look_at(&result, shared.number);
        Ok(result?)
    }

    /// Runs a command on every master; fails if it fails on any.
    pub(super) async fn everywhere(&self, command: &Cmd) -> Result<Vec<Value>, Error> {
        let (lane, mut shared) = self.lane().await?;
        // Without a policy the answers come node by node.
        let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let result = shared.connection.route_command(command.clone(), masters).await;
        lane.look_at(&result, shared.number);
        let Value::Map(answers) = result? else { return Err(Error::Corrupt("a cluster that is none".into())) };
        answers.into_iter().map(|(_, answer)| Ok(answer.extract_error()?)).collect()
    }

    /// Whether any master takes commands. One that answers a PING may still have no slots it would answer for.
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
            // Boxed: it is large, and hardly ever needed.
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
        // What it guards is a whole value at any moment, so a panic elsewhere cannot have left it half changed.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first client. Making it is one task's work; the others wait for that.
    async fn fill(&self, number: usize) -> Result<Shared, Error> {
        let fill = async {
            let _filling = self.filling.lock().await;
            let there = self.shared().clone();
            if let Some(there) = there {
                return Ok(there);
            }
            let connection = self.client.get_async_connection().await;
            let shared = Shared { connection: connection.map_err(|error| told::not_open(&error))?, number };
            *self.shared() = Some(shared.clone());
            Ok(shared)
        };
        match tokio::time::timeout(self.timeout, fill).await {
            Ok(filled) => filled,
            Err(_) => Err(Error::Unavailable("no connection in time".into())),
        }
    }

    /// After a command that was not answered in time, another client takes the place of the one that was used. That one
    /// goes on meanwhile: it may well be sound for all other keys.
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
                Ok(Err(error)) => debug!(error = %Told(&error), "the cluster could not be looked at anew"),
                Err(_) => debug!("the cluster could not be looked at anew in time"),
            }
            lane.renewing.store(false, Ordering::Release);
        });
    }
}
