//! The gRPC layer. Each RPC converts its request, calls one domain function, and converts the result.

mod convert;
mod flow;
mod report;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use domain::{AppId, OpenId};
use futures_util::stream::BoxStream;
use server::auth::{Caller, audit};
use server::proto::collector_service_server::{CollectorService, CollectorServiceServer};
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
use store::credentials::Packed;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::callback::{CallbackToken, MaxAge};
use crate::ingest::Ingest;
use crate::metrics::Intake;
use crate::settings::Settings;
use convert::{Reader, Sorted};

/// The maximum number of credentials of one call, or of one batch of a stream.
pub const MAX_CREDENTIALS: usize = 1000;

pub fn unix_time() -> i64 {
    // With a clock before 1970, all credentials would be in the future; 0 gives the same result.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

pub struct Service {
    inner: Arc<Inner>,
    stopping: watch::Receiver<bool>,
    max_message_bytes: usize,
}

struct Inner {
    store: Store,
    ingest: Ingest,
    /// By the index of the app.
    intake: Arc<[Intake]>,
    /// The index of each app in the list of apps.
    apps: HashMap<AppId, usize>,
    reader: Reader,
    lease_margin: u32,
    small_app_users: u64,
    callback_tokens: Arc<HashMap<AppId, CallbackToken>>,
    max_age: MaxAge,
}

impl Service {
    /// Makes the service. Streams end when `stopping` becomes true. `ingest` and `intake` must have been made for the
    /// apps of these settings.
    pub fn new(
        store: Store,
        ingest: Ingest,
        intake: Arc<[Intake]>,
        settings: &Settings,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let inner = Inner {
            store,
            ingest,
            intake,
            apps: settings.apps.iter().cloned().zip(0..).collect(),
            reader: Reader { prepay_uses: settings.prepay_uses, lease_margin: settings.lease_margin },
            lease_margin: settings.lease_margin,
            small_app_users: settings.small_app_users,
            callback_tokens: Arc::clone(&settings.callback_tokens),
            max_age: settings.callback_max_age,
        };
        Self { inner: Arc::new(inner), stopping, max_message_bytes: settings.common.serve.max_message_bytes }
    }

    pub fn into_server(self) -> CollectorServiceServer<Self> {
        let bound = self.max_message_bytes;
        CollectorServiceServer::new(self).max_decoding_message_size(bound)
    }
}

impl Inner {
    /// The app of a request and its index, or a failure that lists every bad field. For a caller that may not use the
    /// app, the failure is the same as for an unknown app.
    fn app(&self, caller: &Caller, text: String, mut fields: Fields) -> Result<(&AppId, usize), Failure> {
        let app = fields.take("app_id", AppId::parse(text));
        let known = |app: &AppId| self.apps.get_key_value(app).filter(|(app, _)| caller.may_use(app));
        fields.finish_for(app, |app| known(app).map(|(app, place)| (app, *place)))
    }

    fn user(&self, caller: &Caller, app: String, openid: String) -> Result<(&AppId, OpenId), Failure> {
        let mut fields = Fields::default();
        let openid = fields.take("openid", OpenId::parse(openid));
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
        let (app, place) = self.app(caller, app, fields)?;
        let sorted = self.reader.sort(credentials, unix_time());
        sorted.refused.iter().for_each(|(_, refusal)| self.intake[place].refused(*refusal));
        Ok((app, place, sorted))
    }

    async fn store(&self, app: usize, credentials: Vec<Packed>) -> Result<Vec<u32>, Failure> {
        self.ingest.collect(app, credentials).await
    }
}

#[tonic::async_trait]
impl CollectorService for Service {
    async fn collect(&self, request: Request<CollectRequest>) -> Result<Response<CollectResponse>, Status> {
        let caller = Caller::of(&request)?;
        let CollectRequest { app_id, credentials } = request.into_inner();
        let twice = credentials.iter().any(convert::counts_again);
        let (app, place, Sorted { good, refused }) = self.inner.sort(&caller, app_id, credentials)?;
        rpc::note_app(app);
        let count = good.len();
        // The span lasts from queueing to the last script's answer. The batches of a stream have none, since a stream
        // has no end.
        let span = store::spans::script("store", "collect.lua", app);
        span.record("formid.credentials", count);
        let stored = self.inner.store(place, good).await;
        if let Err(failure) = &stored {
            store::spans::failed_as(&span, failure.reason());
        }
        drop(span);
        let duplicates = stored.map_err(|failure| if twice { failure.perhaps_done() } else { failure })?;
        Ok(Response::new(convert::results(count, &duplicates, refused)))
    }

    type CollectStreamStream = BoxStream<'static, Result<CollectStreamResponse, Status>>;

    async fn collect_stream(
        &self,
        request: Request<Streaming<CollectStreamRequest>>,
    ) -> Result<Response<Self::CollectStreamStream>, Status> {
        let (caller, ending) = (Caller::of(&request)?, ConnectionClosing::of(&request));
        let service = Arc::clone(&self.inner);
        let acknowledgements =
            flow::acknowledgements(service, caller, request.into_inner(), self.stopping.clone(), ending);
        Ok(Response::new(Box::pin(acknowledgements)))
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
        let usable_at = unix_time() + i64::from(self.inner.lease_margin);
        let inventory = self.inner.store.inventory(app, &openid, usable_at).await.map_err(Failure::from)?;
        Ok(Response::new(convert::inventory(inventory)))
    }

    async fn get_stock(&self, request: Request<GetStockRequest>) -> Result<Response<GetStockResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (app, _) = self.inner.app(&caller, request.into_inner().app_id, Fields::default())?;
        rpc::note_app(app);
        let store = &self.inner.store;
        let stock = store.stock(app, unix_time(), self.inner.small_app_users).await.map_err(Failure::from)?;
        // Read after the count, because the count moves expired credentials to `expired` in the ledger.
        let ledger = store.ledger(app).await.map_err(Failure::from)?;
        Ok(Response::new(convert::stock(&stock, &ledger)?))
    }

    async fn erase_user(&self, request: Request<EraseUserRequest>) -> Result<Response<EraseUserResponse>, Status> {
        let caller = Caller::of(&request)?;
        let EraseUserRequest { app_id, openid } = request.into_inner();
        let (app, openid) = self.inner.user(&caller, app_id, openid)?;
        let messages = self.inner.store.erase(app, &openid).await.map_err(Failure::from)?;
        audit::erased(&caller, app, messages);
        Ok(Response::new(EraseUserResponse { messages }))
    }
}
