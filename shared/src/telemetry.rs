//! Logs: one line an event on standard error, for people or as JSON. No openid, credential, token or secret, at any level.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::auth::audit::TARGET as AUDIT;

/// What is logged, and how it looks.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// JSON instead of lines for people.
    pub json: bool,
    /// A filter as tracing-subscriber reads it: `info`, or `info,dispatcher=debug`.
    pub filter: String,
}

/// Starts logging; call once, at the start of `main`.
pub fn init(config: &LogConfig) {
    // Settings have refused a bad filter before this; "info" is what is left if one slips through.
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = with_audit(filter, &config.filter);
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if config.json { lines.json().init() } else { lines.with_target(false).init() }
}

/// What has to be found later is not lost by filtering the rest, unless the filter says so.
fn with_audit(filter: EnvFilter, text: &str) -> EnvFilter {
    match format!("{AUDIT}=info").parse() {
        Ok(directive) if !text.contains(AUDIT) => filter.add_directive(directive),
        _ => filter,
    }
}

/// Whether a filter can be read.
pub fn check_filter(filter: &str) -> Result<String, String> {
    EnvFilter::try_new(filter).map(|_| filter.to_owned()).map_err(|error| error.to_string())
}
