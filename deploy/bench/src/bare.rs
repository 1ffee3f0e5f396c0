//! The ceiling of SendTemplate: a tonic handler that makes the HTTP call and nothing else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dispatcher::apps_file::Apps;
use dispatcher::wechat::client::Client;
use dispatcher::wechat::message::{Delivery, Message, Value};
use dispatcher::wechat::reply::Reply;
use domain::config_errors::ConfigErrors;
use domain::{AppId, CredentialId, OpenId, TemplateId};
use server::proto::dispatcher_service_server::{DispatcherService, DispatcherServiceServer};
use server::proto::{self, Outcome, SendTemplateRequest, SendTemplateResponse};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The app of all measurements.
pub const APP: &str = "wx0123456789abcdef";

/// The app's secret in the sandbox.
pub const SECRET: &str = "sandbox-secret";

struct Bare {
    client: Client,
    token: String,
}

impl Bare {
    /// Sends with the form id, which the benchmark puts into `request_id`.
    async fn send(&self, request: SendTemplateRequest) -> Result<SendTemplateResponse, Status> {
        let delivery = match request.delivery() {
            proto::Delivery::Subscription => Delivery::Subscription,
            _ => Delivery::FormId,
        };
        let malformed = |_| Status::invalid_argument("malformed");
        let openid = OpenId::parse(request.openid).map_err(malformed)?;
        let form_id = CredentialId::parse(request.request_id).map_err(|_| Status::invalid_argument("malformed"))?;
        let data = request.data.into_iter().map(|(key, value)| (key, Value { value: value.value, color: value.color }));
        let template_id = TemplateId::parse(request.template_id).map_err(malformed)?;
        let message = Message {
            page: request.page,
            data: data.collect::<BTreeMap<_, _>>(),
            emphasis_keyword: request.emphasis_keyword,
            ..Message::empty(delivery, template_id)
        };
        match self.client.send(message.delivery, &self.token, message.body(&openid, &form_id)).await {
            Reply::Answered { errcode: 0, rid, .. } => {
                Ok(SendTemplateResponse { outcome: Outcome::Delivered.into(), rid, ..Default::default() })
            }
            other => Err(Status::unknown(format!("{other:?}"))),
        }
    }
}

/// Implements the generated service. Only SendTemplate is served.
macro_rules! serve_only_send_template {
    ($($call:ident($request:ident) -> $response:ident;)+) => {
        #[tonic::async_trait]
        impl DispatcherService for Bare {
            type WatchBroadcastStream = tokio_stream::Empty<Result<proto::WatchBroadcastResponse, Status>>;

            async fn send_template(
                &self,
                request: Request<SendTemplateRequest>,
            ) -> Result<Response<SendTemplateResponse>, Status> {
                self.send(request.into_inner()).await.map(Response::new)
            }

            async fn watch_broadcast(
                &self,
                _: Request<proto::WatchBroadcastRequest>,
            ) -> Result<Response<Self::WatchBroadcastStream>, Status> {
                Err(Status::unimplemented("not measured"))
            }

            $(async fn $call(
                &self,
                _: Request<proto::$request>,
            ) -> Result<Response<proto::$response>, Status> {
                Err(Status::unimplemented("not measured"))
            })+
        }
    };
}

serve_only_send_template! {
    broadcast(BroadcastRequest) -> BroadcastResponse;
    add_recipients(AddRecipientsRequest) -> AddRecipientsResponse;
    start_broadcast(StartBroadcastRequest) -> StartBroadcastResponse;
    get_broadcast(GetBroadcastRequest) -> GetBroadcastResponse;
    list_broadcasts(ListBroadcastsRequest) -> ListBroadcastsResponse;
    pause_broadcast(PauseBroadcastRequest) -> PauseBroadcastResponse;
    resume_broadcast(ResumeBroadcastRequest) -> ResumeBroadcastResponse;
    cancel_broadcast(CancelBroadcastRequest) -> CancelBroadcastResponse;
    list_undelivered(ListUndeliveredRequest) -> ListUndeliveredResponse;
    list_stops(ListStopsRequest) -> ListStopsResponse;
    lift_stop(LiftStopRequest) -> LiftStopResponse;
}

/// Serves until killed.
pub async fn serve(listen: SocketAddr, base_url: &str) {
    let apps = format!("[apps.{APP}]\nsecret = \"{SECRET}\"\nbase_url = \"{base_url}\"\n");
    let mut problems = ConfigErrors::default();
    let apps = Apps::parse(&apps, &mut problems).expect("the apps file is valid");
    let app = Arc::clone(apps.get(&AppId::parse(APP).unwrap()).unwrap());
    let client = Client::new(app, None).unwrap();
    let token = client.fetch_token(false).await.expect("a token").token;
    let service = DispatcherServiceServer::new(Bare { client, token });
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(service)
        .serve(listen)
        .await
        .unwrap();
}
