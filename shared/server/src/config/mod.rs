//! Settings that both services share. Each is a flag with an environment variable, and all errors are reported
//! together.
//!
//! clap parses each flag into a [`Setting`]: a value, or the error in its text. [`ConfigErrors`] collects these errors and
//! contradictions. Durations are written with their unit: `500ms`, `30s`, `24h`.

mod server;

use std::net::SocketAddr;
use std::str::FromStr as _;

use crate::serve::ServeConfig;
use crate::telemetry::traces::{self, TraceConfig};
use crate::telemetry::{self, LogConfig};
use domain::config_errors::ConfigErrors;
use domain::setting::{Setting, number, optional, setting};

pub use self::server::ServerArgs;

/// The flags that both services have.
#[derive(Debug, Clone, clap::Args)]
pub struct CommonArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Where to serve Prometheus metrics at /metrics (IP address:port); not served if not given
    #[arg(long, env = "FORMID_METRICS_LISTEN", default_value = "", value_parser = optional(SocketAddr::from_str))]
    pub metrics_listen: Setting<Option<SocketAddr>>,
    /// Format of log lines: human or json
    #[arg(long, env = "FORMID_LOG_FORMAT", default_value = "human", value_parser = setting(is_json))]
    pub log_format: Setting<bool>,
    /// Log filter: a level, or levels by module such as info,dispatcher=debug
    #[arg(long, env = "FORMID_LOG", default_value = "info", value_parser = setting(telemetry::check_filter))]
    pub log: Setting<String>,
    /// Where to export traces by OTLP over gRPC: http://host:port or https://host:port; no traces if not given
    #[arg(long, env = "FORMID_OTLP_ENDPOINT", default_value = "", hide_env_values = true, value_parser = optional(traces::endpoint))]
    pub otlp_endpoint: Setting<Option<String>>,
    /// Fraction of calls that are traced if the caller's own trace does not decide it (0 to 1)
    #[arg(long, env = "FORMID_TRACE_RATIO", default_value = "1", value_parser = number::<f64>(0.0..=1.0))]
    pub trace_ratio: Setting<f64>,
}

/// The settings that both services share.
#[derive(Clone)]
pub struct Common {
    /// The address for calls.
    pub listen: SocketAddr,
    pub serve: ServeConfig,
    pub metrics_listen: Option<SocketAddr>,
    pub log: LogConfig,
    pub traces: TraceConfig,
}

impl CommonArgs {
    /// Reads the common flags. `listen` is the service's own `--listen`.
    pub fn read(&self, listen: &Setting<SocketAddr>, errors: &mut ConfigErrors) -> Common {
        let listen = errors.take(listen);
        let metrics_listen = errors.take(&self.metrics_listen);
        if metrics_listen.is_some_and(|metrics| metrics.port() > 0 && metrics == listen) {
            errors.add("--metrics-listen must differ from --listen: metrics have a port of their own, in plain HTTP");
        }
        Common {
            listen,
            serve: self.server.read(listen, errors),
            metrics_listen,
            log: LogConfig { json: errors.take(&self.log_format), filter: errors.take(&self.log) },
            traces: TraceConfig { endpoint: errors.take(&self.otlp_endpoint), ratio: errors.take(&self.trace_ratio) },
        }
    }

    /// Returns whether the log format is JSON. Works also if other settings are invalid.
    pub fn log_json(&self) -> bool {
        ConfigErrors::default().take(&self.log_format)
    }
}

fn is_json(format: &str) -> Result<bool, &'static str> {
    match format {
        "json" => Ok(true),
        "human" => Ok(false),
        _ => Err("must be human or json"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use domain::config_errors::SettingsError;

    #[derive(Parser)]
    struct Flags {
        #[arg(long, default_value = "127.0.0.1:0", value_parser = setting(SocketAddr::from_str))]
        listen: Setting<SocketAddr>,
        #[command(flatten)]
        common: CommonArgs,
    }

    fn read(flags: &[&str]) -> Result<Common, SettingsError> {
        let flags = Flags::parse_from(std::iter::once(&"test").chain(flags));
        let mut problems = ConfigErrors::default();
        let common = flags.common.read(&flags.listen, &mut problems);
        problems.finish(Some(common))
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

        let read_both = |listen, metrics| read(&["--listen", listen, "--metrics-listen", metrics]);
        assert!(read_both("127.0.0.1:7001", "127.0.0.1:7001").is_err());
        assert!(read_both("127.0.0.1:0", "127.0.0.1:0").is_ok());
    }

    #[test]
    fn all_errors_are_reported_together_and_name_their_flag() {
        let flags = ["--max-message-bytes", "0", "--drain-timeout", "2", "--log-format", "xml", "--drain-wait=-1s"];
        let Err(SettingsError(problems)) = read(&flags) else { panic!("accepted") };
        for flag in ["--max-message-bytes", "--drain-timeout", "--log-format", "--drain-wait"] {
            assert!(problems.iter().any(|problem| problem.starts_with(flag)), "{flag} in {problems:?}");
        }
        assert_eq!(problems.len(), 4);
    }

    #[test]
    fn trace_endpoint_is_a_url_without_secrets() {
        for good in ["http://otel:4317", "https://otel.example:4317/", "http://[::1]:4317", "http://otel"] {
            assert_eq!(read(&["--otlp-endpoint", good]).unwrap().traces.endpoint.as_deref(), Some(good));
        }
        for bad in
            ["otel:4317", "grpc://otel:4317", "http://u:p@otel:4317", "http://otel/v1", "http://otel?key=x", "http://"]
        {
            let Err(SettingsError(problems)) = read(&["--otlp-endpoint", bad]) else { panic!("{bad}") };
            assert!(problems.len() == 1 && problems[0].starts_with("--otlp-endpoint: must be "), "{problems:?}");
            assert!(!problems[0].contains("u:p") && !problems[0].contains("key"), "{problems:?}");
        }
    }

    #[test]
    fn trace_ratio_is_between_0_and_1() {
        for (ratio, good) in
            [("0", true), ("0.25", true), ("1", true), ("1.1", false), ("-1", false), ("NaN", false), ("10%", false)]
        {
            assert_eq!(read(&[&format!("--trace-ratio={ratio}")]).is_ok(), good, "{ratio}");
        }
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
