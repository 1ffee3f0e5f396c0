//! The settings of the store.

use std::path::PathBuf;
use std::time::Duration;

use domain::config_errors::ConfigErrors;
use domain::setting::{Setting, duration, number};

use crate::connections::{BadUrl, RedisConfig, RedisUrl};
use crate::retention::KEEP_ONCE;

/// The flags of the store, which both services have.
#[derive(Debug, Clone, clap::Args)]
pub struct StoreArgs {
    /// Redis URL: redis://[user:password@]host[:port][/db], unix://path,
    /// redis-cluster://[user:password@]host:port[,host:port...], or
    /// redis-sentinel://[user:password@]host:port[,host:port...]/MASTER[/db][?sentinel_user=USER&sentinel_password=PASSWORD];
    /// rediss instead of redis enables TLS
    #[arg(long, env = "FORMID_REDIS_URL", default_value = "redis://127.0.0.1:6379", hide_env_values = true)]
    pub redis_url: String,
    /// CA certificates for Redis over TLS: a PEM file; the system's root certificates if not given
    #[arg(long, env = "FORMID_REDIS_CA")]
    pub redis_ca: Option<PathBuf>,
    /// Number of connections to each Redis master, shared by all calls; one is fastest if the network latency to Redis
    /// is low
    #[arg(long, env = "FORMID_REDIS_CONNECTIONS", default_value = "1", value_parser = number::<usize>(1..=256))]
    pub redis_connections: Setting<usize>,
    /// How long Redis may take to answer (duration)
    #[arg(long, env = "FORMID_REDIS_TIMEOUT", default_value = "2s", value_parser = duration())]
    pub redis_timeout: Setting<Duration>,
    /// Number of buckets over which each app's users are spread; fixed for the life of a Redis
    #[arg(long, env = "FORMID_BUCKETS", default_value = "512", value_parser = number::<u16>(1..=16384))]
    pub buckets: Setting<u16>,
    /// Maximum number of records per user; beyond it, the record that expires first is dropped
    #[arg(long, env = "FORMID_RECORDS_PER_USER", default_value = "120", value_parser = number::<u16>(1..=10000))]
    pub records_per_user: Setting<u16>,
}

#[derive(Clone)]
pub struct StoreConfig {
    pub redis: RedisConfig,
    /// Number of buckets that the users of each app are spread over. It is fixed for the lifetime of a Redis.
    pub buckets: u16,
    /// Maximum number of credentials kept for one user.
    pub cap: u16,
    /// How long the dedup key of a grant or an event is kept: see [`KEEP_ONCE`].
    pub keep_once: Duration,
}

impl StoreArgs {
    /// Reads the flags. Returns `None` if the Redis URL or its CA is invalid.
    pub fn read(&self, errors: &mut ConfigErrors) -> Option<StoreConfig> {
        let (connections, timeout) = (errors.take(&self.redis_connections), errors.take(&self.redis_timeout));
        let (buckets, cap) = (errors.take(&self.buckets), errors.take(&self.records_per_user));
        let redis = RedisConfig { url: self.redis(errors)?, connections, timeout };
        Some(StoreConfig { redis, buckets, cap, keep_once: KEEP_ONCE })
    }

    /// Parses the Redis URL. No error quotes it, because it may contain a password.
    fn redis(&self, problems: &mut ConfigErrors) -> Option<RedisUrl> {
        let ca = self.redis_ca.as_ref().map(std::fs::read).transpose();
        let ca = ca.map_err(|error| problems.add(format!("--redis-ca cannot be read: {error}")));
        let url = RedisUrl::parse(&self.redis_url, ca.as_ref().ok().and_then(Option::as_deref));
        let flag = |bad: BadUrl| if bad.is_of_ca() { "--redis-ca" } else { "--redis-url" };
        url.map_err(|bad| problems.add(format!("{}: {bad}", flag(bad)))).ok().filter(|_| ca.is_ok())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use domain::config_errors::SettingsError;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        store: StoreArgs,
    }

    fn read(flags: &[&str]) -> Result<StoreConfig, SettingsError> {
        let flags = Flags::parse_from(std::iter::once(&"test").chain(flags));
        let mut problems = ConfigErrors::default();
        let config = flags.store.read(&mut problems);
        problems.finish(config)
    }

    #[test]
    fn defaults_are_valid() {
        let config = read(&[]).unwrap();
        assert_eq!((config.buckets, config.cap), (512, 120));
    }

    #[test]
    fn all_errors_are_reported_together_and_name_their_flag() {
        let Err(SettingsError(problems)) = read(&["--buckets", "0", "--redis-timeout", "2"]) else {
            panic!("accepted")
        };
        for flag in ["--buckets", "--redis-timeout"] {
            assert!(problems.iter().any(|problem| problem.starts_with(flag)), "{flag} in {problems:?}");
        }
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn errors_of_the_ca_name_its_own_flag() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for (url, ca, flag) in [
            ("rediss://redis", "/no/such/file", "--redis-ca cannot be read"),
            ("rediss://redis", path, "--redis-ca: the CA file has no certificate"),
            ("redis://redis", path, "--redis-ca: a CA needs an encrypted URL"),
            ("rediss-cluster://redis", path, "--redis-url: host number 1"),
        ] {
            let Err(SettingsError(problems)) = read(&["--redis-url", url, "--redis-ca", ca]) else {
                panic!("accepted")
            };
            assert!(problems.len() == 1 && problems[0].starts_with(flag), "{problems:?}");
        }
    }
}
