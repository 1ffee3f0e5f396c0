//! The dispatcher sends WeChat messages. It spends the credentials that the collector stores.
//!
//! - A call arrives at [`rpc`]. The in-flight registry ([`send::in_flight`]) keeps its send running until the send is settled.
//! - [`send`] sends one message: lease a credential, call WeChat, settle. [`send::policy`] decides the next step after each
//!   answer, from the meaning of WeChat's codes ([`wechat::errcode`]). [`send::outcome`] lists how a send can end and what its
//!   caller receives.
//! - [`broadcast`] sends one message to many users, independently of single sends.
//! - The [`jobs::reaper`] settles expired leases. [`stops`] holds the app stops: which credentials WeChat does not accept at
//!   present.
//! - [`metrics`] counts, [`spans`] traces, and [`outages`] limits the log lines of operations that fail repeatedly.

pub mod app;
pub mod apps_file;
mod broadcast;
pub mod clock;
mod jobs;
mod metrics;
mod outages;
mod rpc;
mod send;
pub mod settings;
mod spans;
mod stops;
pub mod wechat;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use server::listen::Listeners;
use server::proto::dispatcher_service_server::{DispatcherServiceServer, SERVICE_NAME};
use server::serve::serve;
use server::telemetry::metrics::page::Page;
use server::telemetry::outage::Operation;
use store::Store;
use store::broadcast::permits::Budget;
use tokio::runtime::{self, Handle, Runtime};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::warn;

use crate::app::App;
use crate::broadcast::api::Broadcasts;
use crate::broadcast::{AppContext, scheduler};
use crate::clock::Clock;
use crate::jobs::pauses;
use crate::metrics::{AppMetrics, Metrics, QuotaMetrics};
use crate::rpc::{AppService, Service};
use crate::send::Sender;
use crate::send::in_flight::InFlight;
use crate::settings::Settings;
use crate::stops::AppStops;
use crate::wechat::client::Client;
use crate::wechat::message::Delivery;
use crate::wechat::token::Tokens;

/// Interval at which the gauges of the daily quota are read.
const QUOTA_LOOK: Duration = Duration::from_secs(5);

