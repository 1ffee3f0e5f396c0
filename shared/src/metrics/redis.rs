//! What Redis is asked, how long it takes, and whether it answers.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::{Error, Histogram, HistogramVec, IntCounter, IntGauge};

use super::registry::{REDIS_SECONDS, Registry};
use crate::outage::{Outage, QUIET};

/// A command that nobody named.
const OTHER: &str = "other";

/// Counts what one service asks of Redis; clones share the counts.
#[derive(Debug, Clone)]
pub struct RedisMetrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    seconds: HistogramVec,
    /// By the name of the command or script; made at its first use, since a service uses few of them.
    by_command: HashMap<&'static str, OnceLock<Histogram>>,
    errors: IntCounter,
    /// Counts the same errors, but for those that are about one command.
    outage: Outage,
    up: IntGauge,
}

impl RedisMetrics {
    /// Nothing was asked yet, and Redis counts as away. The commands are what may be asked: commands and files of scripts.
    pub fn new(registry: &Registry, commands: impl Iterator<Item = &'static str>) -> Result<Self, Error> {
        let seconds = registry.histograms(
            "formid_redis_seconds",
            "How long Redis took to answer, in seconds; a script goes by its file",
            &["command"],
            REDIS_SECONDS,
        )?;
        let errors = registry.counter(
            "formid_redis_errors_total",
            "Commands and scripts that Redis refused, or did not answer, or that found no connection",
        )?;
        let up = registry.gauge("formid_redis_up", "Whether Redis answered when it was last looked after: 1 or 0")?;
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

    /// A command was answered, or given up, after this time.
    pub(crate) fn took(&self, command: &str, time: Duration) {
        let Inner { seconds, by_command, .. } = &*self.inner;
        if let Some((name, made)) = by_command.get_key_value(command).or_else(|| by_command.get_key_value(OTHER)) {
            made.get_or_init(|| seconds.with_label_values(&[name])).observe(time.as_secs_f64());
        }
    }

    /// Redis did what a command asked for.
    pub(crate) fn succeeded(&self) {
        self.inner.outage.succeeded();
    }

    /// Redis refused a command for what it asks for.
    pub(crate) fn refused(&self) {
        self.inner.errors.inc();
    }

    /// A command was not answered, or with an error that may pass.
    pub(crate) fn failed(&self, error: &dyn Display) {
        self.inner.outage.failed(error);
    }

    /// Redis was looked after.
    pub(crate) fn is_up(&self, up: bool) {
        self.inner.up.set(up.into());
    }
}
