//! Opens connections to one address, or to the current master of a Sentinel set.

use deadpool::managed::{Metrics, RecycleResult};
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{
    self, AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, RedisError, RedisResult, Role,
};
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::RedisConfig;
use super::url::{Node, RedisUrl};

/// Opens the connections of the pool.
pub(super) struct Connector {
    place: Endpoint,
    config: AsyncConnectionConfig,
}

enum Endpoint {
    One(deadpool_redis::Manager),
    Sentinel { sentinels: Vec<Client>, master: String, node: Node, url: RedisUrl },
}

/// Host and port, as Redis reports them.
type Host = (String, u16);

impl Connector {
    /// To one address.
    pub(super) fn one(node: &ConnectionInfo, config: &RedisConfig) -> RedisResult<Self> {
        let info = config.url.client(node.clone())?.get_connection_info().clone();
        let (place, config) = (|config| deadpool_redis::Manager::new_with_config(info, config), timeouts(config));
        Ok(Self { place: Endpoint::One(place(config.clone())?), config })
    }

    /// To the master that the Sentinels know by this name.
    pub(super) fn sentinel(
        sentinels: &[ConnectionInfo],
        master: &str,
        node: &Node,
        config: &RedisConfig,
    ) -> RedisResult<Self> {
        let sentinels: RedisResult<_> = sentinels.iter().map(|info| config.url.client(info.clone())).collect();
        let (master, node, url) = (master.to_owned(), node.clone(), config.url.clone());
        Ok(Self { place: Endpoint::Sentinel { sentinels: sentinels?, master, node, url }, config: timeouts(config) })
    }

    /// Asks all Sentinels at once and uses the first master that confirms its role. A Sentinel may be down or may not
    /// know of a failover yet.
    async fn by_sentinel(
        &self,
        sentinels: &[Client],
        master: &str,
        node: &Node,
        url: &RedisUrl,
    ) -> RedisResult<MultiplexedConnection> {
        let mut answers: FuturesUnordered<_> = sentinels.iter().map(|sentinel| self.ask(sentinel, master)).collect();
        let (mut failure, mut refused) = (None, Vec::new());
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(host) if refused.contains(&host) => {}
                Ok(host) => match self.connect_to_master(url.client(node.at(&host.0, host.1)?)?).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => {
                        refused.push(host);
                        failure = Some(error);
                    }
                },
                // An error from a master is more useful than one from an unreachable Sentinel.
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        Err(failure.unwrap_or_else(|| (ErrorKind::EmptySentinelList, "the list of Sentinels is empty").into()))
    }

    async fn ask(&self, sentinel: &Client, master: &str) -> RedisResult<Host> {
        let mut connection = sentinel.get_multiplexed_async_connection_with_config(&self.config).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let host: Option<Host> = command.query_async(&mut connection).await?;
        host.ok_or_else(|| {
            (ErrorKind::MasterNameNotFoundBySentinel, "the Sentinel knows no master with this name").into()
        })
    }

    async fn connect_to_master(&self, client: Client) -> RedisResult<MultiplexedConnection> {
        let mut connection = client.get_multiplexed_async_connection_with_config(&self.config).await?;
        match redis::cmd("ROLE").query_async(&mut connection).await? {
            Role::Primary { .. } => Ok(connection),
            _ => {
                Err((ErrorKind::MasterNameNotFoundBySentinel, "the server that the Sentinel named is not a master")
                    .into())
            }
        }
    }
}

impl deadpool::managed::Manager for Connector {
    type Type = MultiplexedConnection;
    type Error = RedisError;

    async fn create(&self) -> RedisResult<MultiplexedConnection> {
        match &self.place {
            Endpoint::One(manager) => manager.create().await,
            Endpoint::Sentinel { sentinels, master, node, url } => self.by_sentinel(sentinels, master, node, url).await,
        }
    }

    async fn recycle(&self, connection: &mut MultiplexedConnection, metrics: &Metrics) -> RecycleResult<RedisError> {
        match &self.place {
            Endpoint::One(manager) => manager.recycle(connection, metrics).await,
            Endpoint::Sentinel { .. } => Ok(redis::cmd("PING").query_async(connection).await?),
        }
    }
}

fn timeouts(config: &RedisConfig) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(config.timeout)).set_response_timeout(Some(config.timeout))
}
