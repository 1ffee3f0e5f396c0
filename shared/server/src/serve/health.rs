//! Health checks for load balancers and the kubelet. Readiness depends on Redis.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use domain::dependency::{Dependency, Fault as _, FaultKind};
use prometheus::IntCounter;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;
use tracing::info;

use super::admission::{Admission, Limits};
use super::call::CallHandler;
use super::connections::{ConnectionLimits, Connections};
use crate::listen::bind;
use crate::telemetry::outage::Outages;

/// The health service name for liveness. It is SERVING even if Redis is down, because a restart would not repair Redis.
pub const LIVENESS: &str = "liveness";

/// How often readiness checks Redis.
const INTERVAL: Duration = Duration::from_secs(1);

/// The maximum age of a connection to the probe port, so that a watch there does not last forever.
const AGE: Duration = Duration::from_secs(600);
/// The limits of other calls on that port, where only health is served. Such calls get an error.
const OTHERS: Limits = Limits { requests: 16, streams: 16, bytes: 0 };

pub(super) async fn show(reporter: &HealthReporter, service: &str, status: ServingStatus) {
    reporter.set_service_status("", status).await;
    reporter.set_service_status(service, status).await;
}

/// Prepares Redis once it is available, and reports SERVING while it answers. Returns only if this Redis cannot be
/// used.
pub(super) async fn follow_redis(
    reporter: &HealthReporter,
    service: &str,
    store: &impl Dependency,
    outages: &Outages,
) -> io::Error {
    const READY: &str = "serving: Redis is ready";
    let mut readiness = outages.loop_outage("readiness", "not serving: waiting for Redis", READY).operation();
    let mut serving = None;
    loop {
        // After an outage it may be a different Redis, so it is prepared again.
        let answer = if serving == Some(true) { store.ping().await } else { store.prepare().await };
        if let Err(refused) = &answer
            && refused.kind() == FaultKind::Misconfigured
        {
            return io::Error::other(refused.to_string());
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

/// Serves health on a port of its own, in plaintext and without authentication, because the kubelet uses no TLS and has
/// no token. It is served until this is dropped, which a service does last.
#[derive(Debug)]
#[must_use = "the probes are answered until this is dropped"]
pub struct Probes {
    _connections: Option<Connections>,
}

impl Probes {
    /// Does nothing if `address` is `None`. Fails if the address is not available. `shed` counts the calls that are
    /// rejected because a limit was reached.
    pub(super) async fn open<H: Health>(
        address: Option<SocketAddr>,
        health: HealthServer<H>,
        shed: IntCounter,
    ) -> io::Result<Self> {
        let Some(address) = address else { return Ok(Self { _connections: None }) };
        let listener = bind("--probe-listen", address).await?;
        info!(listen = %listener.local_addr()?, "probes");
        let admission = Admission::new(None, &OTHERS, 0, shed);
        let handler = CallHandler { admission, metrics: None, routes: Routes::new(health) };
        let limits = ConnectionLimits { age: Some(AGE), ..ConnectionLimits::default() };
        let connections = Connections::accept(listener, None, limits, handler);
        Ok(Self { _connections: Some(connections) })
    }
}
