//! A service's life: health, reflection, deadlines, and a stop that loses nothing.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use crate::deadline::Deadlines;
use crate::proto::DESCRIPTORS;
use crate::store::{Error, Store};

/// How a service serves.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// How long to go on after NOT_SERVING is shown.
    pub drain_wait: Duration,
    /// How long calls under way may take to finish.
    pub drain_timeout: Duration,
    /// The largest message taken in, in bytes.
    pub max_message_bytes: usize,
}

/// How often readiness follows Redis.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Serves until `shutdown`, then drains: shows NOT_SERVING, waits for load balancers to see it, stops accepting, and lets
/// calls under way finish, all within a bound. `service` is the full name health is reported under beside `""`.
pub async fn serve(
    listener: TcpListener,
    service: &'static str,
    routes: Routes,
    store: Store,
    config: &ServeConfig,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (reporter, health) = tonic_health::server::health_reporter();
    show(&reporter, service, ServingStatus::NotServing).await;
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
        .add_service(health)
        .add_service(reflection().build_v1().map_err(io::Error::other)?)
        .add_service(reflection().build_v1alpha().map_err(io::Error::other)?);

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // A connection that broke while it was accepted is the peer's affair, not the end of the server.
    let incoming = TcpListenerStream::new(listener).filter(|accepted| accepted.is_ok()).map(|accepted| {
        accepted.inspect(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                warn!(%error, "TCP_NODELAY refused");
            }
        })
    });
    let server = Server::builder()
        .layer(Deadlines)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, async {
            let _ = stopped.await;
        });
    let mut server = std::pin::pin!(server);
    let watch = follow_redis(&reporter, service, &store);

    tokio::select! {
        ended = &mut server => return ended.map_err(io::Error::other),
        refused = watch => return Err(refused),
        () = shutdown => {}
    }
    info!("draining");
    show(&reporter, service, ServingStatus::NotServing).await;
    tokio::select! {
        ended = &mut server => return ended.map_err(io::Error::other),
        () = tokio::time::sleep(config.drain_wait) => {}
    }
    let _ = stop.send(());
    // Clients that keep idle connections open, or streams, would hold it up for ever.
    if tokio::time::timeout(config.drain_timeout, server).await.is_err() {
        warn!("calls were still under way at the end of the drain");
    }
    info!("stopped");
    Ok(())
}

async fn show(reporter: &HealthReporter, service: &str, status: ServingStatus) {
    reporter.set_service_status("", status).await;
    reporter.set_service_status(service, status).await;
}

/// Prepares Redis as soon as it is there, and shows SERVING while it answers. Returns only when this Redis can not be used.
async fn follow_redis(reporter: &HealthReporter, service: &str, store: &Store) -> io::Error {
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
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
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
