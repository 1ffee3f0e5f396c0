//! A service's life: who is let in, health, reflection, deadlines, and a stop that loses nothing.
//!
//! - `accept`: accepting, and how many connections there may be; [`connections`]: TLS, and how they end; [`tls`]:
//!   certificates;
//! - [`guard`]: who may call, and how much at once; [`budget`]: how much memory that may take up;
//! - [`health`]: readiness, liveness, and the port for probes.

pub(crate) mod accept;
mod arrival;
mod body;
pub mod budget;
pub mod connections;
mod discard;
pub mod guard;
pub mod health;
mod lists;
mod streams;
pub mod tls;
mod turns;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tower::Layer as _;
use tower::util::option_layer;
use tracing::{info, warn};

use crate::auth::Callers;
use crate::deadline::Deadlines;
use crate::metrics::ServiceMetrics;
use crate::proto::DESCRIPTORS;
use crate::store::Store;
use crate::traces::rpc;
use accept::within_files;
use connections::{ConnectionLimits, Connections};
use guard::{Guard, Limits};
use health::{LIVENESS, Probes, follow_redis, show};
use tls::Tls;

/// How a service serves.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// How long to go on after NOT_SERVING is shown.
    pub drain_wait: Duration,
    /// How long calls under way may take to finish.
    pub drain_timeout: Duration,
    /// The largest message taken in, in bytes.
    pub max_message_bytes: usize,
    /// Who may call; everybody where there are none.
    pub callers: Option<Arc<Callers>>,
    /// How connections are secured; not at all where there is none.
    pub tls: Option<Tls>,
    /// Where probes are answered in plain text, beside the service's own address.
    pub probe_listen: Option<SocketAddr>,
    /// How much may be under way at once.
    pub limits: Limits,
    /// What bounds one connection.
    pub connections: ConnectionLimits,
}

/// Serves until `shutdown`, then drains: shows NOT_SERVING, waits for load balancers to see it, stops accepting, and lets
/// calls under way finish, all within a bound. `service` is the full name health is reported under beside `""`, and
/// `metrics` count its calls and tell of its files.
///
/// Answers with the probes, which are to be dropped when all else is done. Fails when the address for them can not be had,
/// and when this Redis can not be used.
pub async fn serve(
    listener: TcpListener,
    service: &'static str,
    routes: Routes,
    store: Store,
    metrics: &ServiceMetrics,
    config: &ServeConfig,
    shutdown: impl Future<Output = ()>,
) -> io::Result<Probes> {
    let outages = &metrics.outages;
    let (reporter, health) = tonic_health::server::health_reporter();
    show(&reporter, service, ServingStatus::NotServing).await;
    reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
    // Both services are in the descriptors; only the one that is served here is listed.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that command-line clients can show the details of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(service)
            .with_service_name("grpc.health.v1.Health")
    };
    let routes = routes
        .add_service(health.clone())
        .add_service(reflection().build_v1().map_err(io::Error::other)?)
        .add_service(reflection().build_v1alpha().map_err(io::Error::other)?)
        .prepare();

    // Ended with this function, whichever way it ends.
    let mut followers = JoinSet::new();
    if let Some(callers) = &config.callers {
        followers.spawn(Arc::clone(callers).follow(metrics.files.in_use("callers"), outages.clone()));
    }
    if let Some(tls) = &config.tls {
        followers.spawn(tls.clone().follow(metrics.files.clone(), outages.clone()));
    }
    let probes = Probes::open(config.probe_listen, health, metrics.calls.shed().clone()).await?;
    // Outside of deadlines, so that one is seen as the end it is; behind the guard, so that neither strangers nor what
    // finds no room get a trace made.
    let traced = option_layer(rpc::layer()).layer(Deadlines.layer(routes));
    let (callers, shed) = (config.callers.clone(), metrics.calls.shed().clone());
    let guarded = Guard::new(callers, &config.limits, config.max_message_bytes, shed).layer(traced);
    // Outside of all others, to count what they refuse.
    let counted = metrics.calls.layer(guarded);
    let mut limits = config.connections.clone();
    limits.bounds.connections = within_files(limits.bounds.connections);
    let connections = Connections::accept(listener, config.tls.clone(), limits, counted);

    tokio::select! {
        refused = follow_redis(&reporter, service, &store, outages) => return Err(refused),
        () = shutdown => {}
    }
    info!("draining");
    show(&reporter, service, ServingStatus::NotServing).await;
    tokio::time::sleep(config.drain_wait).await;
    if !connections.drain(config.drain_timeout).await {
        warn!("calls were still under way at the end of the drain");
    }
    info!("stopped");
    Ok(probes)
}

/// Ends at the first SIGTERM or SIGINT; a second one ends the process at once.
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
            warn!("second signal: stopping at once");
            std::process::exit(130);
        });
    })
}
