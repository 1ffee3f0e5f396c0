//! The dispatcher's flags.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use clap::Parser;
use domain::config_errors::{ConfigErrors, SettingsError};
use domain::setting::{LONGEST, Setting, duration, duration_within, number, setting};
use server::config::{Common, CommonArgs};
use store::leases::LeaseTerms;
use store::{StoreArgs, StoreConfig};

use crate::apps_file::Apps;
use crate::clock::Clock;

/// The shortest lease. The dispatcher looks for expired leases several times within one lease duration, and Redis
/// counts leases in milliseconds.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// WeChat limits queries of the quota too.
const AWAIT_QUOTA: Duration = Duration::from_secs(60);
/// How long a prepay id rests that WeChat does not know, perhaps because its order is not paid yet.
const PREPAY_REST: Duration = Duration::from_secs(5 * 60);

/// Sends template messages to users of WeChat mini programs, over gRPC
#[derive(Debug, Clone, Parser)]
#[command(name = "dispatcher", version)]
pub struct Args {
    /// Address to listen on (IP address:port)
    #[arg(long, env = "FORMID_DISPATCHER_LISTEN", default_value = "127.0.0.1:7002", value_parser = setting(SocketAddr::from_str))]
    pub listen: Setting<SocketAddr>,
    /// TOML file with the apps and their secrets
    #[arg(long, env = "FORMID_APPS_FILE")]
    pub apps_file: PathBuf,
    /// Duration of a lease: how long a message reserves its credential (duration); must be longer than a call to WeChat
    #[arg(long, env = "FORMID_LEASE", default_value = "30s", value_parser = duration_within(SHORTEST_LEASE..=LONGEST))]
    pub lease: Setting<Duration>,
    /// Credentials that expire within this time are not used (duration); must be at least --lease
    #[arg(long, env = "FORMID_LEASE_MARGIN", default_value = "60s", value_parser = duration())]
    pub lease_margin: Setting<Duration>,
    /// How long a request id and its outcome are kept (duration)
    #[arg(long, env = "FORMID_KEEP_REQUESTS", default_value = "24h", value_parser = duration())]
    pub keep_requests: Setting<Duration>,
    /// Interval at which the reaper looks for expired leases (duration)
    #[arg(long, env = "FORMID_REAP_INTERVAL", default_value = "5s", value_parser = duration_within(Duration::from_nanos(1)..=LONGEST))]
    pub reap_interval: Setting<Duration>,
    /// Maximum number of calls to WeChat with one credential
    #[arg(long, env = "FORMID_ATTEMPTS", default_value = "5", value_parser = number::<u32>(1..=100))]
    pub attempts: Setting<u32>,
    /// Maximum number of credentials tried for one message
    #[arg(long, env = "FORMID_CREDENTIALS_PER_MESSAGE", default_value = "5", value_parser = number::<u32>(1..=100))]
    pub credentials_per_message: Setting<u32>,
    /// Pause before the second attempt (duration); it doubles with each further attempt
    #[arg(long, env = "FORMID_BACKOFF", default_value = "100ms", value_parser = duration())]
    pub backoff: Setting<Duration>,
    /// How long an app stop lasts, if WeChat does not say when it ends (duration); until then the app sends nothing
    #[arg(long, env = "FORMID_STOP", default_value = "10m", value_parser = duration())]
    pub stop: Setting<Duration>,
    /// Maximum number of messages of one broadcast in flight, on this replica
    #[arg(long, env = "FORMID_BROADCAST_IN_FLIGHT", default_value = "128", value_parser = number::<usize>(1..=10_000))]
    pub broadcast_in_flight: Setting<usize>,
    /// Number of user buckets of one broadcast processed at the same time, on this replica; with 0, this replica sends
    /// nothing of broadcasts, and still answers all calls about them
    #[arg(long, env = "FORMID_BROADCAST_TASKS", default_value = "4", value_parser = number::<usize>(0..=64))]
    pub broadcast_tasks: Setting<usize>,
    /// Percentage of the last 1000 messages that may fail before a broadcast pauses
    #[arg(long, env = "FORMID_BROADCAST_FAILURES", default_value = "50", value_parser = number::<u8>(1..=100))]
    pub broadcast_failures: Setting<u8>,
    /// Percentage of the last 1000 messages that may be refused with 43101 before a broadcast pauses
    #[arg(long, env = "FORMID_BROADCAST_REFUSALS", default_value = "50", value_parser = number::<u8>(1..=100))]
    pub broadcast_refusals: Setting<u8>,
    #[command(flatten)]
    pub common: CommonArgs,
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
    /// How long an app stop lasts, if WeChat does not say when it ends.
    pub stop: Duration,
    /// Interval at which WeChat is asked, over all replicas, whether a quota that was used up has a remainder again.
    pub await_quota: Duration,
    /// Maximum number of messages of one broadcast in flight.
    pub broadcast_in_flight: usize,
    /// Number of buckets of one broadcast processed at the same time; 0 if this replica takes no part in broadcasts.
    pub broadcast_tasks: usize,
    /// Ratio of the last 1000 messages that may fail before a broadcast pauses.
    pub broadcast_failures: f64,
    /// Ratio of the last 1000 messages that may be refused with 43101 before a broadcast pauses.
    pub broadcast_refusals: f64,
    /// How long a prepay id that WeChat does not know yet is not used.
    pub prepay_rest: Duration,
}

