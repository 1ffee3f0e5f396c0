//! The gRPC layer. Each RPC converts its request, calls one domain function, and converts the result.

mod credentials;
mod flow;
mod report;
mod stock;

use std::collections::HashMap;
use std::sync::Arc;

use domain::{AppId, OpenId};
use futures_util::stream::BoxStream;
use server::auth::{Caller, audit};
use server::proto::collector_service_server::CollectorService;
use server::proto::{
    CollectRequest, CollectResponse, CollectStreamRequest, CollectStreamResponse, Credential, EraseUserRequest,
    EraseUserResponse, GetInventoryRequest, GetInventoryResponse, GetStockRequest, GetStockResponse,
    ReportEventsRequest, ReportEventsResponse,
};
use server::rpc::fields::Fields;
use server::rpc::status::Failure;
use server::serve::closing::ConnectionClosing;
use server::telemetry::traces::rpc;
use store::Store;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::credentials::Sorted;
use crate::clock::unix_time;
use crate::ingest::Ingest;
use crate::metrics::Intake;
use crate::settings::Settings;

/// The maximum number of credentials of one call, or of one batch of a stream.
pub const MAX_CREDENTIALS: usize = 1000;

pub(crate) struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    ingest: Ingest,
    /// By the index of the app.
    intake: Arc<[Intake]>,
    /// The index of each app in the list of apps.
    apps: HashMap<AppId, usize>,
    settings: Settings,
    /// Ends streams.
    drain: CancellationToken,
}

impl Service {
    /// `ingest` and `intake` must have been made for the apps of these settings.
    pub(crate) fn new(
        store: Store,
        ingest: Ingest,
        intake: Arc<[Intake]>,
        settings: Settings,
        drain: CancellationToken,
    ) -> Self {
        let apps = settings.apps.iter().cloned().zip(0..).collect();
        Self { inner: Arc::new(Inner { store, ingest, intake, apps, settings, drain }) }
    }
}

impl Inner {
    /// The app of a request and its index, or a failure that lists every bad field. For a caller that may not use the
    /// app, the failure is the same as for an unknown app.
    fn app(&self, caller: &Caller, text: String, mut fields: Fields) -> Result<(&AppId, usize), Failure> {
        let app = fields.take("app_id", AppId::parse(text));
        let known = |app: &AppId| self.apps.get_key_value(app).filter(|(app, _)| caller.may_use(app));
        fields.finish_for(app, |app| known(app).map(|(app, index)| (app, *index)))
    }

    fn user(&self, caller: &Caller, app: String, openid: String) -> Result<(&AppId, OpenId), Failure> {
        let mut fields = Fields::default();
        // To look up and erase a user whom an older release took in.
        let openid = fields.take("openid", OpenId::existing(openid));
        let (app, _) = self.app(caller, app, fields)?;
        rpc::note_app(app);
        // The openid is missing only if it was a bad field, which has failed above.
        Ok((app, openid.ok_or_else(Failure::internal)?))
    }

    /// Checks the request as a whole, then separates the valid credentials from the refused ones.
    fn sort(
        &self,
        caller: &Caller,
        app: String,
        credentials: Vec<Credential>,
    ) -> Result<(&AppId, usize, Sorted), Failure> {
        let mut fields = Fields::default();
        match credentials.len() {
            0 => fields.refuse("credentials", "must not be empty"),
            1..=MAX_CREDENTIALS => {}
            count => fields.refuse("credentials", format_args!("must be at most {MAX_CREDENTIALS}, but are {count}")),
        }
        let (app, index) = self.app(caller, app, fields)?;
        let sorted = credentials::sort(credentials, unix_time(), &self.settings);
        for (_, refusal) in &sorted.refused {
            self.intake[index].refused(credentials::reason(*refusal));
        }
        Ok((app, index, sorted))
    }
}

#[tonic::async_trait]
impl CollectorService for Service {
    async fn collect(&self, request: Request<CollectRequest>) -> Result<Response<CollectResponse>, Status> {
        let caller = Caller::of(&request)?;
        let CollectRequest { app_id, credentials } = request.into_inner();
        let repeatable = !credentials.iter().any(credentials::counts_again);
        let (app, index, Sorted { good, refused }) = self.inner.sort(&caller, app_id, credentials)?;
        rpc::note_app(app);
        let count = good.len();
        // The span lasts from queueing to the last script's answer. The batches of a stream have none, since a stream
        // has no end.
        let span = store::spans::script("store", "collect.lua", app);
        span.record("formid.credentials", count);
        let stored = self.inner.ingest.collect(index, good).await;
        if let Err(failure) = &stored {
            store::spans::failed_as(&span, failure.reason());
        }
        drop(span);
        let duplicates = stored.map_err(|failure| if repeatable { failure } else { failure.perhaps_done() })?;
        Ok(Response::new(credentials::results(count, &duplicates, refused)))
    }

    type CollectStreamStream = BoxStream<'static, Result<CollectStreamResponse, Status>>;

    async fn collect_stream(
        &self,
        request: Request<Streaming<CollectStreamRequest>>,
    ) -> Result<Response<Self::CollectStreamStream>, Status> {
        let (caller, ending) = (Caller::of(&request)?, ConnectionClosing::of(&request));
        let service = Arc::clone(&self.inner);
        Ok(Response::new(Box::pin(flow::acknowledgements(service, caller, request.into_inner(), ending))))
    }

    async fn report_events(
        &self,
        request: Request<ReportEventsRequest>,
    ) -> Result<Response<ReportEventsResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(report::report(&self.inner, &caller, request.into_inner()).await?))
    }

    async fn get_inventory(
        &self,
        request: Request<GetInventoryRequest>,
    ) -> Result<Response<GetInventoryResponse>, Status> {
        let caller = Caller::of(&request)?;
        let GetInventoryRequest { app_id, openid } = request.into_inner();
        let (app, openid) = self.inner.user(&caller, app_id, openid)?;
        // Credentials so close to their expiry that the dispatcher would not lease them do not count as available.
        let inventory = self
            .inner
            .store
            .inventory(app, &openid, unix_time(), self.inner.settings.lease_margin)
            .await
            .map_err(Failure::from)?;
        Ok(Response::new(stock::inventory(inventory)))
    }

    async fn get_stock(&self, request: Request<GetStockRequest>) -> Result<Response<GetStockResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (app, _) = self.inner.app(&caller, request.into_inner().app_id, Fields::default())?;
        rpc::note_app(app);
        let Inner { store, settings, .. } = &*self.inner;
        let counted = store.stock(app, unix_time(), settings.small_app_users).await.map_err(Failure::from)?;
        // Read after the count, because the count moves expired credentials to `expired` in the ledger.
        let ledger = store.ledger(app).await.map_err(Failure::from)?;
        Ok(Response::new(stock::stock(&counted, &ledger)?))
    }

    async fn erase_user(&self, request: Request<EraseUserRequest>) -> Result<Response<EraseUserResponse>, Status> {
        let caller = Caller::of(&request)?;
        let EraseUserRequest { app_id, openid } = request.into_inner();
        let (app, openid) = self.inner.user(&caller, app_id, openid)?;
        let messages = self.inner.store.erase(app, &openid).await.map_err(Failure::from)?;
        audit::erased("EraseUser", &caller, app, messages);
        Ok(Response::new(EraseUserResponse { messages }))
    }
}
