//! Settings that both services share. Each is a flag with an environment variable, and all errors are reported
//! together.
//!
//! clap reads flags and environment as text. [`Problems`] parses the texts and collects all errors and contradictions.
//! Durations are written with their unit: `500ms`, `30s`, `24h`.

mod edge;

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::problems::Problems;
use crate::serve::ServeConfig;
use crate::serve::budget::least_bytes;
use crate::store::credentials::KEEP_ONCE;
use crate::store::{BadUrl, RedisConfig, RedisUrl, StoreConfig};
use crate::telemetry::{self, LogConfig};
use crate::traces::TraceConfig;

use edge::Edge;
pub use edge::EdgeArgs;

/// The flags that both services have.
#[derive(Debug, Clone, clap::Args)]
pub struct CommonArgs {
    /// Redis URL: redis://[user:password@]host[:port][/db], unix://path,
    /// redis-cluster://[user:password@]host:port[,host:port...], or
    /// redis-sentinel://[user:password@]host:port[,host:port...]/MASTER[/db][?sentinel_user=USER&sentinel_password=PASSWORD];
    /// rediss instead of redis enables TLS
    #[arg(long, env = "FORMID_REDIS_URL", default_value = "redis://127.0.0.1:6379", hide_env_values = true)]
    pub redis_url: String,
    /// CA certificates for Redis over TLS: a PEM file; the system's root certificates if not given
    #[arg(long, env = "FORMID_REDIS_CA")]
    pub redis_ca: Option<PathBuf>,
    /// Number of connections to each Redis master, shared by all calls; one is the fastest if Redis is near
    #[arg(long, env = "FORMID_REDIS_CONNECTIONS", default_value = "1")]
    pub redis_connections: String,
    /// How long Redis may take to answer (duration)
    #[arg(long, env = "FORMID_REDIS_TIMEOUT", default_value = "2s")]
    pub redis_timeout: String,
    /// Number of buckets over which each app's users are spread; fixed for the life of a Redis
    #[arg(long, env = "FORMID_BUCKETS", default_value = "512")]
    pub buckets: String,
    /// Maximum number of records per user; beyond it, the record that expires first is dropped
    #[arg(long, env = "FORMID_RECORDS_PER_USER", default_value = "120")]
    pub records_per_user: String,
    /// Maximum size of a received message (bytes)
    #[arg(long, env = "FORMID_MAX_MESSAGE_BYTES", default_value = "4194304")]
    pub max_message_bytes: String,
    /// How long to continue serving after health reports NOT_SERVING, so that load balancers notice (duration)
    #[arg(long, env = "FORMID_DRAIN_WAIT", default_value = "1s")]
    pub drain_wait: String,
    /// How long calls in progress may take to finish at a stop (duration)
    #[arg(long, env = "FORMID_DRAIN_TIMEOUT", default_value = "30s")]
    pub drain_timeout: String,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub edge: EdgeArgs,
    /// Where to serve Prometheus metrics at /metrics (IP address:port); not served if not given
    #[arg(long, env = "FORMID_METRICS_LISTEN", default_value = "")]
    pub metrics_listen: String,
    /// Format of log lines: human or json
    #[arg(long, env = "FORMID_LOG_FORMAT", default_value = "human")]
    pub log_format: String,
    /// Log filter: a level, or levels by module such as info,dispatcher=debug
    #[arg(long, env = "FORMID_LOG", default_value = "info")]
    pub log: String,
    /// Where to export traces by OTLP over gRPC: http://host:port or https://host:port; no traces if not given
    #[arg(long, env = "FORMID_OTLP_ENDPOINT", default_value = "", hide_env_values = true)]
    pub otlp_endpoint: String,
    /// Fraction of calls that are traced if the caller's own trace does not decide it (0 to 1)
    #[arg(long, env = "FORMID_TRACE_RATIO", default_value = "1")]
    pub trace_ratio: String,
}

/// The settings that both services share.
#[derive(Clone)]
pub struct Common {
    /// The address for calls.
    pub listen: SocketAddr,
    /// The settings of the store.
    pub store: StoreConfig,
    /// The settings of the server.
    pub serve: ServeConfig,
    /// The address for metrics, if they are enabled.
    pub metrics_listen: Option<SocketAddr>,
    /// The settings of the log.
    pub log: LogConfig,
    /// The settings of traces.
    pub traces: TraceConfig,
}

impl CommonArgs {
    /// Returns whether the log format is JSON. Works also if other settings are invalid.
    pub fn log_json(&self) -> bool {
        self.log_format == "json"
    }

