//! Connections to Redis. There are three kinds: a single Redis, the current master of a Sentinel set, and a cluster.
//!
//! No command blocks, because all tasks share the connections. XREADGROUP is therefore called without BLOCK, and every
//! command has the same timeout.
//!
//! # What runs twice
//!
//! A command whose reply is lost may have run, and a retry runs it again. Two sides retry: the caller of the store, and
//! for a cluster also the client library. The library resends commands that were in flight when a connection broke, or
//! that were answered with MOVED, ASK, TRYAGAIN, CLUSTERDOWN or READONLY, until the timeout. All commands must
//! therefore tolerate a second run. The second run changes nothing, as a test of all scripts shows. The exceptions have
//! a small cost and break nothing:
//!
//! - `broadcast/count.lua` counts messages again that were sent once: the quota looks more used than it is, until
//!   WeChat reports its own number;
//! - `broadcast/streak.lua` counts a refusal again: the broadcast pauses after four consecutive refusals;
//! - `broadcast/page.lua` takes a second page: the first is in flight under the same owner, which finds it after the
//!   rest of the bucket is done. XREADGROUP and XAUTOCLAIM take further tasks: the first ones are claimed after they
//!   were idle for long enough.
//!
//! Only the reply of the second run differs: a stored credential is a duplicate, a settled lease is stale, a moved
//! broadcast is in the wrong state, and an erased user had nothing stored.

mod cluster;
mod sentinel;
mod shared;
mod types;
mod url;

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_redis::redis::{self, AsyncConnectionConfig, Cmd, FromRedisValue, RedisError, Value};
use domain::dependency::CommandObserver;

use super::Error;
use super::redact::is_wrong_type;
use super::scripts::Script;
use cluster::Cluster;
use sentinel::Sentinels;
use shared::SharedConnections;
use types::WrongTypes;
use url::Address;
pub use url::{BadUrl, RedisUrl};

/// The plain commands that the store uses, as they are named in metrics.
pub(super) const COMMANDS: &str = "CONFIG EXISTS EXPIRE GET HDEL HGET HGETALL HLEN HMGET HSET PING SCARD SCRIPT SET SETNX \
    SMEMBERS TYPE XAUTOCLAIM XCLAIM XPENDING XREADGROUP ZADD ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZREM ZREMRANGEBYSCORE ZREVRANGE \
    ZREVRANGEBYLEX ZSCORE";

#[derive(Clone)]
pub struct RedisConfig {
    pub url: RedisUrl,
    /// Number of connections to each master that all tasks share.
    pub connections: usize,
    /// Timeout of a command, and of opening a connection.
    pub timeout: Duration,
}

pub(super) struct Connections {
    backend: Backend,
    observer: Option<Arc<dyn CommandObserver>>,
    wrong_types: WrongTypes,
}

enum Backend {
    One(SharedConnections<deadpool_redis::Manager>),
    Sentinel(SharedConnections<Sentinels>),
    Cluster(SharedConnections<Cluster>),
}

impl RedisConfig {
    fn timeouts(&self) -> AsyncConnectionConfig {
        let timeout = Some(self.timeout);
        AsyncConnectionConfig::new().set_connection_timeout(timeout).set_response_timeout(timeout)
    }
}

impl Connections {
    /// Creates the connections without opening any.
    pub(super) fn new(config: &RedisConfig, observer: Option<Arc<dyn CommandObserver>>) -> Result<Self, Error> {
        let backend = match &config.url.address {
            Address::One(node) => {
                let info = config.url.client(node.clone())?.get_connection_info().clone();
                let manager = deadpool_redis::Manager::new_with_config(info, config.timeouts())?;
                Backend::One(SharedConnections::new(config, manager, false)?)
            }
            Address::Sentinel { sentinels, master, node } => {
                let manager = Sentinels::new(sentinels, master, node, config)?;
                Backend::Sentinel(SharedConnections::new(config, manager, false)?)
            }
            Address::Cluster(nodes) => {
                Backend::Cluster(SharedConnections::new(config, Cluster::new(nodes, config)?, true)?)
            }
        };
        Ok(Self { backend, observer, wrong_types: WrongTypes::default() })
    }

