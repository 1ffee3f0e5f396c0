//! How commands travel to Redis, of which there are three kinds: one Redis, the present master of a Sentinel set, and a
//! cluster.
//!
//! Nothing here blocks: connections are shared by all tasks, so XREADGROUP is asked without BLOCK, and each command has the
//! same time to answer.
//!
//! # What runs twice
//!
//! A command whose reply is lost may have run, and whoever repeats it runs it again: the caller of the store, and with a
//! cluster also the client library, which resends what was on its way when a connection broke, or was answered MOVED, ASK,
//! TRYAGAIN, CLUSTERDOWN or READONLY, until its time is up. So all commands must bear to run twice. The second time changes
//! nothing, as a test of all scripts shows, but for these, where it costs a little and breaks nothing:
//!
//! - `broadcast/count.lua` counts messages twice that are sent once: the quota looks fuller than it is until WeChat reports
//!   its own number;
//! - `broadcast/streak.lua` counts a refusal twice: the broadcast pauses after four in a row;
//! - `broadcast/page.lua` takes a second page: the first is in flight under the same owner, who finds it there when the
//!   bucket is through; XREADGROUP and XAUTOCLAIM take further tasks: the first are claimed when they were silent long
//!   enough.
//!
//! What differs then is the reply: a credential that was stored is a duplicate, a lease that was settled is stale, a
//! broadcast that was moved is in the wrong state, a user who was erased had nothing.

mod cluster;
mod lanes;
mod opener;
mod types;
mod url;

use std::time::{Duration, Instant};

use deadpool_redis::redis::{self, Cmd, FromRedisValue, RedisError, Value};

use super::Error;
use super::scripts::Script;
use super::told::is_wrong_type;
use crate::metrics::redis::RedisMetrics;
use cluster::Cluster;
use lanes::Lanes;
use opener::Opener;
use types::WrongTypes;
use url::Address;
pub use url::{BadUrl, RedisUrl};

/// The plain commands that the store uses, by which they are known in metrics.
pub(super) const COMMANDS: &str = "CONFIG EXISTS EXPIRE GET HDEL HGET HGETALL HLEN HMGET HSET PING SCARD SCRIPT SET SETNX \
    SMEMBERS TYPE XAUTOCLAIM XCLAIM XPENDING XREADGROUP ZADD ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZREM ZREMRANGEBYSCORE ZREVRANGE \
    ZREVRANGEBYLEX";

/// How the store reaches Redis.
#[derive(Clone)]
pub struct RedisConfig {
    /// Where Redis is.
    pub url: RedisUrl,
    /// How many connections, to each master, are shared by all tasks.
    pub connections: usize,
    /// How long a command, or opening a connection, may take.
    pub timeout: Duration,
}

/// The way to Redis, and what is counted on it.
pub(super) struct Connections {
    way: Way,
    metrics: Option<RedisMetrics>,
    wrong_types: WrongTypes,
}

enum Way {
    /// To one address, or to the present master of a Sentinel set.
    One(Lanes),
    /// To all masters of a cluster.
    Cluster(Cluster),
}

impl Connections {
    /// Connects to nobody yet.
    pub(super) fn new(config: &RedisConfig, metrics: Option<RedisMetrics>) -> Result<Self, Error> {
        let way = match &config.url.address {
            Address::One(node) => Way::One(Lanes::new(config, Opener::one(node, config)?)?),
            Address::Sentinel { sentinels, master, node } => {
                Way::One(Lanes::new(config, Opener::sentinel(sentinels, master, node, config)?)?)
            }
            Address::Cluster(nodes) => Way::Cluster(Cluster::new(nodes, config)?),
        };
        Ok(Self { way, metrics, wrong_types: WrongTypes::default() })
    }

    /// Others to the same Redis, counted together with these.
    pub(super) fn beside(&self, config: &RedisConfig) -> Result<Self, Error> {
        Ok(Self { wrong_types: self.wrong_types.clone(), ..Self::new(config, self.metrics.clone())? })
    }

    /// What is counted, if anything is.
    pub(super) fn metrics(&self) -> Option<&RedisMetrics> {
        self.metrics.as_ref()
    }

    /// Runs one command. A reply that does not come in time is an error, and the command may have run.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        self.send(name_of(command), command).await
    }

    async fn send<T: FromRedisValue>(&self, name: &str, command: &Cmd) -> Result<T, Error> {
        let begun = Instant::now();
        let result = match &self.way {
            Way::One(lanes) => lanes.run(command).await,
            // Boxed, so that the future of every caller does not grow by it.
            Way::Cluster(cluster) => Box::pin(cluster.run(command)).await,
        };
        self.count(name, begun, &result);
        match result {
            Err(Error::Redis(error)) if is_wrong_type(&error) => Err(self.find_wrong_type(command, error).await),
            result => result,
        }
    }

    /// Counts a command under this name.
    fn count<T>(&self, name: &str, begun: Instant, result: &Result<T, Error>) {
        let Some(metrics) = &self.metrics else { return };
        // One that found no connection took no time of Redis.
        if !matches!(result, Err(Error::Unavailable(_))) {
            metrics.took(name, begun.elapsed());
        }
        match result {
            Ok(_) => metrics.succeeded(),
            Err(error) if is_missing_script(error) => {}
            // Where CONFIG is forbidden the services go without it.
            Err(error) if error.is_lasting() || name == "CONFIG" => metrics.refused(),
            Err(error) => metrics.failed(error),
        }
    }

    /// Runs a script, also where Redis does not know it: a new Redis, a replica that was made master, a script cache that
    /// was flushed.
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
                // It knows the script from then on. To load it alone would not do in a cluster: that goes to all masters,
                // and one that is away would keep the others from it.
                let mut command = redis::cmd("EVAL");
                command.arg(script.source);
                arguments(&mut command);
                self.send(script.file, &command).await
            }
            result => result,
        }
    }

    /// Makes a script known to every master.
    pub(super) async fn load(&self, script: &Script) -> Result<(), Error> {
        self.everywhere(redis::cmd("SCRIPT").arg("LOAD").arg(script.source)).await.map(drop)
    }

    /// Whether Redis takes commands; of a cluster, whether any of its masters does.
    pub(super) async fn ping(&self) -> Result<(), Error> {
        match &self.way {
            Way::One(_) => self.run::<String>(&redis::cmd("PING")).await.map(drop),
            Way::Cluster(cluster) => {
                let begun = Instant::now();
                let result = Box::pin(cluster.ping()).await;
                self.count("PING", begun, &result);
                result
            }
        }
    }

    /// Runs a command that names no key on every master; fails if it fails on any.
    pub(super) async fn everywhere(&self, command: &Cmd) -> Result<Vec<Value>, Error> {
        match &self.way {
            Way::One(_) => Ok(vec![self.run(command).await?]),
            Way::Cluster(cluster) => {
                let begun = Instant::now();
                let result = Box::pin(cluster.everywhere(command)).await;
                self.count(name_of(command), begun, &result);
                result
            }
        }
    }
}

/// What a command is called.
fn name_of(command: &Cmd) -> &str {
    match command.args_iter().next() {
        Some(redis::Arg::Simple(name)) => str::from_utf8(name).unwrap_or_default(),
        _ => "",
    }
}

/// Redis does not know a script, which is mended by sending it.
fn is_missing_script(error: &Error) -> bool {
    matches!(error, Error::Redis(error) if error.code() == Some("NOSCRIPT"))
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        Self::Redis(Box::new(error))
    }
}
