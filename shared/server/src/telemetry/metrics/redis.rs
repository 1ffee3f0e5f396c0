//! Metrics of Redis commands: durations, errors, and whether Redis is up.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use domain::dependency::CommandObserver;
use prometheus::{Error, Histogram, HistogramVec, IntCounter, IntGauge};

use super::registry::{REDIS_SECONDS, Registry};
use crate::telemetry::outage::{Outage, QUIET};

/// The label of commands that are not in the list of known commands.
const OTHER: &str = "other";

/// Counts the Redis commands of one service. Clones share the counters.
#[derive(Debug, Clone)]
pub struct RedisMetrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    seconds: HistogramVec,
    /// Histograms by the name of the command or script. Each is created at its first use, because a service uses few of
    /// them.
    by_command: HashMap<&'static str, OnceLock<Histogram>>,
    errors: IntCounter,
    /// Logs the errors. It counts them in `errors` too, except errors that concern only one command.
    outage: Outage,
    up: IntGauge,
}

impl RedisMetrics {
    /// Registers the metrics. `formid_redis_up` starts at 0. `commands` are the names of all commands and script files.
    pub fn new(registry: &Registry, commands: impl Iterator<Item = &'static str>) -> Result<Self, Error> {
        let seconds = registry.histograms(
            "formid_redis_seconds",
            "Duration of Redis commands, in seconds; a script is labelled with its file name",
            &["command"],
            REDIS_SECONDS,
        )?;
        let errors = registry.counter(
            "formid_redis_errors_total",
            "Commands and scripts that failed: rejected by Redis, not answered, or without a connection",
        )?;
        let up = registry.gauge("formid_redis_up", "1 if Redis answered the last health check, otherwise 0")?;
        let (begins, ends) = ("commands to Redis fail", "commands to Redis succeed again");
        let outage = Outage::new("redis", None, begins.into(), ends.into(), Some(errors.clone()), QUIET);
        let inner = Inner {
            seconds,
            by_command: commands.chain([OTHER]).map(|name| (name, OnceLock::new())).collect(),
            errors,
            outage,
            up,
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl CommandObserver for RedisMetrics {
    fn took(&self, command: &str, time: Duration) {
        let Inner { seconds, by_command, .. } = &*self.inner;
        if let Some((name, made)) = by_command.get_key_value(command).or_else(|| by_command.get_key_value(OTHER)) {
            made.get_or_init(|| seconds.with_label_values(&[name])).observe(time.as_secs_f64());
        }
    }

    fn succeeded(&self) {
        self.inner.outage.succeeded();
    }

    fn refused(&self) {
        self.inner.errors.inc();
    }

    fn failed(&self, error: &dyn Display) {
        self.inner.outage.failed(error);
    }

    fn is_up(&self, up: bool) {
        self.inner.up.set(up.into());
    }
}