    /// Parses and checks the common flags. `listen` is the text of the service's own `--listen`.
    pub fn read(&self, listen: &str, problems: &mut Problems) -> Option<Common> {
        let listen = problems.read("--listen", listen);
        let metrics_listen = match self.metrics_listen.as_str() {
            "" => None,
            text => problems.read("--metrics-listen", text),
        };
        if metrics_listen.is_some_and(|metrics: SocketAddr| metrics.port() > 0 && listen == Some(metrics)) {
            problems.add("--metrics-listen must differ from --listen: metrics have a port of their own, in plain HTTP");
        }
        let url = self.redis(problems);
        let connections = problems.within("--redis-connections", &self.redis_connections, 1..=256);
        let timeout = problems.duration("--redis-timeout", &self.redis_timeout);
        let buckets = problems.within("--buckets", &self.buckets, 1..=16384);
        let cap = problems.within("--records-per-user", &self.records_per_user, 1..=10000);
        let max_message_bytes = problems.within("--max-message-bytes", &self.max_message_bytes, 1024..=256 << 20);
        let drain_wait = problems.duration("--drain-wait", &self.drain_wait);
        let drain_timeout = problems.duration("--drain-timeout", &self.drain_timeout);
        let edge = self.edge.read(listen, problems);
        if let (Some(largest), Some(Edge { limits, .. })) = (max_message_bytes, &edge)
            && limits.bytes < least_bytes(largest as usize)
        {
            problems.add(format!(
                "--max-bytes-in-flight is {}, but must be at least {} for the messages of {largest} bytes that \
                 --max-message-bytes permits: a message needs twice its size, and may use half of the memory at most",
                limits.bytes,
                least_bytes(largest as usize)
            ));
        }
        let filter = problems.keep("--log", &self.log, telemetry::check_filter(&self.log));
        let traces = TraceConfig::read(&self.otlp_endpoint, &self.trace_ratio, problems);
        let json = match self.log_format.as_str() {
            "json" => Some(true),
            "human" => Some(false),
            other => {
                problems.add(format!("--log-format is {other:?}, but must be human or json"));
                None
            }
        };
        let redis = RedisConfig { url: url?, connections: connections? as usize, timeout: timeout? };
        let edge = edge?;
        Some(Common {
            listen: listen?,
            store: StoreConfig { redis, buckets: buckets? as u16, cap: cap? as u16, keep_once: KEEP_ONCE },
            serve: ServeConfig {
                drain_wait: drain_wait?,
                drain_timeout: drain_timeout?,
                max_message_bytes: max_message_bytes? as usize,
                callers: edge.callers,
                tls: edge.tls,
                probe_listen: edge.probe_listen,
                limits: edge.limits,
                connections: edge.connections,
            },
            metrics_listen,
            log: LogConfig { json: json?, filter: filter? },
            traces: traces?,
        })
    }

    /// Parses the Redis URL. No error quotes it, because it may contain a password.
    fn redis(&self, problems: &mut Problems) -> Option<RedisUrl> {
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

    use super::*;
    use crate::problems::SettingsError;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        common: CommonArgs,
    }

    fn read(flags: &[&str]) -> Result<Common, SettingsError> {
        let flags = Flags::parse_from(std::iter::once(&"test").chain(flags));
        let mut problems = Problems::default();
        let common = flags.common.read("127.0.0.1:0", &mut problems);
        problems.finish().map(|()| common.unwrap())
    }

    #[test]
    fn defaults_are_valid() {
        let common = read(&[]).unwrap();
        assert_eq!((common.store.buckets, common.store.cap), (512, 120));
    }

    #[test]
    fn metrics_listen_must_differ_from_listen() {
        assert_eq!(read(&[]).unwrap().metrics_listen, None);
        let common = read(&["--metrics-listen", "127.0.0.1:9100"]).unwrap();
        assert_eq!(common.metrics_listen, Some("127.0.0.1:9100".parse().unwrap()));
        assert!(read(&["--metrics-listen", "nowhere"]).is_err());

        let read_both = |listen, metrics| {
            let flags = Flags::parse_from(["test", "--metrics-listen", metrics]);
            let mut problems = Problems::default();
            flags.common.read(listen, &mut problems);
            problems.finish()
        };
        assert!(read_both("127.0.0.1:7001", "127.0.0.1:7001").is_err());
        assert!(read_both("127.0.0.1:0", "127.0.0.1:0").is_ok());
    }

    #[test]
    fn all_errors_are_reported_together_and_name_their_flag() {
        let flags = ["--buckets", "0", "--redis-timeout", "2", "--log-format", "xml", "--drain-wait=-1s"];
        let Err(SettingsError(problems)) = read(&flags) else { panic!("accepted") };
        for flag in ["--buckets", "--redis-timeout", "--log-format", "--drain-wait"] {
            assert!(problems.iter().any(|problem| problem.starts_with(flag)), "{flag} in {problems:?}");
        }
        assert_eq!(problems.len(), 4);
    }

    #[test]
    fn max_bytes_in_flight_must_suffice_for_the_largest_message() {
        let large = ["--max-message-bytes", "104857600"];
        let Err(SettingsError(problems)) = read(&large) else { panic!("accepted") };
        assert!(problems.len() == 1 && problems[0].starts_with("--max-bytes-in-flight is 134217728, "), "{problems:?}");
        assert!(read(&[&large[..], &["--max-bytes-in-flight", "419463168"]].concat()).is_ok());
        assert!(read(&[&large[..], &["--max-bytes-in-flight", "419463167"]].concat()).is_err());
    }

    #[test]
    fn errors_of_the_ca_name_its_own_flag() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for (url, ca, flag) in [
            ("rediss://redis", "/no/such/file", "--redis-ca cannot be read"),
            ("rediss://redis", path, "--redis-ca: there is no certificate"),
            ("redis://redis", path, "--redis-ca: there is a CA"),
            ("rediss-cluster://redis", path, "--redis-url: host number 1"),
        ] {
            let Err(SettingsError(problems)) = read(&["--redis-url", url, "--redis-ca", ca]) else {
                panic!("accepted")
            };
            assert!(problems.len() == 1 && problems[0].starts_with(flag), "{problems:?}");
        }
    }
}
