//! Opens connections to the current master of a Sentinel set.
//!
//! redis-rs and deadpool-redis have a client for Sentinels, which is not used: it asks the Sentinels one after another
//! with timeouts that cannot be set, so that Sentinels that do not answer use up the time for the whole command; it
//! needs the permission for SENTINEL MASTERS, which lists all masters; and deadpool-redis takes neither a CA nor a
//! timeout for it.

use deadpool::managed::{Manager, Metrics, RecycleResult};
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{
    self, AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, RedisError, RedisResult, Role,
};
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::RedisConfig;
use super::url::{Node, RedisUrl};

/// Opens connections to the master that the Sentinels know by a name.
pub(super) struct Sentinels {
    sentinels: Vec<Client>,
    master: String,
    node: Node,
    url: RedisUrl,
    config: AsyncConnectionConfig,
}

/// Host and port, as Redis reports them.
type Host = (String, u16);

impl Sentinels {
    pub(super) fn new(
        sentinels: &[ConnectionInfo],
        master: &str,
        node: &Node,
        config: &RedisConfig,
    ) -> RedisResult<Self> {
        let sentinels: RedisResult<_> = sentinels.iter().map(|info| config.url.client(info.clone())).collect();
        let (master, node, url) = (master.to_owned(), node.clone(), config.url.clone());
        Ok(Self { sentinels: sentinels?, master, node, url, config: config.timeouts() })
    }

    async fn ask(&self, sentinel: &Client) -> RedisResult<Host> {
        let mut connection = sentinel.get_multiplexed_async_connection_with_config(&self.config).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let host: Option<Host> = command.query_async(&mut connection).await?;
        host.ok_or_else(|| {
            (ErrorKind::MasterNameNotFoundBySentinel, "the Sentinel knows no master with this name").into()
        })
    }

    async fn connect(&self, (host, port): &Host) -> RedisResult<MultiplexedConnection> {
        let client = self.url.client(self.node.at(host, *port)?)?;
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

impl Manager for Sentinels {
    type Type = MultiplexedConnection;
    type Error = RedisError;

    /// Asks all Sentinels at once and uses the first master that confirms its role. A Sentinel may be down or may not
    /// know of a failover yet.
    async fn create(&self) -> RedisResult<MultiplexedConnection> {
        let mut answers: FuturesUnordered<_> = self.sentinels.iter().map(|sentinel| self.ask(sentinel)).collect();
        let (mut failure, mut refused) = (None, Vec::new());
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(host) if refused.contains(&host) => {}
                Ok(host) => match self.connect(&host).await {
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

    async fn recycle(&self, connection: &mut MultiplexedConnection, _: &Metrics) -> RecycleResult<RedisError> {
        Ok(redis::cmd("PING").query_async(connection).await?)
    }
}
