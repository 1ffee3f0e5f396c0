//! The dispatcher: spends the rights to send that the collector keeps.
//!
//! A call comes in at [`service`], is kept from being cut short at the [`desk`], and is carried out by [`send`]: lease a
//! credential, call WeChat, settle. What to do on each answer is decided in [`policy`], from what the codes mean
//! ([`wechat::answer`]). What is sent to many goes its own way, in [`broadcast`]. [`outcome`] says how a send may end and what its caller sees. Beside that run the [`reaper`],
//! which looks after leases left behind, and the [`gates`], which know what WeChat stopped. What is counted of all that
//! is in [`metrics`], what traces tell of it in [`spans`], and what is logged of work that is repeated in [`outages`].

pub mod apps;
pub mod broadcast;
pub mod clock;
pub mod desk;
pub mod gates;
pub mod metrics;
pub mod outages;
pub mod outcome;
pub mod policy;
pub mod reaper;
pub mod send;
pub mod service;
pub mod settings;
pub mod spans;
pub mod wechat;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use shared::listeners::Listeners;
use shared::metrics::page::Page;
use shared::outage::Operation;
use shared::proto::dispatcher_service_server::{DispatcherServiceServer, SERVICE_NAME};
use shared::serve::serve;
use shared::store::Store;
use shared::store::broadcast::permits::Budget;
use tokio::runtime::{self, Handle, Runtime};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::warn;

use crate::apps::App;
use crate::broadcast::office::Office;
use crate::broadcast::{Ground, crew, pauses};
use crate::clock::Clock;
use crate::desk::Desk;
use crate::gates::Gates;
use crate::metrics::{AppMetrics, Metrics, QuotaMetrics};
use crate::send::Sender;
use crate::service::{AppService, Service};
use crate::settings::Settings;
use crate::wechat::client::Client;
use crate::wechat::message::Delivery;
use crate::wechat::token::Tokens;

/// How often the numbers of the day's quota are read.
const QUOTA_LOOK: Duration = Duration::from_secs(5);

/// Runs the dispatcher on `listeners`, one for calls at least, until `shutdown`, then drains.
pub async fn run(
    listeners: impl Into<Listeners>,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listeners = listeners.into();
    let measured = listeners.metrics.is_some();
    let metrics = Metrics::new().map_err(io::Error::other)?;
    // Read until all is done.
    let _page = Page::open(listeners.metrics, &metrics.service.registry);
    let store = Store::counted(&settings.common.store, metrics.service.redis.clone()).map_err(io::Error::other)?;
    // Broadcasts have threads and connections of their own, so that no single message stands in line behind a crowd.
    let hall = Hall::new()?;
    let apart = store.beside(&settings.common.store).map_err(io::Error::other)?;
    let desk = Desk::new(settings.common.serve.limits.requests);
    // Ended with this function, whichever way it ends.
    let mut background = JoinSet::new();
    let mut apps = HashMap::new();
    let mut crews = JoinSet::new();
    let drain = CancellationToken::new();
    for app in settings.apps.iter() {
        let AppMetrics { sends, wechat, stops, quota, broadcasts, pauses } = metrics.app(&app.id);
        let client = Client::counted(Arc::clone(app), wechat.clone()).map_err(io::Error::other)?;
        let tokens = Tokens::new(app.id.clone(), client.clone(), store.clone());
        let gates = Arc::new(Gates::new(app.id.clone(), settings.clock.clone(), stops));
        background.spawn(once_prepared(store.clone(), tokens.clone().renew_forever()));
        let reaping = reaper::reap_forever(
            store.clone(),
            app.id.clone(),
            settings.limits.terms,
            settings.reap_interval,
            metrics.loops.reaps.operation(),
        );
        background.spawn(once_prepared(store.clone(), reaping));
        let following = follow_stops(Arc::clone(&gates), store.clone(), metrics.loops.stops.operation());
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
                Arc::clone(&gates),
                settings.clock.clone(),
                settings.limits.clone(),
                sends.clone(),
            ))
        };
        let ground = |store: Store, client: Client, sender: &Arc<Sender>| {
            Arc::new(Ground {
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
        let many = ground(apart.clone(), many.clone(), &sender(&apart, &many));
        crews
            .spawn_on(once_prepared_until(drain.clone(), apart.clone(), crew::work(many, drain.clone())), &hall.handle);
        let reporter = Arc::clone(&singles);
        background.spawn(async move { reporter.report_forever().await });
        let office = Arc::new(Office::new(ground(store.clone(), client, &singles)));
        apps.insert(app.id.clone(), AppService { sender: singles, office });
    }
    let limit = settings.common.serve.max_message_bytes;
    let service = Service::new(apps, desk.clone(), drain.clone());
    let routes = Routes::new(DispatcherServiceServer::new(service).max_decoding_message_size(limit));
    // Broadcasts and those who watch them hear of the end first: they have something to pass on.
    let shutdown = async {
        shutdown.await;
        drain.cancel();
    };
    let served =
        serve(listeners.calls, SERVICE_NAME, routes, store, &metrics.service, &settings.common.serve, shutdown).await;
    drain.cancel();
    // Answered until all is done.
    let _probes = served?;
    if tokio::time::timeout(settings.common.serve.drain_timeout, async { while crews.join_next().await.is_some() {} })
        .await
        .is_err()
    {
        warn!("broadcasts were still under way at the end of the drain; others take them over");
    }
    // Callers that hung up left their sends behind; those end well too.
    if tokio::time::timeout(settings.common.serve.drain_timeout, desk.close()).await.is_err() {
        warn!("sends were still under way at the end of the drain; a repeated request id finds out");
    }
    Ok(())
}

/// Where broadcasts run.
struct Hall {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Hall {
    fn new() -> io::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread().thread_name("broadcast").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }
}

impl Drop for Hall {
    fn drop(&mut self) {
        // To wait for its threads is not permitted on a thread of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Work that makes no sense before Redis is known to be usable.
async fn once_prepared(store: Store, work: impl Future<Output = ()>) {
    store.prepared().await;
    work.await;
}

/// The same for work that ends by itself at a drain: where Redis was never there, there is nothing to pass on.
async fn once_prepared_until(drain: CancellationToken, store: Store, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = store.prepared() => work.await,
        () = drain.cancelled() => {}
    }
}

/// Keeps the numbers of the day's quota in sight, whoever counts them: of both generations.
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

async fn follow_stops(gates: Arc<Gates>, store: Store, mut reading: Operation) {
    loop {
        reading.note(&gates.refresh(&store).await);
        tokio::time::sleep(gates::REFRESH).await;
    }
}
