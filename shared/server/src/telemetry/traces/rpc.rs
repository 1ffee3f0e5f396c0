//! Creates a span for each API call. The parent is the caller's span if the request has a `traceparent` header.
//!
//! Health checks and reflection get no span, because they would be the majority of all spans. Calls that are rejected
//! because of authentication, permissions or limits get none either, so that an unauthorized caller cannot flood the
//! traces. Metrics count them.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::{Empty, display};
use tracing::{Instrument as _, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::TARGET;
use crate::auth::methods::{MethodAccess, method_access};
use crate::rpc::status;
use crate::serve::admission::refused_by_tonic;
use domain::AppId;

/// Returns the layer, or `None` if no spans are exported.
pub fn layer() -> Option<Traced> {
    tracing::span_enabled!(target: TARGET, tracing::Level::INFO).then_some(Traced)
}

/// Tower layer that traces API calls.
#[derive(Debug, Clone, Copy)]
pub struct Traced;

/// Records the app of the current call. It must be a configured app. Call it at most once for a call.
pub fn note_app(app: &AppId) {
    Span::current().record("formid.app", app.as_str());
}

/// Records the broadcast that the current call created, by the id that the service gave it.
pub fn note_broadcast(id: &impl std::fmt::Display) {
    Span::current().record("formid.broadcast", display(id));
}

/// Returns the full name of the method of a path. Returns `None` for a path that is not in the table of methods,
/// because the caller can choose any text there.
fn named(path: &str) -> Option<&'static str> {
    match method_access(path) {
        MethodAccess::Method(method) => method.path.strip_prefix('/'),
        MethodAccess::Open | MethodAccess::Reflection | MethodAccess::Nothing => None,
    }
}

impl<S> Layer<S> for Traced {
    type Service = WithSpan<S>;

    fn layer(&self, inner: S) -> WithSpan<S> {
        WithSpan { inner }
    }
}

/// The service of the layer [`Traced`].
#[derive(Debug, Clone)]
pub struct WithSpan<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for WithSpan<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(method) = named(request.uri().path()) else {
            return Box::pin(self.inner.call(request));
        };
        let span = info_span!(
            target: TARGET,
            "rpc",
            otel.name = method,
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system.name = "grpc",
            rpc.method = method,
            rpc.response.status_code = Empty,
            error.type = Empty,
            formid.app = Empty,
            formid.broadcast = Empty,
        );
        // Fails if the span is not exported, and then its parent does not matter.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&Metadata(request.headers())));
        let mut ending = SpanEnd { span: span.clone(), told: false };
        let answer = span.in_scope(|| self.inner.call(request)).instrument(span);
        Box::pin(async move {
            let (head, body) = answer.await?.into_parts();
            // Usually an error: its status is in the headers, and there is no body.
            if let Some(status) = Status::from_header_map(&head.headers) {
                // The code that the guard outside of this layer is going to send.
                ending.tell(refused_by_tonic(&status).map_or(status, Status::from).code());
            }
            Ok(Response::from_parts(head, Body::new(TracedBody { body, ending })))
        })
    }
}

/// The headers of the request.
struct Metadata<'a>(&'a HeaderMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The names of the codes as in gRPC's specification, indexed by the number of the code.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Records in the span how its call ended. A call that is dropped before its end was cancelled by the caller.
struct SpanEnd {
    span: Span,
    told: bool,
}

impl SpanEnd {
    fn tell(&mut self, code: Code) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let name = CODES[code as usize];
        self.span.record("rpc.response.status_code", name);
        // The codes that are errors of the service by the semantic conventions for server spans.
        if matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ) {
            self.span.record("error.type", name).record("otel.status_code", "ERROR");
        }
    }
}

impl Drop for SpanEnd {
    fn drop(&mut self) {
        self.tell(Code::Cancelled);
    }
}

/// A response body that records the status in its trailers. A stream ends there.
struct TracedBody {
    body: Body,
    ending: SpanEnd,
}

impl http_body::Body for TracedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, ending } = self.get_mut();
        let span = ending.span.clone();
        let frame = span.in_scope(|| Pin::new(body).poll_frame(context));
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(code) = frame.trailers_ref().and_then(status::code)
        {
            ending.tell(code);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::methods::METHODS;

    #[test]
    fn only_paths_of_known_methods_have_a_name() {
        for name in ["formid.v1.DispatcherService/SendTemplate", "formid.v1.CollectorService/CollectStream"] {
            assert_eq!(named(&format!("/{name}")), Some(name));
        }
        assert!(METHODS.iter().all(|method| named(method.path).is_some()));
        for path in ["", "/", "/formid.v1.CollectorService/Steal", "/grpc.health.v1.Health/Check"] {
            assert_eq!(named(path), None, "{path}");
        }
    }

    #[test]
    fn code_names_match_the_grpc_specification() {
        for (number, name) in (0..).zip(CODES) {
            let code = Code::from_i32(number);
            assert_eq!(code as i32, number);
            // The same words as tonic's names, such as DataLoss.
            assert_eq!(name.replace('_', ""), format!("{code:?}").to_uppercase());
        }
    }

    #[test]
    fn without_a_trace_collector_there_is_no_layer() {
        assert!(layer().is_none());
    }
}
