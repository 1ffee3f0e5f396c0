//! The gRPC edge of the dispatcher: each RPC converts the request, calls one function, and converts the result.
//! [`send`] parses single sends, [`broadcast`] parses broadcasts, [`recipients`] their lists, [`info`] converts
//! broadcasts for callers, [`message`] parses the message of both, and [`stops`] converts stops.

mod broadcast;
mod info;
mod message;
mod recipients;
mod send;
mod stops;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use domain::AppId;
use futures_util::Stream;
use server::auth::{Caller, Permission, audit};
use server::proto::broadcast_request::Audience;
use server::proto::dispatcher_service_server::DispatcherService;
use server::proto::{
    AddRecipientsRequest, AddRecipientsResponse, BroadcastInfo, BroadcastRequest, BroadcastResponse,
    CancelBroadcastRequest, CancelBroadcastResponse, GetBroadcastRequest, GetBroadcastResponse, LiftStopRequest,
    LiftStopResponse, ListBroadcastsRequest, ListBroadcastsResponse, ListStopsRequest, ListStopsResponse,
    ListUndeliveredRequest, ListUndeliveredResponse, PauseBroadcastRequest, PauseBroadcastResponse,
    ResumeBroadcastRequest, ResumeBroadcastResponse, SendTemplateRequest, SendTemplateResponse, StartBroadcastRequest,
    StartBroadcastResponse, WatchBroadcastRequest, WatchBroadcastResponse,
};
use server::rpc::fields::Fields;
use server::rpc::status::Failure;
use server::serve::budget::Charge;
use server::serve::closing::ConnectionClosing;
use server::telemetry::traces::rpc;
use store::broadcast::BroadcastId;
use store::broadcast::records::Move;
use store::stops::StopScope;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use self::message::Warnings;
use self::recipients::Recipients;
use crate::broadcast::api::{Broadcasts, Transition};
use crate::broadcast::reason::PauseReason;
use crate::context::AppContext;
use crate::send::in_flight::InFlight;
use crate::wechat::message::Delivery;

pub struct AppService {
    pub context: Arc<AppContext>,
    pub broadcasts: Arc<Broadcasts>,
}

pub struct Service {
    apps: HashMap<AppId, AppService>,
    in_flight: InFlight,
    drain: CancellationToken,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    pub fn new(apps: HashMap<AppId, AppService>, in_flight: InFlight, drain: CancellationToken) -> Self {
        Self { apps, in_flight, drain }
    }

    /// `None` also for an app that the caller may not use, so that its existence is not revealed.
    fn app(&self, caller: &Caller, app: &AppId) -> Option<&AppService> {
        self.apps.get(app).filter(|_| caller.may_use(app))
    }

    /// The generation that an app sends by default. For an unknown app the value is not used.
    fn default_delivery(&self, caller: &Caller, app: Option<&AppId>) -> Delivery {
        app.and_then(|app| self.app(caller, app)).map(|app| app.context.app.delivery).unwrap_or_default()
    }

    /// Returns the handlers of the app that a request names, or a failure that lists every bad field.
    fn finish(&self, caller: &Caller, fields: Fields, app: Option<AppId>) -> Result<&AppService, Failure> {
        let service = fields.finish_for(app, |app| self.app(caller, app))?;
        rpc::note_app(&service.context.app.id);
        Ok(service)
    }

    /// Returns the handler of the app and the broadcast id that a request names, and what `parse` returns for its other
    /// fields; or a failure that lists every bad field.
    fn broadcast_and<T>(
        &self,
        caller: &Caller,
        app_id: String,
        broadcast_id: &str,
        parse: impl FnOnce(&mut Fields) -> T,
    ) -> Result<(&Arc<Broadcasts>, BroadcastId, T), Failure> {
        let mut fields = Fields::default();
        let app = fields.take("app_id", AppId::parse(app_id));
        let id = BroadcastId::parse(broadcast_id).ok_or("must be a broadcast_id that Broadcast returned");
        let id = fields.take("broadcast_id", id);
        let others = parse(&mut fields);
        let service = self.finish(caller, fields, app)?;
        // Without an id, `fields` has reported a bad field.
        Ok((&service.broadcasts, id.ok_or_else(Failure::internal)?, others))
    }

