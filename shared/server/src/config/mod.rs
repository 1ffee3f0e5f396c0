//! Settings that both services share. Each is a flag with an environment variable, and all errors are reported
//! together.
//!
//! clap reads flags and environment as text. [`ConfigErrors`] parses the texts and collects all errors and contradictions.
//! Durations are written with their unit: `500ms`, `30s`, `24h`.

mod server;

use std::net::SocketAddr;

use crate::serve::ServeConfig;
use crate::serve::budget::least_bytes;
use crate::telemetry::traces::TraceConfig;
use crate::telemetry::{self, LogConfig};
use domain::config_errors::ConfigErrors;

pub use self::server::ServerArgs;
use self::server::ServerConfig;

/// The flags that both services have.
#[derive(Debug, Clone, clap::Args)]
pub struct CommonArgs {
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
    pub edge: ServerArgs,
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
    pub fn read(&self, listen: &str, problems: &mut ConfigErrors) -> Option<Common> {
        let listen = problems.read("--listen", listen);
        let metrics_listen = match self.metrics_listen.as_str() {
            "" => None,
            text => problems.read("--metrics-listen", text),
        };
        if metrics_listen.is_some_and(|metrics: SocketAddr| metrics.port() > 0 && listen == Some(metrics)) {
            problems.add("--metrics-listen must differ from --listen: metrics have a port of their own, in plain HTTP");
        }
        let max_message_bytes = problems.within("--max-message-bytes", &self.max_message_bytes, 1024..=256 << 20);
        let drain_wait = problems.duration("--drain-wait", &self.drain_wait);
        let drain_timeout = problems.duration("--drain-timeout", &self.drain_timeout);
        let edge = self.edge.read(listen, problems);
        if let (Some(largest), Some(ServerConfig { limits, .. })) = (max_message_bytes, &edge)
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
        let edge = edge?;
        Some(Common {
            listen: listen?,
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
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use domain::config_errors::SettingsError;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        common: CommonArgs,
    }

    fn read(flags: &[&str]) -> Result<Common, SettingsError> {
        let flags = Flags::parse_from(std::iter::once(&"test").chain(flags));
        let mut problems = ConfigErrors::default();
        let common = flags.common.read("127.0.0.1:0", &mut problems);
        problems.finish().map(|()| common.unwrap())
    }

    #[test]
    fn the_defaults_are_usable() {
        assert_eq!(read(&[]).unwrap().serve.max_message_bytes, 4 << 20);
    }

    #[test]
    fn metrics_listen_must_differ_from_listen() {
        assert_eq!(read(&[]).unwrap().metrics_listen, None);
        let common = read(&["--metrics-listen", "127.0.0.1:9100"]).unwrap();
        assert_eq!(common.metrics_listen, Some("127.0.0.1:9100".parse().unwrap()));
        assert!(read(&["--metrics-listen", "nowhere"]).is_err());

        let read_both = |listen, metrics| {
            let flags = Flags::parse_from(["test", "--metrics-listen", metrics]);
            let mut problems = ConfigErrors::default();
            flags.common.read(listen, &mut problems);
            problems.finish()
        };
        assert!(read_both("127.0.0.1:7001", "127.0.0.1:7001").is_err());
        assert!(read_both("127.0.0.1:0", "127.0.0.1:0").is_ok());
    }

    #[test]
    fn everything_wrong_is_reported_at_once_and_by_name() {
        let flags = ["--max-message-bytes", "0", "--drain-timeout", "2", "--log-format", "xml", "--drain-wait=-1s"];
        let Err(SettingsError(problems)) = read(&flags) else { panic!("accepted") };
        for flag in ["--max-message-bytes", "--drain-timeout", "--log-format", "--drain-wait"] {
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
}
