//! The collector: receives credentials (rights to send messages to users) and stores them in Redis.
//!
//! - [`settings`]: the configuration;
//! - [`callback::tokens`]: reads the tokens that WeChat signs callback requests with;
//! - [`rpc`]: the gRPC layer; generated types are used only there;
//! - [`ingest`]: the hot path, which stores the credentials of all calls with few, large scripts;
//! - [`callback`]: parses the events that WeChat pushes about subscription messages;
//! - [`dedup`]: dedup keys of grants and events;
//! - [`jobs::sweeper`]: deletes expired credentials and counts the stock, a few users at a time;
//! - [`metrics`]: the Prometheus metrics; [`jobs::gauges`]: updates the gauges of the stock.

pub mod callback;
pub mod dedup;
pub mod ingest;
pub mod jobs;
pub mod metrics;
pub mod rpc;
pub mod settings;

use std::future::Future;
use std::io;
use std::sync::Arc;

use server::listen::Listeners;
use server::proto::collector_service_server::SERVICE_NAME;
use server::serve::{Api, serve};
use server::telemetry::metrics::page::Page;
use store::Store;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;

use ingest::Ingest;
use metrics::Metrics;
use rpc::Service;
use settings::Settings;

/// Serves on `listeners` until `shutdown`, then drains. Redis may still be unavailable at the start: until it answers,
/// the health check returns NOT_SERVING.
///
/// Fails if the Redis URL is invalid, if this Redis belongs to a deployment with another number of buckets, or if the
/// address for probes cannot be bound.
pub async fn run(
    listeners: impl Into<Listeners>,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listeners = listeners.into();
    let measured = listeners.metrics.is_some();
    let metrics = Metrics::new(&settings.apps).map_err(io::Error::other)?;
    // Serves the metrics until this function returns.
    let _page = Page::open(listeners.metrics, &metrics.service.registry);
    let outages = &metrics.service.outages;
    let store = Store::counted(&settings.store, Arc::new(metrics.service.redis.clone())).map_err(io::Error::other)?;
    let (ingest, batcher) = Ingest::start(store.clone(), settings.apps.clone(), metrics.intake.clone());
    let mut background = JoinSet::new();
    background.spawn(jobs::sweeper::sweep(
        store.clone(),
        settings.apps.clone(),
        settings.sweep_period,
        outages.clone(),
    ));
    if measured {
        let period = jobs::gauges::PERIOD.min(settings.sweep_period);
        let (apps, few) = (settings.apps.clone(), settings.small_app_users);
        background.spawn(jobs::gauges::follow(store.clone(), apps, metrics.gauges, period, few, outages.clone()));
    }

    let (stop, stopping) = watch::channel(false);
    let routes = Routes::new(Service::new(store.clone(), ingest, metrics.intake, &settings, stopping).into_server());
    let config = settings.common.serve;
    let drain_wait = config.drain_wait;
    let shutdown = async move {
        shutdown.await;
        drop(background);
        // Streams do not end by themselves. They are ended after `drain_wait`, when load balancers have had the time to
        // stop using this replica.
        tokio::spawn(async move {
            tokio::time::sleep(drain_wait).await;
            stop.send_replace(true);
        });
    };
    let api = Api { service: SERVICE_NAME, routes, store };
    let served = serve(listeners.calls, api, &metrics.service, &config, shutdown).await;
    // Store the credentials of callers that have disconnected.
    batcher.finish(settings.store.redis.timeout).await;
    served.map(drop)
}
