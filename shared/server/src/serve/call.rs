//! Handles one call, from its headers to the end of its response: counts it, admits or rejects it, traces it, bounds its
//! request, and ends it at its deadline or with its connection. Everything that holds for all calls is here, in the order
//! in which it happens; the rules themselves are in the modules that are named there.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service as _;
use tracing::Instrument as _;

use super::accept;
use super::admission::{Admission, Kind, Peer};
use super::budget::Charge;
use super::discard::DiscardRest;
use super::streams::Permit;
use crate::auth::Caller;
use crate::rpc::deadline;
use crate::rpc::reason::Reason;
use crate::rpc::status::{self, Failure, refused_by_tonic};
use crate::telemetry::metrics::grpc::{self, Calls};
use crate::telemetry::traces::rpc::CallSpan;

/// Handles the calls of one listener.
#[derive(Debug)]
pub(super) struct CallHandler {
    pub(super) admission: Admission,
    /// `None` on the port for probes, where no call is counted or traced.
    pub(super) metrics: Option<Calls>,
    pub(super) routes: Routes,
}

impl CallHandler {
    /// Handles a call. `usage` counts it as a call of its connection until the response is sent.
    pub(super) async fn handle<B>(
        self: Arc<Self>,
        request: Request<B>,
        peer: Arc<Peer>,
        usage: accept::Call,
    ) -> Response<ResponseBody>
    where
        B: HttpBody<Data = Bytes, Error: Into<tonic::codegen::StdError>> + Unpin + Send + 'static,
    {
        let mut request = request.map(DiscardRest::new);
        // Before all else, so that rejected calls are counted too.
        let metrics = self.metrics.as_ref().and_then(|calls| calls.begin(request.uri().path(), request.headers()));
        let mut record = Record { metrics, span: CallSpan::none() };
        let charge = Charge::default();
        let (kind, permit) = match self.admission.admit(&mut request, &peer) {
            Ok(admitted) => admitted,
            Err(failure) => return record.response(Status::from(failure).into_http(), None, (usage, charge, None)),
        };
        // Rejected calls get no span, whether they fail authentication or exceed a limit.
        if self.metrics.is_some() {
            record.span = CallSpan::begin(&request);
        }
        let caller = match kind {
            Kind::Stream(_) | Kind::Reflection => request.extensions().get::<Caller>().cloned(),
            Kind::Unary(_) | Kind::Health => None,
        };
        let deadline = deadline::of(request.headers());
        request.extensions_mut().insert(peer.closing.clone());
        request.extensions_mut().insert(charge.clone());
        let request = self.admission.bound(request, kind, &charge);
        let answer = record.span.span().in_scope(|| self.routes.clone().call(request));
        let response = tokio::select! {
            biased;
            answer = answer.instrument(record.span.span().clone()) => match answer {
                Ok(response) => with_error_details(response),
                Err(never) => match never {},
            },
            () = passed(deadline) => {
                let message = "the call's deadline passed; the operation it started may still complete";
                Status::from(Failure::new(Reason::DEADLINE_EXCEEDED, message)).into_http()
            }
            // Until its response begins, the handler of a stream does not notice a revoked permission.
            failure = revoked(caller.as_ref()) => {
                record.span = CallSpan::none();
                Status::from(failure).into_http()
            }
        };
        let (closing, permit) = match kind {
            Kind::Health | Kind::Reflection => (Some(closed(peer, caller)), Some(permit)),
            Kind::Stream(_) => (None, Some(permit)),
            // The handler is done; only sending is left, so the permit is released here.
            Kind::Unary(_) => (None, None),
        };
        record.response(response, closing, (usage, charge, permit))
    }
}

/// Waits until the deadline of a call; forever if it has none.
async fn passed(deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits until the caller loses its permissions. Waits forever if there is no caller.
async fn revoked(caller: Option<&Caller>) -> Failure {
    match caller {
        Some(caller) => caller.revoked(None).await,
        None => std::future::pending().await,
    }
}

/// Waits until the connection closes or the caller loses its permissions.
fn closed(peer: Arc<Peer>, caller: Option<Caller>) -> BoxFuture<'static, Failure> {
    Box::pin(async move {
        tokio::select! {
            () = peer.closing.wait() => Failure::shutting_down(),
            failure = revoked(caller.as_ref()) => failure,
        }
    })
}

/// Adds our error details to errors that tonic itself returns, which have none.
fn with_error_details(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    if !headers.contains_key(Status::GRPC_STATUS) || headers.contains_key("grpc-status-details-bin") {
        return response;
    }
    match Status::from_header_map(headers).and_then(|status| refused_by_tonic(&status)) {
        Some(failure) => Status::from(failure).into_http(),
        None => response,
    }
}

/// Records how a call ends. A call that is dropped before its end was abandoned by the client.
#[derive(Debug)]
struct Record {
    metrics: Option<grpc::Call>,
    span: CallSpan,
}

impl Record {
    fn end(&mut self, code: Code) {
        self.span.end(code);
        if let Some(call) = self.metrics.take() {
            call.end(code);
        }
    }

    fn response(
        mut self,
        response: Response<Body>,
        closing: Option<BoxFuture<'static, Failure>>,
        held: Held,
    ) -> Response<ResponseBody> {
        // Usually an error: its status is in the headers, and there is no body.
        let failed = (response.status() != StatusCode::OK).then_some(Code::Unknown);
        if let Some(code) = status::code(response.headers()).or(failed) {
            self.end(code);
        }
        response.map(|body| ResponseBody { body, record: self, closing, closed: false, _held: held })
    }
}

/// Resources that a call holds until its response is sent or dropped.
type Held = (accept::Call, Charge, Option<Permit>);

/// The body of a response. Its trailers have the code of the call.
pub(super) struct ResponseBody {
    body: Body,
    record: Record,
    /// Ends a stream that has no end of its own, such as a health watch.
    closing: Option<BoxFuture<'static, Failure>>,
    closed: bool,
    _held: Held,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = self.get_mut();
        if me.closed {
            return Poll::Ready(None);
        }
        let closing = me.closing.as_mut().map(|closing| closing.as_mut().poll(context));
        let polled = if let Some(Poll::Ready(failure)) = closing {
            me.closed = true;
            let mut trailers = HeaderMap::new();
            Status::from(failure).add_header(&mut trailers)?;
            Some(Ok(Frame::trailers(trailers)))
        } else {
            let body = Pin::new(&mut me.body);
            ready!(me.record.span.span().in_scope(|| body.poll_frame(context)))
        };
        let code = match &polled {
            Some(Ok(frame)) => frame.trailers_ref().map(|trailers| status::code(trailers).unwrap_or(Code::Unknown)),
            Some(Err(_)) | None => Some(Code::Unknown),
        };
        if let Some(code) = code {
            me.record.end(code);
        }
        Poll::Ready(polled)
    }

    // An error response has no body. This must remain visible here, or its status would be sent in a place where
    // clients do not look for it.
    fn is_end_stream(&self) -> bool {
        self.closed || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.closing {
            Some(_) if self.is_end_stream() => SizeHint::with_exact(0),
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}
