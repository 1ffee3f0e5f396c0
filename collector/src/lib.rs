//! The collector: takes in the rights to send that users hand out, and keeps them in Redis.
//!
//! - [`settings`]: what it is told at start;
//! - [`callbacks`]: the tokens that WeChat signs its calls with;
//! - [`service`]: the gRPC edge, where the generated types stop;
//! - [`ingest`]: gathers the credentials of all calls into few, large scripts: the hot path;
//! - [`events`]: what WeChat pushes about subscription messages, told apart and checked;
//! - [`once`]: what the repetition of a grant or of an event is known by;
//! - [`sweeper`]: drops what has expired and counts the stock, a little at a time;
//! - [`metrics`]: what is counted for Prometheus; [`gauges`]: keeps those of the stock true.

pub mod callbacks;
pub mod events;
pub mod gauges;
pub mod ingest;
pub mod metrics;
pub mod once;
pub mod service;
pub mod settings;
pub mod sweeper;

use std::future::Future;
use std::io;

use shared::listeners::Listeners;
use shared::metrics::page::Page;
use shared::proto::collector_service_server::SERVICE_NAME;
use shared::serve::serve;
use shared::store::Store;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;

use ingest::Ingest;
use metrics::Metrics;
use service::Service;
use settings::Settings;

/// Serves on `listeners`, one for calls at least, until `shutdown`, then drains. Redis need not be there yet: until it
/// is, health says NOT_SERVING.
///
/// Fails when the Redis URL is none, when this Redis belongs to a deployment with another number of buckets, or when
/// the address for probes can not be had.
pub async fn run(
    listeners: impl Into<Listeners>,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listeners = listeners.into();
    let measured = listeners.metrics.is_some();
    let metrics = Metrics::new(&settings.apps).map_err(io::Error::other)?;
    // Read until all is done.
    let _page = Page::open(listeners.metrics, &metrics.service.registry);
    let outages = &metrics.service.outages;
    let store = Store::counted(&settings.common.store, metrics.service.redis.clone()).map_err(io::Error::other)?;
    let (ingest, gatherer) = Ingest::start(store.clone(), settings.apps.clone(), metrics.intake.clone());
    let mut background = JoinSet::new();
    background.spawn(sweeper::sweep(store.clone(), settings.apps.clone(), settings.sweep_period, outages.clone()));
    if measured {
        let period = gauges::PERIOD.min(settings.sweep_period);
        let (apps, few) = (settings.apps.clone(), settings.small_app_users);
        background.spawn(gauges::follow(store.clone(), apps, metrics.gauges, period, few, outages.clone()));
    }

    let (stop, stopping) = watch::channel(false);
    let routes = Routes::new(Service::new(store.clone(), ingest, metrics.intake, &settings, stopping).into_server());
    let config = settings.common.serve;
    let drain_wait = config.drain_wait;
    let shutdown = async move {
        shutdown.await;
        drop(background);
        // Streams have no end of their own. They are ended once load balancers had the time to look elsewhere.
        tokio::spawn(async move {
            tokio::time::sleep(drain_wait).await;
            stop.send_replace(true);
        });
    };
    let served = serve(listeners.calls, SERVICE_NAME, routes, store, &metrics.service, &config, shutdown).await;
    // What callers left behind that no longer wait for an answer.
    gatherer.finish(settings.common.store.redis.timeout).await;
    served.map(drop)
}
