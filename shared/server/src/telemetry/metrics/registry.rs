//! Creates and registers metrics: each name once, with its help text, its labels and, for a histogram, its buckets.

use prometheus::core::Collector;
use prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, TextEncoder,
};

/// The upper bounds, in seconds, of the buckets for calls to WeChat. With the default settings a call takes at most 5
/// s. The longest timeout that can be set is below `--lease`, which is 30 s.
pub const WECHAT_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0];

/// The bucket bounds for gRPC calls, in seconds. A send may take 40 s. A stream ends with its connection, after
/// `--max-connection-age` and its grace: at most 11.5 minutes with the default settings.
pub const CALL_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 120.0, 300.0, 900.0];

/// The bucket bounds for Redis commands, in seconds. Most take less than a millisecond, and all less than
/// `--redis-timeout`.
pub const REDIS_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// The metrics of one service; clones share them. Each function fails if a name is invalid or already in use.
#[derive(Debug, Clone, Default)]
pub struct Registry(prometheus::Registry);

impl Registry {
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.add(IntCounter::new(name, help)?)
    }

    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.add(IntGauge::new(name, help)?)
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// Registers histograms with fixed buckets, so that memory does not grow with the number of observations.
    pub fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> Result<HistogramVec, Error> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?)
    }

    /// Returns all metrics in Prometheus' text format 0.0.4.
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
    fn memory_does_not_grow_with_unscraped_observations() {
        let registry = Registry::default();
        let seconds = registry.histograms("test_seconds", "test", &["kind"], CALL_SECONDS).unwrap();
        let handle = seconds.with_label_values(&["one"]);
        handle.observe(0.003);
        let size = registry.text().unwrap().lines().count();
        let before = resident_kilobytes();
        (0..1_000_000).for_each(|n| handle.observe(f64::from(n) / 50_000.0));
        // Stored with eight bytes each, they would take 8000 kB. Other tests of the same process may allocate too.
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
