//! The dispatcher sends WeChat messages. It spends the credentials that the collector stores.
//!
//! - A call arrives at `rpc`. The in-flight registry (`send::in_flight`) keeps its send running until the send is settled.
//! - `send` sends one message: lease a credential, call WeChat, settle. `send::policy` decides the next step after each
//!   answer, from the meaning of WeChat's codes ([`wechat::errcode`]). `send::outcome` lists how a send can end and what
//!   its caller receives.
//! - `broadcast` sends one message to many users, independently of single sends.
//! - `context` holds the state of an app that both share. `jobs` are background jobs; the reaper settles expired
//!   leases. `stops` holds the app stops: the kinds of credentials that WeChat currently does not accept from the app.
//! - `metrics` counts, `spans` traces, and `outages` limits the log lines of operations that fail repeatedly.

pub mod app;
pub mod apps_file;
mod broadcast;
pub mod clock;
mod context;
mod jobs;
mod metrics;
mod outages;
mod rpc;
mod send;
pub mod settings;
mod spans;
mod stops;
pub mod token_source;
pub mod wechat;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use server::listen::Listeners;
use server::proto::dispatcher_service_server::{DispatcherServiceServer, SERVICE_NAME};
use server::serve::{Api, serve};
use server::telemetry::metrics::page::Page;
use store::Store;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::warn;

use crate::broadcast::api::Broadcasts;
use crate::broadcast::runtime::BroadcastRuntime;
use crate::context::AppContext;
use crate::metrics::Metrics;
use crate::rpc::{AppService, Service};
use crate::send::in_flight::InFlight;
use crate::settings::Settings;
use crate::wechat::error::ClientError;

/// Why the dispatcher did not start, or stopped before its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Metrics(#[from] server::telemetry::metrics::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Runs the dispatcher on `listeners` until `shutdown`, then drains.
pub async fn run(
    listeners: impl Into<Listeners>,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let listeners = listeners.into();
    let metrics_enabled = listeners.metrics.is_some();
    let metrics = Arc::new(Metrics::new()?);
    // Metrics stay readable until the drain is complete.
    let _page = Page::open(listeners.metrics, &metrics.service.registry);
    let store = Store::counted(&settings.store, Arc::new(metrics.service.redis.clone()))?;
    // Broadcasts have a runtime and Redis connections of their own, so that a single message never waits behind a
    // broadcast.
    let mut runtime = BroadcastRuntime::new()?;
    let bulk_store = store.beside(&settings.store)?;
    let in_flight = InFlight::new(settings.common.serve.limits.requests);
    let drain = CancellationToken::new();
    // These tasks are aborted when this function returns, on every path.
    let mut jobs = JoinSet::new();
    let mut apps = HashMap::new();
    for app in settings.apps.iter() {
        let context = Arc::new(AppContext::new(app, store.clone(), &settings, metrics.app(&app.id))?);
        context.spawn_jobs(&mut jobs, settings.reap_interval, metrics_enabled);
        runtime.start(context.for_broadcasts(bulk_store.clone())?, drain.clone());
        let broadcasts = Arc::new(Broadcasts::new(Arc::clone(&context)));
        apps.insert(app.id.clone(), AppService { context, broadcasts });
    }
    let config = &settings.common.serve;
    let service = DispatcherServiceServer::new(Service::new(apps, in_flight.clone(), drain.clone()));
    let routes = Routes::new(service.max_decoding_message_size(config.max_message_bytes));
    // The drain is signaled before the server stops: broadcasts hand their tasks over to other replicas, and
    // WatchBroadcast streams end with SHUTTING_DOWN.
    let shutdown = async {
        shutdown.await;
        drain.cancel();
    };
    let api = Api { service: SERVICE_NAME, routes, store };
    let served = serve(listeners.calls, api, &metrics.service, config, shutdown).await;
    drain.cancel();
    // Health probes are answered until the drain is complete.
    let _probes = served?;
    let late = "drain timed out with broadcasts in progress; other replicas will resume them";
    within(config.drain_timeout, runtime.handed_over(), late).await;
    // Sends whose callers disconnected still run; wait for them too.
    let late = "drain timed out with sends in progress; a call with the same request id returns the outcome";
    within(config.drain_timeout, in_flight.close(), late).await;
    Ok(())
}

async fn within(timeout: Duration, work: impl Future<Output = ()>, warning: &str) {
    if tokio::time::timeout(timeout, work).await.is_err() {
        warn!("{warning}");
    }
}