    /// Moves a broadcast to another state. `call` is the name of the call in the audit log.
    async fn move_to(
        &self,
        caller: &Caller,
        call: &'static str,
        (app_id, broadcast_id): (String, String),
        to: Move,
    ) -> Result<Option<BroadcastInfo>, Status> {
        let (broadcasts, id, ()) = self.broadcast_and(caller, app_id, &broadcast_id, |_| ())?;
        Ok(Some(after_transition(call, caller, broadcasts, &broadcasts.transition(&id, to).await?)))
    }
}

/// Converts a broadcast after a call that changes it, and writes to the audit log if it has changed.
fn after_transition(
    call: &'static str,
    caller: &Caller,
    broadcasts: &Broadcasts,
    Transition { view, moved }: &Transition,
) -> BroadcastInfo {
    let (app, record) = (&broadcasts.context.app.id, &view.record);
    if *moved {
        let audience = view.tally.as_ref().map(|tally| tally.audience);
        audit::broadcast(call, caller, app, &record.id.to_string(), record.everyone, audience);
    }
    info::of(app, view)
}

#[tonic::async_trait]
impl DispatcherService for Service {
    type WatchBroadcastStream = Pin<Box<dyn Stream<Item = Result<WatchBroadcastResponse, Status>> + Send>>;

    async fn send_template(&self, request: Request<SendTemplateRequest>) -> Answer<SendTemplateResponse> {
        let (caller, charge) = (Caller::of(&request)?, Charge::of(&request));
        let parsed = self.parse_send(&caller, request.into_inner())?;
        let send::Parsed { context, order, warnings, validate_only } = parsed;
        if validate_only {
            return Ok(Response::new(SendTemplateResponse { warnings, ..SendTemplateResponse::default() }));
        }
        let sent = self.in_flight.send(Arc::clone(context), order, charge).await?;
        Ok(Response::new(send::respond(sent, warnings)))
    }

    async fn broadcast(&self, request: Request<BroadcastRequest>) -> Answer<BroadcastResponse> {
        let caller = Caller::of(&request)?;
        // Checked before anything about the app, so that the error reveals nothing about it.
        if matches!(request.get_ref().audience, Some(Audience::AllReachable(_))) {
            caller.needs(Permission::BroadcastAll)?;
        }
        let parsed = self.parse_broadcast(&caller, request.into_inner())?;
        let broadcast::Parsed { broadcasts, new, duplicates, refused, warnings, validate_only } = parsed;
        let refused_count = refused.count;
        let response = BroadcastResponse {
            duplicates,
            warnings: warnings.list,
            more_warnings: warnings.more,
            refused: refused.list,
            refused_count,
            ..BroadcastResponse::default()
        };
        if validate_only {
            let preview = info::preview(&broadcasts.preview(&new).await?, refused_count);
            return Ok(Response::new(BroadcastResponse { preview: Some(preview), ..response }));
        }
        let created = broadcasts.create(&new).await;
        // Without a request id, a repeated call would create another broadcast.
        let repeatable = new.request_id.is_some();
        let view = created.map_err(|failure| if repeatable { failure } else { failure.perhaps_done() })?;
        rpc::note_broadcast(&view.record.id);
        let created = Transition { view, moved: true };
        let broadcast = Some(after_transition("Broadcast", &caller, broadcasts, &created));
        Ok(Response::new(BroadcastResponse { broadcast, ..response }))
    }

