//! The dispatcher: spends the rights to send that the collector keeps.
//!
//! A call comes in at [`service`], is kept from being cut short at the [`desk`], and is carried out by [`send`]: lease a
//! credential, call WeChat, settle. What to do on each answer is decided in [`policy`], from what the codes mean
//! ([`wechat::answer`]). [`outcome`] says how a send may end and what its caller sees. Beside that run the [`reaper`],
//! which looks after leases left behind, and the [`gates`], which know what WeChat stopped.

pub mod apps;
pub mod clock;
pub mod desk;
pub mod gates;
pub mod outcome;
pub mod policy;
pub mod reaper;
pub mod send;
pub mod service;
pub mod settings;
pub mod wechat;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;

use shared::proto::dispatcher_service_server::{DispatcherServiceServer, SERVICE_NAME};
use shared::serve::serve;
use shared::store::Store;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tracing::warn;

use crate::desk::Desk;
use crate::gates::Gates;
use crate::send::Sender;
use crate::service::Service;
use crate::settings::Settings;
use crate::wechat::client::Client;
use crate::wechat::token::Tokens;

/// Runs the dispatcher on a listener until `shutdown`, then drains.
pub async fn run(listener: TcpListener, settings: Settings, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let store = Store::new(&settings.common.store).map_err(io::Error::other)?;
    let desk = Desk::default();
    // Ended with this function, whichever way it ends.
    let mut background = JoinSet::new();
    let mut senders = HashMap::new();
    for app in settings.apps.iter() {
        let client = Client::new(Arc::clone(app)).map_err(io::Error::other)?;
        let tokens = Tokens::new(app.id.clone(), client.clone(), store.clone());
        let gates = Arc::new(Gates::new(app.id.clone(), settings.clock.clone()));
        background.spawn(once_prepared(store.clone(), tokens.clone().renew_forever()));
        background.spawn(reaper::reap_forever(
            store.clone(),
            app.id.clone(),
            settings.limits.terms,
            settings.reap_interval,
        ));
        background.spawn(once_prepared(store.clone(), follow_stops(Arc::clone(&gates), store.clone())));
        let sender = Sender::new(
            Arc::clone(app),
            store.clone(),
            client,
            tokens,
            gates,
            settings.clock.clone(),
            settings.limits.clone(),
        );
        senders.insert(app.id.clone(), Arc::new(sender));
    }
    let limit = settings.common.serve.max_message_bytes;
    let service = DispatcherServiceServer::new(Service::new(senders, desk.clone())).max_decoding_message_size(limit);
    let routes = Routes::new(service);
    serve(listener, SERVICE_NAME, routes, store, &settings.common.serve, shutdown).await?;
    // Callers that hung up left their sends behind; those end well too.
    if tokio::time::timeout(settings.common.serve.drain_timeout, desk.close()).await.is_err() {
        warn!("sends were still under way at the end of the drain; a repeated request id finds out");
    }
    Ok(())
}

/// Work that makes no sense before Redis is known to be usable.
async fn once_prepared(store: Store, work: impl Future<Output = ()>) {
    store.prepared().await;
    work.await;
}

async fn follow_stops(gates: Arc<Gates>, store: Store) {
    loop {
        if let Err(error) = gates.refresh(&store).await {
            tracing::debug!(%error, "stops of other replicas are not known");
        }
        tokio::time::sleep(gates::REFRESH).await;
    }
}