    /// Other connections to the same Redis. They share the metrics of these.
    pub(super) fn beside(&self, config: &RedisConfig) -> Result<Self, Error> {
        Ok(Self { wrong_types: self.wrong_types.clone(), ..Self::new(config, self.observer.clone())? })
    }

    pub(super) fn observer(&self) -> Option<&dyn CommandObserver> {
        self.observer.as_deref()
    }

    /// Runs one command. A timeout is an error, and the command may have run.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        self.send(name_of(command), command).await
    }

    async fn send<T: FromRedisValue>(&self, name: &str, command: &Cmd) -> Result<T, Error> {
        let running = async {
            match &self.backend {
                Backend::One(connections) => connections.run(command).await,
                Backend::Sentinel(connections) => connections.run(command).await,
                // Boxed, so that the future of every caller stays small.
                Backend::Cluster(connections) => Box::pin(connections.run(command)).await,
            }
        };
        match self.observed(name, running).await {
            Err(Error::Redis(error)) if is_wrong_type(&error) => Err(self.find_wrong_type(command, error).await),
            result => result,
        }
    }

    /// Runs a command and reports its duration and its outcome to the observer.
    async fn observed<T>(&self, name: &str, running: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let begun = Instant::now();
        let result = running.await;
        let Some(observer) = &self.observer else { return result };
        // A command that got no connection took no time in Redis.
        if !matches!(result, Err(Error::Unavailable(_))) {
            observer.took(name, begun.elapsed());
        }
        match &result {
            Ok(_) => observer.succeeded(),
            Err(error) if is_missing_script(error) => {}
            // The tasks of a broadcast that has ended: see broadcast/tasks.rs.
            Err(Error::Redis(error)) if error.code() == Some("NOGROUP") => observer.succeeded(),
            // Where CONFIG is forbidden, the services work without it.
            Err(error) if error.is_lasting() || name == "CONFIG" => observer.refused(),
            Err(error) => observer.failed(error),
        }
        result
    }

    /// Runs a script, also if Redis does not know it: a new Redis, a replica that was promoted to master, or a flushed
    /// script cache.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        script: &Script,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<T, Error> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&script.sha);
        arguments(&mut command);
        match self.send(script.file, &command).await {
            Err(error) if is_missing_script(&error) => {
                // Redis knows the script after this. Loading the script would not do in a cluster: SCRIPT LOAD goes to
                // all masters, and would fail if one of them is down.
                let mut command = redis::cmd("EVAL");
                command.arg(&script.source);
                arguments(&mut command);
                self.send(script.file, &command).await
            }
            result => result,
        }
    }

    /// Loads a script on every master.
    pub(super) async fn load(&self, script: &Script) -> Result<(), Error> {
        self.everywhere(redis::cmd("SCRIPT").arg("LOAD").arg(&script.source)).await.map(drop)
    }

    /// Checks that Redis accepts commands. For a cluster, one master that accepts them is enough.
    pub(super) async fn ping(&self) -> Result<(), Error> {
        match &self.backend {
            Backend::One(_) | Backend::Sentinel(_) => self.run::<String>(&redis::cmd("PING")).await.map(drop),
            Backend::Cluster(cluster) => self.observed("PING", Box::pin(cluster.ping())).await,
        }
    }

    /// Runs a command without keys on every master. Fails if it fails on any.
    pub(super) async fn everywhere(&self, command: &Cmd) -> Result<Vec<Value>, Error> {
        match &self.backend {
            Backend::One(_) | Backend::Sentinel(_) => Ok(vec![self.run(command).await?]),
            Backend::Cluster(cluster) => self.observed(name_of(command), Box::pin(cluster.everywhere(command))).await,
        }
    }
}

fn name_of(command: &Cmd) -> &str {
    match command.args_iter().next() {
        Some(redis::Arg::Simple(name)) => str::from_utf8(name).unwrap_or_default(),
        _ => "",
    }
}

/// Whether Redis does not know the script. Sending the script fixes this.
fn is_missing_script(error: &Error) -> bool {
    matches!(error, Error::Redis(error) if error.code() == Some("NOSCRIPT"))
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        Self::Redis(Box::new(error))
    }
}