    async fn add_recipients(&self, request: Request<AddRecipientsRequest>) -> Answer<AddRecipientsResponse> {
        let caller = Caller::of(&request)?;
        let AddRecipientsRequest { app_id, broadcast_id, recipients, exclude } = request.into_inner();
        let parse = |fields: &mut Fields| {
            let list = Recipients::read(fields, "recipients", recipients);
            (list, broadcast::openids(fields, "exclude", exclude))
        };
        let (broadcasts, id, (list, exclude)) = self.broadcast_and(&caller, app_id, &broadcast_id, parse)?;
        let held = broadcasts.held(&id).await?;
        let (mut fields, mut warnings) = (Fields::default(), Warnings::default());
        let list = list.check(&mut fields, held.spec.message.delivery, held.spec.fit, &mut warnings);
        fields.finish()?;
        let added = broadcasts.add_recipients(&held, &list.recipients, &exclude).await?;
        // Users who were neither added nor excluded were in the list already.
        let known = (list.recipients.len() as u32).saturating_sub(added.added + added.excluded);
        Ok(Response::new(AddRecipientsResponse {
            added: added.added,
            duplicates: list.duplicates + known,
            excluded: added.excluded,
            warnings: warnings.list,
            more_warnings: warnings.more,
            refused: list.refused.list,
            refused_count: list.refused.count,
        }))
    }

    async fn start_broadcast(&self, request: Request<StartBroadcastRequest>) -> Answer<StartBroadcastResponse> {
        let caller = Caller::of(&request)?;
        let StartBroadcastRequest { app_id, broadcast_id } = request.into_inner();
        let (broadcasts, id, ()) = self.broadcast_and(&caller, app_id, &broadcast_id, |_| ())?;
        let broadcast = Some(after_transition("StartBroadcast", &caller, broadcasts, &broadcasts.start(&id).await?));
        Ok(Response::new(StartBroadcastResponse { broadcast }))
    }

    async fn get_broadcast(&self, request: Request<GetBroadcastRequest>) -> Answer<GetBroadcastResponse> {
        let caller = Caller::of(&request)?;
        let GetBroadcastRequest { app_id, broadcast_id } = request.into_inner();
        let (broadcasts, id, ()) = self.broadcast_and(&caller, app_id, &broadcast_id, |_| ())?;
        let view = broadcasts.get(&id).await?;
        let broadcast = Some(info::of(&broadcasts.context.app.id, &view));
        Ok(Response::new(GetBroadcastResponse { broadcast }))
    }

