//! The collector: receives credentials (rights to send messages to users) and stores them in Redis.
//!
//! - [`settings`]: the configuration;
//! - [`rpc`]: the gRPC layer; generated types are used only there;
//! - [`ingest`]: the hot path, which stores the credentials of all calls with few, large scripts;
//! - `callback`: parses the events that WeChat pushes about subscription messages, and reads the tokens that WeChat
//!   signs its requests with;
//! - `dedup`: dedup keys of grants and events;
//! - `jobs`: the sweeper, which deletes expired credentials and counts the stock, and the updates of the gauges;
//! - `metrics`: the Prometheus metrics.

mod callback;
mod clock;
mod dedup;
pub mod ingest;
mod jobs;
mod metrics;
pub mod rpc;
pub mod settings;

use std::future::Future;
use std::io;
use std::sync::Arc;

use server::listen::Listeners;
use server::proto::collector_service_server::{CollectorServiceServer, SERVICE_NAME};
use server::serve::{Api, serve};
use server::telemetry::metrics::page::Page;
use store::Store;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::ingest::Ingest;
use crate::metrics::Metrics;
use crate::rpc::Service;
use crate::settings::Settings;

/// Why the collector did not start, or stopped before its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Metrics(#[from] server::telemetry::metrics::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Runs the collector on `listeners` until `shutdown`, then drains. Redis may still be unavailable at the start: until
/// it answers, the health check returns NOT_SERVING.
///
/// Fails if the Redis URL is invalid, if this Redis belongs to a deployment with another number of buckets, or if the
/// address for probes cannot be bound.
pub async fn run(
    listeners: impl Into<Listeners>,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let listeners = listeners.into();
    let metrics_enabled = listeners.metrics.is_some();
    let metrics = Metrics::new(&settings.apps)?;
    // Metrics stay readable until the drain is complete.
    let _page = Page::open(listeners.metrics, &metrics.service.registry);
    let store = Store::counted(&settings.store, Arc::new(metrics.service.redis.clone()))?;
    let (ingest, batcher) = Ingest::start(store.clone(), settings.apps.clone(), metrics.intake.clone());
    // These tasks are aborted at the shutdown, and when this function returns.
    let mut jobs = JoinSet::new();
    let outages = &metrics.service.outages;
    jobs.spawn(jobs::sweeper::sweep(store.clone(), settings.apps.clone(), settings.sweep_period, outages.clone()));
    if metrics_enabled {
        jobs.spawn(jobs::gauges::follow(store.clone(), settings.clone(), metrics.gauges, outages.clone()));
    }
    let drain = CancellationToken::new();
    let config = &settings.common.serve;
    let service = Service::new(store.clone(), ingest, metrics.intake, settings.clone(), drain.clone());
    let service = CollectorServiceServer::new(service).max_decoding_message_size(config.max_message_bytes);
    // Streams do not end by themselves. They are ended after `drain_wait`, when load balancers have had the time to
    // stop using this replica.
    let (streams, drain_wait) = (drain.clone(), config.drain_wait);
    let shutdown = async move {
        shutdown.await;
        drop(jobs);
        tokio::spawn(async move {
            tokio::time::sleep(drain_wait).await;
            streams.cancel();
        });
    };
    let api = Api { service: SERVICE_NAME, routes: Routes::new(service), store };
    let served = serve(listeners.calls, api, &metrics.service, config, shutdown).await;
    drain.cancel();
    // Store the credentials of callers that have disconnected. Health probes are answered until then.
    batcher.finish(settings.store.redis.timeout).await;
    drop(served?);
    Ok(())
}
