//! What a service counts, for Prometheus.
//!
//! - [`registry`]: where metrics are made, and the text they are read as;
//! - [`page`]: the HTTP endpoint for that text;
//! - [`grpc`]: calls, by method and code; [`redis`]: commands; [`files`]: certificates and files that are read again;
//! - `process`: memory and CPU.
//!
//! There are no globals: each service makes its metrics once and hands them to its parts, so that several services in one
//! process do not mix. A part gets a small struct with the handles it needs, looked up before the first call; to count is
//! then to add to an atomic.
//!
//! Labels take values out of closed sets only: apps of the settings, methods of the descriptors, codes of tables. What
//! comes from outside and is in no such set becomes `other`, or is not counted. No label tells of a user, a template, a
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

use crate::outage::Outages;
use crate::store;

/// The metrics that both services have.
#[derive(Clone)]
pub struct ServiceMetrics {
    /// Where they stand; a service adds its own.
    pub registry: Registry,
    /// Calls of the service.
    pub calls: Calls,
    /// What Redis is asked.
    pub redis: RedisMetrics,
    /// Files that are read again while the service runs.
    pub files: FileMetrics,
    /// Work that is repeated until it succeeds.
    pub outages: Outages,
}

impl ServiceMetrics {
    /// The metrics of the service with this full name, which must be in the descriptors.
    pub fn new(service: &str) -> Result<Self, Error> {
        let registry = Registry::default();
        let calls = Calls::new(&registry, service)?;
        let redis = RedisMetrics::new(&registry, store::commands())?;
        let files = FileMetrics::new(&registry)?;
        let outages = Outages::new(&registry)?;
        process::register(&registry)?;
        let build = registry.gauges("formid_build_info", "1, for each version that runs", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self { registry, calls, redis, files, outages })
    }
}
