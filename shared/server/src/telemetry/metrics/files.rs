//! Metrics of files that are reloaded while a service runs: whether the content is in use, and when the TLS certificate
//! expires.

use prometheus::{Error, IntGauge, IntGaugeVec};

use super::registry::Registry;

/// The file metrics of one service; clones share the values. A file that is not configured has no series.
#[derive(Debug, Clone)]
pub struct FileMetrics {
    in_use: IntGaugeVec,
    expiry: IntGaugeVec,
}

impl FileMetrics {
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        Ok(Self {
            in_use: registry.gauges(
                "formid_reload_successful",
                "1 while the content of a file is in use, 0 while it is refused or cannot be read",
                &["file"],
            )?,
            // A vector without labels, because a plain gauge would report 0 if there is no certificate.
            expiry: registry.gauges(
                "formid_tls_certificate_expiry_timestamp_seconds",
                "When the first certificate of the service's chain expires, in seconds since 1970",
                &[],
            )?,
        })
    }

    /// The gauge of a file (`callers`, `tls`, or `token_file/` and an app id): whether its content is in use.
    pub fn in_use(&self, file: &str) -> IntGauge {
        self.in_use.with_label_values(&[file])
    }

    /// Sets the expiry time of the certificate in use, if it could be read.
    pub fn certificate_expires(&self, at: Option<i64>) {
        match at {
            Some(at) => self.expiry.with_label_values(&[] as &[&str]).set(at),
            None => self.expiry.reset(),
        }
    }
}
