//! Where metrics are made: each name once, with its help, its labels and, for a histogram, its buckets.

use prometheus::core::Collector;
use prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, TextEncoder,
};

/// The upper bounds, in seconds, of the buckets for calls to WeChat. With the usual settings a call takes at most 5 s; the
/// longest that can be set lies below `--lease`, which is 30 s.
pub const WECHAT_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0];

/// The same for gRPC calls. A send may take 40 s. A stream ends with its connection, after `--max-connection-age` and its
/// grace: 11.5 minutes at most, with the usual settings.
pub const CALL_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 120.0, 300.0, 900.0];

/// The same for commands of Redis, most of which are answered within a millisecond, and all within `--redis-timeout`.
pub const REDIS_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// The metrics of one service; clones share them. Each function fails on a name that is taken, or none.
#[derive(Debug, Clone, Default)]
pub struct Registry(prometheus::Registry);

impl Registry {
    /// A number that only grows.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.add(IntCounter::new(name, help)?)
    }

    /// One for each combination of label values.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    /// A number that goes up and down.
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.add(IntGauge::new(name, help)?)
    }

    /// One for each combination of label values.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// How long things took, by buckets that are fixed: memory does not grow with what is observed.
    pub fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> Result<HistogramVec, Error> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?)
    }

    /// Everything, in Prometheus' text format 0.0.4.
    pub fn text(&self) -> Result<String, Error> {
        TextEncoder::new().encode_to_string(&self.0.gather())
    }

    pub(super) fn add<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M, Error> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_observations_that_nobody_reads_take_no_more_room_than_one() {
        let registry = Registry::default();
        let seconds = registry.histograms("test_seconds", "test", &["kind"], CALL_SECONDS).unwrap();
        let handle = seconds.with_label_values(&["one"]);
        handle.observe(0.003);
        let size = registry.text().unwrap().lines().count();
        let before = resident_kilobytes();
        (0..1_000_000).for_each(|n| handle.observe(f64::from(n) / 50_000.0));
        // As eight bytes each they would be 8000. Other tests of the same process may take some, too.
        let grown = resident_kilobytes().saturating_sub(before);
        assert!(grown < 6000, "{grown} kB more");
        let text = registry.text().unwrap();
        assert_eq!(text.lines().count(), size);
        assert!(text.contains("test_seconds_count{kind=\"one\"} 1000001"), "{text}");
    }

    fn resident_kilobytes() -> u64 {
        super::super::process::read().unwrap().resident_bytes / 1024
    }
}
