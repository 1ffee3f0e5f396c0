//! Where a service listens: opened before anything else, so that an address that can not be had is told at once.

use std::io;
use std::net::SocketAddr;

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
            Some(address) => Some(bind("--metrics-listen", address).await?),
            None => None,
        };
        Ok(Self { calls: bind("--listen", settings.listen).await?, metrics })
    }
}

/// Opens the address of a flag; an error names both.
pub(crate) async fn bind(flag: &str, address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| io::Error::new(error.kind(), format!("{flag} {address} cannot be opened: {error}")))
}

impl From<TcpListener> for Listeners {
    fn from(calls: TcpListener) -> Self {
        Self { calls, metrics: None }
    }
}
