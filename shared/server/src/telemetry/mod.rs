//! Logs and traces. Each log event is one line on standard error, for people or as JSON. No openid, credential, token
//! or secret appears in logs or traces, at any level.

pub mod metrics;
pub mod outage;
pub mod traces;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::error::ErrorKind;
use tracing::{Level, error, info, warn};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::auth::audit::TARGET as AUDIT;
use crate::telemetry::traces::lines::WithTraceId;
use domain::config_errors::SettingsError;
use traces::{Exporting, TraceConfig};

#[derive(Debug, Clone)]
pub struct LogConfig {
    /// JSON instead of lines for people.
    pub json: bool,
    /// A filter in the syntax of tracing-subscriber: `info`, or `info,dispatcher=debug`.
    pub filter: String,
}

/// Parses the command line. If it is invalid, prints the error and returns the exit code for the process.
pub fn parse<A: clap::Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        if !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) && asks_for_json() {
            // Without the usage text, which is for people.
            let text = error.to_string();
            let problem = text.split("\n\nUsage").next().unwrap_or_default().trim_start_matches("error: ");
            return refuse(&SettingsError(vec![problem.split_whitespace().collect::<Vec<_>>().join(" ")]), true);
        }
        // If this fails, there is no other way to report the error.
        let _ = error.print();
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
    })
}

/// Returns whether `--log-format` or its variable is json. For command lines that cannot be parsed.
fn asks_for_json() -> bool {
    let mut arguments = std::env::args().skip_while(|argument| !argument.starts_with("--log-format"));
    let format = arguments.next().and_then(|flag| match flag.split_once('=') {
        Some((_, value)) => Some(value.to_owned()),
        None => arguments.next(),
    });
    format.or_else(|| std::env::var("FORMID_LOG_FORMAT").ok()).is_some_and(|format| format == "json")
}

/// Prints the errors in the settings: a list for people, or a log line for each error. Returns the exit code for a
/// usage error.
#[allow(clippy::print_stderr, reason = "logging is not set up before the settings are read")]
pub fn refuse(error: &SettingsError, json: bool) -> ExitCode {
    if json {
        let config = LogConfig { json, filter: "error".into() };
        let lines = tracing_subscriber::registry().with(lines(&config, false));
        tracing::subscriber::with_default(lines, || {
            error.0.iter().for_each(|problem| error!(problem, "the settings are not usable"));
        });
    } else {
        eprintln!("{error}");
    }
    ExitCode::from(2)
}

/// The logs and traces of this process. Stop them at the end of the process.
#[derive(Debug)]
#[must_use = "stop exports the last traces"]
pub struct Telemetry {
    traces: Option<Exporting>,
}

/// Starts logs and traces. Call it once, at the start of `main`, within the runtime. `service` is the service name in
/// traces.
pub fn start(service: &'static str, log: &LogConfig, config: &TraceConfig) -> Telemetry {
    let exporting = config.endpoint.as_deref().map(|endpoint| Exporting::new(service, endpoint, config)).transpose();
    // The same type of layers, with or without traces.
    let mut layers = vec![lines(log, matches!(exporting, Ok(Some(_))))];
    if let Ok(Some(exporting)) = &exporting {
        layers.push(exporting.layer().boxed());
    }
    tracing_subscriber::registry().with(layers).init();
    let traces = exporting.unwrap_or_else(|error| {
        // A service without traces is better than no service.
        warn!(error, "traces are not exported");
        None
    });
    if let Some(traces) = &traces {
        info!(instance = traces.instance(), ratio = config.ratio, "traces are exported");
    }
    Telemetry { traces }
}

impl Telemetry {
    /// Exports the remaining traces, within a bounded time.
    pub async fn stop(self) {
        if let Some(traces) = self.traces {
            traces.stop().await;
        }
    }
}

fn lines(config: &LogConfig, traced: bool) -> Box<dyn Layer<Registry> + Send + Sync> {
    // The filter was already checked with the settings; "info" is only a fallback.
    let asked = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // With this hint, an event below the configured level still costs only one comparison.
    let permitted = filter_fn(|metadata| permitted(metadata.target(), *metadata.level()));
    let filter = with_audit(asked, &config.filter).and(permitted.with_max_level_hint(Level::TRACE));
    let ansi = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let format = tracing_subscriber::fmt::format().with_ansi(ansi);
    if config.json {
        let lines = WithTraceId { lines: format.json(), json: true, traced };
        layer.json().event_format(lines).with_filter(filter).boxed()
    } else {
        let lines = WithTraceId { lines: format.with_target(false), json: false, traced };
        layer.event_format(lines).with_filter(filter).boxed()
    }
}

/// Returns whether an event may be logged, independently of the configured filter.
///
/// Libraries are not logged at `trace`, which serves only their own developers. No secret was found there, but any
/// release may add bytes, headers or URLs. The Redis client logs its full errors at `debug`, and they may quote a
/// command. Spans of traces are exported, not logged.
fn permitted(target: &str, level: Level) -> bool {
    let room = target.split("::").next().unwrap_or_default();
    match room {
        _ if target == traces::TARGET => false,
        AUDIT | "collector" | "dispatcher" | "domain" | "server" | "store" => true,
        "redis" | "deadpool" | "deadpool_redis" => level <= Level::INFO,
        _ => level <= Level::DEBUG,
    }
}

/// Adds the audit log to a filter that does not mention it, so that filtering other events does not lose it.
fn with_audit(filter: EnvFilter, text: &str) -> EnvFilter {
    match format!("{AUDIT}=info").parse() {
        Ok(directive) if !text.contains(AUDIT) => filter.add_directive(directive),
        _ => filter,
    }
}

pub fn check_filter(filter: &str) -> Result<String, String> {
    EnvFilter::try_new(filter).map(|_| filter.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_not_logged_at_their_finest_levels() {
        for (target, finest) in [
            ("dispatcher::send", Level::TRACE),
            ("store", Level::TRACE),
            ("h2::codec::framed_read", Level::DEBUG),
            ("hyper_util::client::legacy", Level::DEBUG),
            ("log", Level::DEBUG),
            ("redis::cluster_handling", Level::INFO),
        ] {
            for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
                assert_eq!(permitted(target, level), level <= finest, "{target} {level}");
            }
        }
        assert!(!permitted(traces::TARGET, Level::INFO));
    }
}
