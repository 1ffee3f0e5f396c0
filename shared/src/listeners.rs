//! Where a service listens: opened before anything else, so that an address that can not be had is told at once.

use std::io;

use tokio::net::TcpListener;

use crate::settings::Common;

/// The open doors of a service.
#[derive(Debug)]
pub struct Listeners {
    /// For calls.
    pub calls: TcpListener,
    /// For Prometheus, if it is to read metrics.
    pub metrics: Option<TcpListener>,
}

impl Listeners {
    /// Opens those of the settings. Fails when an address can not be had.
    pub async fn open(settings: &Common) -> io::Result<Self> {
        let metrics = match settings.metrics_listen {
            Some(address) => Some(TcpListener::bind(address).await?),
            None => None,
        };
        Ok(Self { calls: TcpListener::bind(settings.listen).await?, metrics })
    }
}

impl From<TcpListener> for Listeners {
    fn from(calls: TcpListener) -> Self {
        Self { calls, metrics: None }
    }
}
