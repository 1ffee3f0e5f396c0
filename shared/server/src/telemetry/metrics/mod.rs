//! Prometheus metrics of a service.
//!
//! - [`registry`]: creates metrics, and renders them as text;
//! - [`page`]: the HTTP endpoint for that text;
//! - [`grpc`]: calls, by method and code; [`redis`]: commands; [`files`]: certificates and reloaded files;
//! - `process`: memory and CPU.
//!
//! There are no global metrics. Each service creates its metrics once and passes them to its parts, so that several
//! services in one process do not mix. A part gets a small struct of metric handles that were looked up in advance;
//! counting is then one atomic addition.
//!
//! Label values come only from closed sets: the configured apps, the methods in the descriptors, the codes in tables.
//! An external value outside of these sets becomes `other` or is not counted. No label identifies a user, a template, a
//! request or a credential.

pub mod files;
pub mod grpc;
pub mod page;
mod process;
pub mod redis;
pub mod registry;

pub use prometheus::{Error, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use files::FileMetrics;
use grpc::Calls;
use redis::RedisMetrics;
use registry::Registry;

use crate::telemetry::outage::Outages;

/// The metrics that both services have.
#[derive(Clone)]
pub struct ServiceMetrics {
    /// The registry of these metrics; a service adds its own metrics.
    pub registry: Registry,
    pub calls: Calls,
    pub redis: RedisMetrics,
    pub files: FileMetrics,
    pub outages: Outages,
}

impl ServiceMetrics {
    /// Registers the metrics of the service with this full name, which must be in the descriptors.
    pub fn new(service: &str, commands: impl Iterator<Item = &'static str>) -> Result<Self, Error> {
        let registry = Registry::default();
        let calls = Calls::new(&registry, service)?;
        let redis = RedisMetrics::new(&registry, commands)?;
        let files = FileMetrics::new(&registry)?;
        let outages = Outages::new(&registry)?;
        process::register(&registry)?;
        let build = registry.gauges("formid_build_info", "1, labelled with the version that runs", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self { registry, calls, redis, files, outages })
    }
}
