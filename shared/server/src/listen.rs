//! Opens the listening sockets of a service. This happens first, so that an unavailable address is reported
//! immediately.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;

#[derive(Debug)]
pub struct Listeners {
    pub calls: TcpListener,
    pub metrics: Option<TcpListener>,
}

impl Listeners {
    /// Opens the addresses of `--listen` and `--metrics-listen`. Fails if an address is not available.
    pub async fn open(calls: SocketAddr, metrics: Option<SocketAddr>) -> io::Result<Self> {
        let metrics = match metrics {
            Some(address) => Some(bind("--metrics-listen", address).await?),
            None => None,
        };
        Ok(Self { calls: bind("--listen", calls).await?, metrics })
    }
}

/// Opens the address of a flag. An error names the flag and the address.
pub(crate) async fn bind(flag: &str, address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| io::Error::new(error.kind(), format!("{flag} {address} cannot be opened: {error}")))
}

impl From<TcpListener> for Listeners {
    fn from(calls: TcpListener) -> Self {
        Self { calls, metrics: None }
    }
}
