//! Health: what load balancers and the kubelet ask, and what the answer stands on.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use prometheus::IntCounter;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;
use tower::Layer as _;
use tracing::info;

use super::connections::{ConnectionLimits, Connections};
use super::guard::{Guard, Limits};
use crate::listeners::bind;
use crate::outage::Outages;
use crate::store::{Error, Store};

/// The name under which a service says that it runs, whatever becomes of Redis: to restart it would not mend Redis.
pub const LIVENESS: &str = "liveness";

/// How often readiness follows Redis.
const INTERVAL: Duration = Duration::from_secs(1);

/// The age of a connection to the port for probes: whoever watches there must not do so for ever.
const AGE: Duration = Duration::from_secs(600);
/// What there may be beside health on that port, where nothing else is served: calls to be told so.
const OTHERS: Limits = Limits { requests: 16, streams: 16, bytes: 0 };

pub(super) async fn show(reporter: &HealthReporter, service: &str, status: ServingStatus) {
    reporter.set_service_status("", status).await;
    reporter.set_service_status(service, status).await;
}

/// Prepares Redis as soon as it is there, and shows SERVING while it answers. Returns only when this Redis can not be used.
pub(super) async fn follow_redis(
    reporter: &HealthReporter,
    service: &str,
    store: &Store,
    outages: &Outages,
) -> io::Error {
    const READY: &str = "serving: Redis is ready";
    let mut readiness = outages.loop_outage("readiness", "not serving: waiting for Redis", READY).operation();
    let mut serving = None;
    loop {
        // What comes back may be another Redis, so it is prepared anew.
        let answer = if serving == Some(true) { store.ping().await } else { store.prepare().await };
        if let Err(refused @ Error::BucketCount { .. }) = answer {
            return io::Error::other(refused);
        }
        let serves = answer.is_ok();
        match answer {
            Ok(()) if !readiness.succeeded() && serving.is_none() => info!("{READY}"),
            Ok(()) => {}
            Err(error) => readiness.failed(&error),
        }
        if serving != Some(serves) {
            serving = Some(serves);
            let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
            show(reporter, service, status).await;
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
    /// Nothing where there is no address. Fails when the address can not be had. `shed` counts what finds no room.
    pub(super) async fn open<H: Health>(
        address: Option<SocketAddr>,
        health: HealthServer<H>,
        shed: IntCounter,
    ) -> io::Result<Self> {
        let Some(address) = address else { return Ok(Self { _connections: None }) };
        let listener = bind("--probe-listen", address).await?;
        info!(listen = %listener.local_addr()?, "probes");
        let guarded = Guard::new(None, &OTHERS, 0, shed).layer(Routes::new(health));
        let limits = ConnectionLimits { age: Some(AGE), ..ConnectionLimits::default() };
        let connections = Connections::accept(listener, None, limits, guarded);
        Ok(Self { _connections: Some(connections) })
    }
}
