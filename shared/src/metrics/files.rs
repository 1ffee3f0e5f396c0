//! Files that are read again while a service runs: whether their content is in use, and when the certificate expires.

use prometheus::{Error, IntGauge, IntGaugeVec};

use super::registry::Registry;

/// What one service tells of its files; clones share the numbers. A file that is not set has no series.
#[derive(Debug, Clone)]
pub struct FileMetrics {
    in_use: IntGaugeVec,
    expiry: IntGaugeVec,
}

impl FileMetrics {
    /// Without any file.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        Ok(Self {
            in_use: registry.gauges(
                "formid_reload_successful",
                "1 while the content of a file is in use, 0 while it is refused or can not be read",
                &["file"],
            )?,
            // Without labels, but a vector: a gauge would be 0 where there is no certificate.
            expiry: registry.gauges(
                "formid_tls_certificate_expiry_timestamp_seconds",
                "When the first certificate of the service's chain expires, in seconds since 1970",
                &[],
            )?,
        })
    }

    /// Whether the content of a file is in use: `callers` or `tls`.
    pub fn in_use(&self, file: &'static str) -> IntGauge {
        self.in_use.with_label_values(&[file])
    }

    /// The certificate that is in use expires at this time, if that could be read.
    pub fn certificate_expires(&self, at: Option<i64>) {
        match at {
            Some(at) => self.expiry.with_label_values(&[] as &[&str]).set(at),
            None => self.expiry.reset(),
        }
    }
}