    async fn list_broadcasts(&self, request: Request<ListBroadcastsRequest>) -> Answer<ListBroadcastsResponse> {
        let caller = Caller::of(&request)?;
        let (broadcasts, before, size) = self.parse_list(&caller, request.into_inner())?;
        let mut found = broadcasts.list(before.as_ref(), size + 1).await?;
        let more = found.len() > size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some(last) if more => last.record.id.to_string(),
            _ => String::new(),
        };
        let app = &broadcasts.context.app.id;
        let broadcasts = found.iter().map(|view| info::of(app, view)).collect();
        Ok(Response::new(ListBroadcastsResponse { broadcasts, next_page_token }))
    }

    async fn watch_broadcast(&self, request: Request<WatchBroadcastRequest>) -> Answer<Self::WatchBroadcastStream> {
        let (caller, connection, drain) = (Caller::of(&request)?, ConnectionClosing::of(&request), self.drain.clone());
        let WatchBroadcastRequest { app_id, broadcast_id, interval } = request.into_inner();
        let parse = |fields: &mut Fields| broadcast::interval(fields, interval);
        let (broadcasts, id, interval) = self.broadcast_and(&caller, app_id, &broadcast_id, parse)?;
        // A missing broadcast is reported before the stream starts, not within it.
        broadcasts.get(&id).await?;
        let revoked = caller.revoked(Some(broadcasts.context.app.id.clone()));
        let ending = Box::pin(async move {
            tokio::select! {
                () = drain.cancelled() => Failure::shutting_down(),
                () = connection.wait() => Failure::shutting_down(),
                failure = revoked => failure,
            }
        });
        Ok(Response::new(Box::pin(info::watch(Arc::clone(broadcasts), id, interval, ending))))
    }

    async fn pause_broadcast(&self, request: Request<PauseBroadcastRequest>) -> Answer<PauseBroadcastResponse> {
        let caller = Caller::of(&request)?;
        let PauseBroadcastRequest { app_id, broadcast_id } = request.into_inner();
        let pause = Move::Pause(PauseReason::Caller.into());
        let broadcast = self.move_to(&caller, "PauseBroadcast", (app_id, broadcast_id), pause).await?;
        Ok(Response::new(PauseBroadcastResponse { broadcast }))
    }

    async fn resume_broadcast(&self, request: Request<ResumeBroadcastRequest>) -> Answer<ResumeBroadcastResponse> {
        let caller = Caller::of(&request)?;
        let ResumeBroadcastRequest { app_id, broadcast_id } = request.into_inner();
        let broadcast =
            self.move_to(&caller, "ResumeBroadcast", (app_id, broadcast_id), Move::Resume { due: false }).await?;
        Ok(Response::new(ResumeBroadcastResponse { broadcast }))
    }

    async fn cancel_broadcast(&self, request: Request<CancelBroadcastRequest>) -> Answer<CancelBroadcastResponse> {
        let caller = Caller::of(&request)?;
        let CancelBroadcastRequest { app_id, broadcast_id } = request.into_inner();
        let broadcast = self.move_to(&caller, "CancelBroadcast", (app_id, broadcast_id), Move::Cancel).await?;
        Ok(Response::new(CancelBroadcastResponse { broadcast }))
    }

    async fn list_undelivered(&self, request: Request<ListUndeliveredRequest>) -> Answer<ListUndeliveredResponse> {
        let caller = Caller::of(&request)?;
        let ListUndeliveredRequest { app_id, broadcast_id, page_size, page_token } = request.into_inner();
        let parse = |fields: &mut Fields| broadcast::undelivered_page(fields, page_size, &page_token);
        let (broadcasts, id, (from, size)) = self.broadcast_and(&caller, app_id, &broadcast_id, parse)?;
        let (found, next) = broadcasts.undelivered(&id, from, size).await?;
        let undelivered = found.into_iter().map(info::undelivered).collect();
        let next_page_token = next.map(|place| broadcast::token_of(&place)).unwrap_or_default();
        Ok(Response::new(ListUndeliveredResponse { undelivered, next_page_token }))
    }

    async fn list_stops(&self, request: Request<ListStopsRequest>) -> Answer<ListStopsResponse> {
        let caller = Caller::of(&request)?;
        let context = self.parse_list_stops(&caller, request.into_inner().app_id)?;
        context.stops.refresh(&context.store).await.map_err(Failure::from)?;
        let stops = context.stops.in_force().iter().map(stops::of).collect();
        Ok(Response::new(ListStopsResponse { stops }))
    }

    async fn lift_stop(&self, request: Request<LiftStopRequest>) -> Answer<LiftStopResponse> {
        let caller = Caller::of(&request)?;
        let (context, scope) = self.parse_lift_stop(&caller, request.into_inner())?;
        let selected = |known: &StopScope, _: &_| scope.as_ref().is_none_or(|scope| scope == known);
        let lifted = context.stops.lift(&context.store, selected).await.map_err(Failure::from)?;
        for (scope, stop) in &lifted {
            audit::lifted(&caller, &context.app.id, &scope.name(), stop.errcode);
        }
        let response = LiftStopResponse { lifted: lifted.iter().map(stops::of).collect() };
        // In a task of its own: it asks WeChat for the quota first.
        let context = Arc::clone(context);
        tokio::spawn(async move { context.resume_after(&lifted).await });
        Ok(Response::new(response))
    }
}
