//! The dispatcher's flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use domain::config_errors::{ConfigErrors, SettingsError};
use server::config::{Common, CommonArgs};
use store::leases::LeaseTerms;
use store::{StoreArgs, StoreConfig};

use crate::apps_file::Apps;
use crate::clock::Clock;

/// The shortest lease. Expired leases are looked for several times within one lease, and Redis counts leases in
/// milliseconds.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// Sends template messages to users of WeChat mini programs, over gRPC
#[derive(Debug, Clone, Parser)]
#[command(name = "dispatcher", version)]
pub struct Args {
    /// Address to listen on (IP address:port)
    #[arg(long, env = "FORMID_DISPATCHER_LISTEN", default_value = "127.0.0.1:7002")]
    pub listen: String,
    /// TOML file with the apps and their secrets
    #[arg(long, env = "FORMID_APPS_FILE")]
    pub apps_file: PathBuf,
    /// Duration of a lease: how long a message reserves its credential (duration); must be longer than a call to WeChat
    #[arg(long, env = "FORMID_LEASE", default_value = "30s")]
    pub lease: String,
    /// Credentials that expire within this time are not used (duration); must be at least --lease
    #[arg(long, env = "FORMID_LEASE_MARGIN", default_value = "60s")]
    pub lease_margin: String,
    /// How long a request id and its outcome are kept (duration)
    #[arg(long, env = "FORMID_KEEP_REQUESTS", default_value = "24h")]
    pub keep_requests: String,
    /// Interval at which the reaper looks for expired leases (duration)
    #[arg(long, env = "FORMID_REAP_INTERVAL", default_value = "5s")]
    pub reap_interval: String,
    /// Maximum number of calls to WeChat with one credential
    #[arg(long, env = "FORMID_ATTEMPTS", default_value = "5")]
    pub attempts: String,
    /// Maximum number of credentials tried for one message
    #[arg(long, env = "FORMID_CREDENTIALS_PER_MESSAGE", default_value = "5")]
    pub credentials_per_message: String,
    /// Pause before the second attempt (duration); it doubles with each further attempt
    #[arg(long, env = "FORMID_BACKOFF", default_value = "100ms")]
    pub backoff: String,
    /// How long nothing is sent for an app that WeChat stopped, if WeChat gives no time (duration)
    #[arg(long, env = "FORMID_STOP", default_value = "10m")]
    pub stop: String,
    /// Maximum number of messages of one broadcast in flight at once, on this replica
    #[arg(long, env = "FORMID_BROADCAST_IN_FLIGHT", default_value = "128")]
    pub broadcast_in_flight: String,
    /// Number of user buckets of one broadcast processed at once, on this replica
    #[arg(long, env = "FORMID_BROADCAST_TASKS", default_value = "4")]
    pub broadcast_tasks: String,
    /// Percentage of the last 1000 messages that may fail before a broadcast pauses
    #[arg(long, env = "FORMID_BROADCAST_FAILURES", default_value = "50")]
    pub broadcast_failures: String,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub common: CommonArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub store: StoreArgs,
}

/// The parsed settings.
#[derive(Clone)]
pub struct Settings {
    /// Settings that both services have.
    pub common: Common,
    /// Settings of the store.
    pub store: StoreConfig,
    /// The configured apps.
    pub apps: Apps,
    /// Limits of sends and broadcasts.
    pub limits: Limits,
    /// Interval of the reaper.
    pub reap_interval: Duration,
    /// Wall clock.
    pub clock: Clock,
}

