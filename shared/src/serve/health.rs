//! Health: what load balancers and the kubelet ask, and what the answer stands on.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use super::connections::{ConnectionLimits, Connections};
use crate::store::{Error, Store};

/// The name under which a service says that it runs, whatever becomes of Redis: to restart it would not mend Redis.
pub const LIVENESS: &str = "liveness";

/// How often readiness follows Redis.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn show(reporter: &HealthReporter, service: &str, status: ServingStatus) {
    reporter.set_service_status("", status).await;
    reporter.set_service_status(service, status).await;
}

/// Prepares Redis as soon as it is there, and shows SERVING while it answers. Returns only when this Redis can not be used.
pub(super) async fn follow_redis(reporter: &HealthReporter, service: &str, store: &Store) -> io::Error {
    let mut serving = None;
    loop {
        // What comes back may be another Redis, so it is prepared anew.
        let answer = if serving == Some(true) { store.ping().await } else { store.prepare().await };
        if let Err(refused @ Error::BucketCount { .. }) = answer {
            return io::Error::other(refused);
        }
        if serving != Some(answer.is_ok()) {
            serving = Some(answer.is_ok());
            match answer {
                Ok(()) => {
                    info!("serving: Redis is ready");
                    show(reporter, service, ServingStatus::Serving).await;
                }
                Err(error) => {
                    warn!(%error, "not serving: waiting for Redis");
                    show(reporter, service, ServingStatus::NotServing).await;
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Health on a port of its own, in plain text and for everybody, since the kubelet speaks no TLS and has no token. It is
/// answered until this is dropped; a service drops it last.
#[derive(Debug)]
#[must_use = "the probes are answered until this is dropped"]
pub struct Probes {
    _connections: Option<Connections>,
}

impl Probes {
    /// Nothing where there is no address. Fails when the address can not be had.
    pub(super) async fn open<H: Health>(address: Option<SocketAddr>, health: HealthServer<H>) -> io::Result<Self> {
        let Some(address) = address else { return Ok(Self { _connections: None }) };
        let listener = TcpListener::bind(address).await?;
        info!(listen = %listener.local_addr()?, "probes");
        let connections = Connections::accept(listener, None, ConnectionLimits::default(), Routes::new(health));
        Ok(Self { _connections: Some(connections) })
    }
}
