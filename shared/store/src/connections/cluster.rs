//! Connections to a cluster. The library's client has one connection to each node, shared by all tasks, and routes each
//! command to the node of its key.
//!
//! The client does not look for another master while the one it knows is silent: it neither answers nor refuses, for
//! example after a power loss or in a partitioned network. The client would keep asking that node until the operating
//! system gives up the connection, which takes a quarter of an hour. Therefore, after each command that times out, a
//! new client is created from the cluster's current state and replaces the old one. The old one stays in use meanwhile,
//! since it may still work for all other keys.
//!
//! The client is created here rather than by deadpool-redis, which takes neither a CA, nor timeouts, nor a number of
//! retries for it.

use deadpool::managed::{Manager, Metrics, RecycleResult};
use deadpool_redis::redis::cluster::{ClusterClient, ClusterClientBuilder};
use deadpool_redis::redis::cluster_async::ClusterConnection;
use deadpool_redis::redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use deadpool_redis::redis::{self, Cmd, ConnectionInfo, RedisError, RedisResult, Value};
use futures_util::future;

use super::RedisConfig;
use super::shared::SharedConnections;
use crate::{Error, keys};

/// The shortest and the longest pause before a command is retried, in milliseconds. Each retry asks the cluster again
/// for its slot map.
const PAUSES: (u64, u64) = (20, 250);

/// Number of keys, spread over the cluster, that are read to check whether it accepts commands.
const PROBES: usize = 8;

pub(super) struct Cluster(ClusterClient);

impl Cluster {
    /// `nodes` are the first nodes to contact; the cluster reports the others.
    pub(super) fn new(nodes: &[ConnectionInfo], config: &RedisConfig) -> RedisResult<Self> {
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
        builder.build().map(Self)
    }
}

impl Manager for Cluster {
    type Type = ClusterConnection;
    type Error = RedisError;

    async fn create(&self) -> RedisResult<ClusterConnection> {
        self.0.get_async_connection().await
    }

    async fn recycle(&self, connection: &mut ClusterConnection, _: &Metrics) -> RecycleResult<RedisError> {
        Ok(redis::cmd("PING").query_async(connection).await?)
    }
}

impl SharedConnections<Cluster> {
    /// Runs a command on every master. Fails if it fails on any.
    pub(super) async fn everywhere(&self, command: &Cmd) -> Result<Vec<Value>, Error> {
        let mut lent = self.lend().await?;
        // Without a response policy, the library returns the replies by node.
        let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let result = lent.connection.route_command(command.clone(), masters).await;
        self.look_at(&result, &lent);
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
}