/// Runs the dispatcher on `listeners` until `shutdown`, then drains. At least one listener takes calls.
pub async fn run(
    listeners: impl Into<Listeners>,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listeners = listeners.into();
    let measured = listeners.metrics.is_some();
    let metrics = Metrics::new().map_err(io::Error::other)?;
    // Metrics stay readable until the drain is complete.
    let _page = Page::open(listeners.metrics, &metrics.service.registry);
    let store = Store::counted(&settings.store, Arc::new(metrics.service.redis.clone())).map_err(io::Error::other)?;
    // Broadcasts have a runtime and Redis connections of their own, so that a single message never waits behind a
    // broadcast.
    let runtime = BroadcastRuntime::new()?;
    let apart = store.beside(&settings.store).map_err(io::Error::other)?;
    let in_flight = InFlight::new(settings.common.serve.limits.requests);
    // These tasks are aborted when this function returns, on every path.
    let mut background = JoinSet::new();
    let mut apps = HashMap::new();
    let mut schedulers = JoinSet::new();
    let drain = CancellationToken::new();
    for app in settings.apps.iter() {
        let AppMetrics { sends, wechat, stops, quota, broadcasts, pauses } = metrics.app(&app.id);
        let client = Client::counted(Arc::clone(app), wechat.clone()).map_err(io::Error::other)?;
        let tokens = Tokens::new(app.id.clone(), client.clone(), store.clone());
        let stops = Arc::new(AppStops::new(app.id.clone(), settings.clock.clone(), stops));
        background.spawn(once_prepared(store.clone(), tokens.clone().renew_forever()));
        let reaping = jobs::reaper::reap_forever(
            store.clone(),
            app.id.clone(),
            settings.limits.terms,
            settings.reap_interval,
            metrics.loops.reaps.operation(),
        );
        background.spawn(once_prepared(store.clone(), reaping));
        let following = follow_stops(Arc::clone(&stops), store.clone(), metrics.loops.stops.operation());
        background.spawn(once_prepared(store.clone(), following));
        if measured {
            let reading = || metrics.loops.gauges.operation();
            let numbers = follow_quota(Arc::clone(app), store.clone(), settings.clock.clone(), quota, reading());
            background.spawn(once_prepared(store.clone(), numbers));
            let paused = pauses::follow(store.clone(), app.id.clone(), pauses, reading());
            background.spawn(once_prepared(store.clone(), paused));
        }
        let sender = |store: &Store, client: &Client| {
            Arc::new(Sender::new(
                store.clone(),
                client.clone(),
                tokens.clone(),
                Arc::clone(&stops),
                settings.clock.clone(),
                settings.limits.clone(),
                sends.clone(),
            ))
        };
        let context = |store: Store, client: Client, sender: &Arc<Sender>| {
            Arc::new(AppContext {
                app: Arc::clone(app),
                store,
                sender: Arc::clone(sender),
                client,
                tokens: tokens.clone(),
                clock: settings.clock.clone(),
                terms: settings.limits.terms,
                credentials: settings.limits.credentials,
                limits: settings.broadcasts.clone(),
                metrics: broadcasts.clone(),
            })
        };
        let (singles, many) =
            (sender(&store, &client), Client::counted(Arc::clone(app), wechat).map_err(io::Error::other)?.untraced());
        let many = context(apart.clone(), many.clone(), &sender(&apart, &many));
        schedulers.spawn_on(
            once_prepared_until(drain.clone(), apart.clone(), scheduler::work(many, drain.clone())),
            &runtime.handle,
        );
        let reporter = Arc::clone(&singles);
        background.spawn(async move { reporter.report_forever().await });
        let broadcasts = Arc::new(Broadcasts::new(context(store.clone(), client, &singles)));
        apps.insert(app.id.clone(), AppService { sender: singles, broadcasts });
    }
    let limit = settings.common.serve.max_message_bytes;
    let service = Service::new(apps, in_flight.clone(), drain.clone());
    let routes = Routes::new(DispatcherServiceServer::new(service).max_decoding_message_size(limit));
    // Signal the drain to broadcasts and to their watchers before the server stops: both have state to hand over.
    let shutdown = async {
        shutdown.await;
        drain.cancel();
    };
    let served =
        serve(listeners.calls, SERVICE_NAME, routes, store, &metrics.service, &settings.common.serve, shutdown).await;
    drain.cancel();
    // Health probes are answered until the drain is complete.
    let _probes = served?;
    if tokio::time::timeout(settings.common.serve.drain_timeout, async {
        while schedulers.join_next().await.is_some() {}
    })
    .await
    .is_err()
    {
        warn!("drain timed out with broadcasts in progress; other replicas will resume them");
    }
    // Sends whose callers disconnected still run; wait for them too.
    if tokio::time::timeout(settings.common.serve.drain_timeout, in_flight.close()).await.is_err() {
        warn!("drain timed out with sends in progress; repeat a request id to learn its outcome");
    }
    Ok(())
}

/// The runtime that broadcasts run on.
struct BroadcastRuntime {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl BroadcastRuntime {
    fn new() -> io::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread().thread_name("broadcast").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }
}

impl Drop for BroadcastRuntime {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which panics on a thread of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs `work` after Redis is known to be usable.
async fn once_prepared(store: Store, work: impl Future<Output = ()>) {
    store.prepared().await;
    work.await;
}

/// The same for `work` that ends by itself at a drain. If Redis was never usable, there is nothing to hand over.
async fn once_prepared_until(drain: CancellationToken, store: Store, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = store.prepared() => work.await,
        () = drain.cancelled() => {}
    }
}

/// Reads the usage of the daily quota into the gauges, for both message generations. It includes the messages of all
/// replicas.
async fn follow_quota(app: Arc<App>, store: Store, clock: Clock, metrics: QuotaMetrics, mut reading: Operation) {
    loop {
        for delivery in Delivery::ALL {
            let budget = Budget { api: delivery.api(), day: clock.day() };
            let quota = store.quota(&app.id, budget).await;
            reading.note(&quota);
            if let Ok((limit, used)) = quota {
                metrics.show(delivery, limit.unwrap_or(app.bounds(delivery).daily_quota), used);
            }
        }
        tokio::time::sleep(QUOTA_LOOK).await;
    }
}

async fn follow_stops(stops: Arc<AppStops>, store: Store, mut reading: Operation) {
    loop {
        reading.note(&stops.refresh(&store).await);
        tokio::time::sleep(stops::REFRESH).await;
    }
}