/// Limits of the sends and broadcasts of a replica.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Duration, margin and retention of leases.
    pub terms: LeaseTerms,
    /// Maximum number of calls to WeChat with one credential.
    pub attempts: u32,
    /// Maximum number of credentials tried for one message.
    pub credentials: u32,
    /// Pause before the second attempt. It doubles with each further attempt, up to 4 s.
    pub backoff: Duration,
    /// How long nothing is sent for an app that WeChat stopped, if WeChat gives no time.
    pub stop: Duration,
    /// Maximum number of messages of one broadcast in flight at once.
    pub broadcast_in_flight: usize,
    /// Number of buckets of one broadcast processed at once.
    pub broadcast_tasks: usize,
    /// Ratio of the last 1000 messages that may fail before a broadcast pauses.
    pub broadcast_failures: f64,
}

impl Args {
    /// Parses all flags and the apps file. All errors and contradictions are reported together.
    pub fn read(&self) -> Result<Settings, SettingsError> {
        let mut problems = ConfigErrors::default();
        let settings = self.settings(&mut problems);
        problems.finish()?;
        settings.ok_or_else(|| SettingsError(vec!["the settings are incomplete".into()]))
    }

    fn settings(&self, problems: &mut ConfigErrors) -> Option<Settings> {
        let common = self.common.read(&self.listen, problems);
        let store = self.store.read(problems);
        let apps = Apps::read(&self.apps_file, problems);
        let duration = problems.duration("--lease", &self.lease);
        let margin = problems.duration("--lease-margin", &self.lease_margin);
        let keep = problems.duration("--keep-requests", &self.keep_requests);
        let reap_interval = problems.duration("--reap-interval", &self.reap_interval);
        let attempts = problems.within("--attempts", &self.attempts, 1..=100);
        let credentials = problems.within("--credentials-per-message", &self.credentials_per_message, 1..=100);
        let backoff = problems.duration("--backoff", &self.backoff);
        let stop = problems.duration("--stop", &self.stop);
        let in_flight = problems.within("--broadcast-in-flight", &self.broadcast_in_flight, 1..=10_000);
        let tasks = problems.within("--broadcast-tasks", &self.broadcast_tasks, 1..=64);
        let failures = problems.within("--broadcast-failures", &self.broadcast_failures, 1..=100);

        let terms = LeaseTerms { duration: duration?, margin: margin?, keep: keep? };
        contradictions(&terms, apps.as_ref(), reap_interval?, problems);
        let limits = Limits {
            terms,
            attempts: attempts? as u32,
            credentials: credentials? as u32,
            backoff: backoff?,
            stop: stop?,
            broadcast_in_flight: in_flight? as usize,
            broadcast_tasks: tasks? as usize,
            broadcast_failures: failures? as f64 / 100.0,
        };
        let (common, store, apps, reap_interval) = (common?, store?, apps?, reap_interval?);
        Some(Settings { common, store, apps, limits, reap_interval, clock: Clock::default() })
    }
}

fn contradictions(terms: &LeaseTerms, apps: Option<&Apps>, reap_interval: Duration, problems: &mut ConfigErrors) {
    for app in apps.into_iter().flat_map(Apps::iter) {
        if terms.duration <= app.timeout {
            problems.add(format!(
                "--lease is {:?}, but a call of app {} may take {:?}: the message would be sent again while that call is in progress",
                terms.duration, app.id, app.timeout
            ));
        }
    }
    if terms.duration < SHORTEST_LEASE {
        problems.add(format!("--lease is {:?}, but must be at least {SHORTEST_LEASE:?}", terms.duration));
    }
    if terms.margin < terms.duration {
        problems.add(format!(
            "--lease-margin is {:?}, but must be at least --lease ({:?}): a credential must not expire while it is leased",
            terms.margin, terms.duration
        ));
    }
    if terms.keep < terms.duration.max(Duration::from_secs(1)) {
        problems
            .add(format!("--keep-requests is {:?}, but must be at least --lease ({:?})", terms.keep, terms.duration));
    }
    if reap_interval.is_zero() {
        problems.add("--reap-interval must not be 0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_each_flag_with_its_variable_and_default() {
        let amiss = testing::flags_amiss(&<Args as clap::CommandFactory>::command());
        assert!(amiss.is_empty(), "{amiss:#?}");
    }
}
