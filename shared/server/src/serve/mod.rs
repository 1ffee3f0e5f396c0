//! Serves a service: authentication, limits, health, reflection, deadlines, and a drain that lets calls in progress
//! finish.
//!
//! - `accept`: accepts connections and limits their number; [`connections`]: TLS, and how connections end; [`closing`]:
//!   how their streams end; [`tls`]: certificates;
//! - `call`: handles one call; [`admission`]: who may call, and concurrency limits; [`budget`]: the limit of memory for
//!   messages;
//! - [`health`]: readiness, liveness, and the port for probes.

pub(crate) mod accept;
pub mod admission;
mod arrival;
pub mod budget;
mod call;
pub mod closing;
pub mod connections;
mod discard;
pub mod health;
mod lists;
mod paced;
mod streams;
pub mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use domain::dependency::Dependency;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tracing::{info, warn};

use crate::auth::Callers;
use crate::proto::DESCRIPTORS;
use crate::telemetry::metrics::ServiceMetrics;
use accept::within_files;
use admission::{Admission, Limits};
use call::CallHandler;
use connections::{ConnectionLimits, Connections};
use health::{LIVENESS, Probes, follow_redis, show};
use tls::Tls;

#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// How long to continue serving after health reports NOT_SERVING.
    pub drain_wait: Duration,
    /// How long calls in progress may take to finish.
    pub drain_timeout: Duration,
    pub max_message_bytes: usize,
    /// The configured callers; if `None`, calls need no authentication.
    pub callers: Option<Arc<Callers>>,
    /// TLS; plaintext if `None`.
    pub tls: Option<Tls>,
    /// An additional address that answers probes in plaintext.
    pub probe_listen: Option<SocketAddr>,
    pub limits: Limits,
    pub connections: ConnectionLimits,
}

/// The API to serve.
#[derive(Debug)]
pub struct Api<D> {
    /// The full name of the gRPC service. Health is reported under it, beside `""`.
    pub service: &'static str,
    pub routes: Routes,
    /// The store that readiness depends on.
    pub store: D,
}

/// Serves until `shutdown`, then drains: reports NOT_SERVING, waits until load balancers have seen it, stops accepting,
/// and lets calls in progress finish, within `drain_wait` and `drain_timeout`. `metrics` has the metrics of calls and
/// of reloaded files.
///
/// Returns the probes. Drop them only when everything else is done. Fails if the address for probes is not available,
/// or if the service cannot work with this Redis.
pub async fn serve(
    listener: TcpListener,
    Api { service, routes, store }: Api<impl Dependency>,
    metrics: &ServiceMetrics,
    config: &ServeConfig,
    shutdown: impl Future<Output = ()>,
) -> io::Result<Probes> {
    let outages = &metrics.outages;
    let (reporter, health) = tonic_health::server::health_reporter();
    show(&reporter, service, ServingStatus::NotServing).await;
    reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
    // The descriptors contain both services, but only the one served here is listed.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that command-line clients can decode the details of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(service)
            .with_service_name("grpc.health.v1.Health")
    };
    let routes = routes
        .add_service(health.clone())
        .add_service(reflection().build_v1().map_err(io::Error::other)?)
        .add_service(reflection().build_v1alpha().map_err(io::Error::other)?)
        .prepare();

    // Dropping the set aborts the tasks, however this function ends.
    let mut followers = JoinSet::new();
    if let Some(callers) = &config.callers {
        followers.spawn(Arc::clone(callers).follow(metrics.files.in_use("callers"), outages.clone()));
    }
    if let Some(tls) = &config.tls {
        followers.spawn(tls.clone().follow(metrics.files.clone(), outages.clone()));
    }
    let probes = Probes::open(config.probe_listen, health, metrics.calls.shed().clone()).await?;
    let (callers, shed) = (config.callers.clone(), metrics.calls.shed().clone());
    let admission = Admission::new(callers, &config.limits, config.max_message_bytes, shed);
    let handler = CallHandler { admission, metrics: Some(metrics.calls.clone()), routes };
    let mut limits = config.connections.clone();
    limits.bounds.connections = within_files(limits.bounds.connections);
    let connections = Connections::accept(listener, config.tls.clone(), limits, handler);

    tokio::select! {
        refused = follow_redis(&reporter, service, &store, outages) => return Err(refused),
        () = shutdown => {}
    }
    info!("draining");
    show(&reporter, service, ServingStatus::NotServing).await;
    tokio::time::sleep(config.drain_wait).await;
    if !connections.drain(config.drain_timeout).await {
        warn!("drain timed out with calls in progress");
    }
    info!("stopped");
    Ok(probes)
}

/// Completes at the first SIGTERM or SIGINT. A second signal ends the process immediately.
pub fn signals() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            warn!("second signal: exiting immediately");
            std::process::exit(130);
        });
    })
}