impl Settings {
    /// Reads all flags and the apps file. All errors and contradictions are reported together.
    pub fn read(args: &Args) -> Result<Self, SettingsError> {
        let mut errors = ConfigErrors::default();
        let terms = args.terms(&mut errors);
        let lease = Some(terms.duration).filter(|_| errors.is_empty());
        let limits = Limits {
            terms,
            attempts: errors.take(&args.attempts),
            credentials: errors.take(&args.credentials_per_message),
            backoff: errors.take(&args.backoff),
            stop: errors.take(&args.stop),
            await_quota: AWAIT_QUOTA,
            broadcast_in_flight: errors.take(&args.broadcast_in_flight),
            broadcast_tasks: errors.take(&args.broadcast_tasks),
            broadcast_failures: f64::from(errors.take(&args.broadcast_failures)) / 100.0,
            broadcast_refusals: f64::from(errors.take(&args.broadcast_refusals)) / 100.0,
            prepay_rest: PREPAY_REST,
        };
        let reap_interval = errors.take(&args.reap_interval);
        let common = args.common.read(&args.listen, &mut errors);
        let store = args.store.read(&mut errors);
        let apps = Apps::read(&args.apps_file, &mut errors);
        for app in apps.iter().flat_map(Apps::iter) {
            if let Some(lease) = lease.filter(|lease| *lease <= app.timeout) {
                errors.add(format!(
                    "--lease is {lease:?}, but a call of app {} may take {:?}: the message would be sent again while \
                     that call is in progress",
                    app.id, app.timeout
                ));
            }
        }
        let (store, apps) = errors.finish(store.zip(apps))?;
        Ok(Self { common, store, apps, limits, reap_interval, clock: Clock::default() })
    }
}

impl Args {
    fn terms(&self, errors: &mut ConfigErrors) -> LeaseTerms {
        let (duration, margin) = (errors.take(&self.lease), errors.take(&self.lease_margin));
        let keep = errors.take(&self.keep_requests);
        let valid = errors.is_empty();
        if valid && margin < duration {
            errors.add(format!(
                "--lease-margin is {margin:?}, but must be at least --lease ({duration:?}): a credential must not expire while it is leased"
            ));
        }
        if valid && keep < duration {
            errors.add(format!("--keep-requests is {keep:?}, but must be at least --lease ({duration:?})"));
        }
        LeaseTerms { duration, margin, keep }
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
