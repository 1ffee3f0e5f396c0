//! A span for each call of the API. Its parent is the caller's, where a `traceparent` came along.
//!
//! Health checks and reflection have none: they would be most of what there is to see. Nor has a call that is turned away
//! at the door, by a stranger or one too many: whoever may not call must not fill the traces either. Metrics count those.

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
use crate::auth::methods::{Door, door};
use crate::credential::AppId;
use crate::serve::guard::refused_by_tonic;
use crate::status;
use crate::store::broadcast::BroadcastId;

/// The layer; nothing where no spans are taken up.
pub fn layer() -> Option<Traced> {
    tracing::span_enabled!(target: TARGET, tracing::Level::INFO).then_some(Traced)
}

/// Traces the calls of the API.
#[derive(Debug, Clone, Copy)]
pub struct Traced;

/// Notes the app of the present call, which must be one of the settings; once for a call.
pub fn note_app(app: &AppId) {
    Span::current().record("formid.app", app.as_str());
}

/// Notes the broadcast that the present call ordered, by the id that it was given here.
pub fn note_broadcast(id: &BroadcastId) {
    Span::current().record("formid.broadcast", display(id));
}

/// The full name of the method of a path. Only what is in the table of methods is named in a trace: any other path is the
/// caller's invention.
fn named(path: &str) -> Option<&'static str> {
    match door(path) {
        Door::Method(method) => method.path.strip_prefix('/'),
        Door::Open | Door::Reflection | Door::Nothing => None,
    }
}

impl<S> Layer<S> for Traced {
    type Service = WithSpan<S>;

    fn layer(&self, inner: S) -> WithSpan<S> {
        WithSpan { inner }
    }
}

/// See [`Traced`].
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
        // Fails where the span is not taken up after all, and then it has no parent to miss.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&Metadata(request.headers())));
        let mut ending = Ending { span: span.clone(), told: false };
        let answer = span.in_scope(|| self.inner.call(request)).instrument(span);
        Box::pin(async move {
            let (head, body) = answer.await?.into_parts();
            // An error, most often: its status stands at the head, and there is no body.
            if let Some(status) = Status::from_header_map(&head.headers) {
                // As the guard outside of this is going to tell it.
                ending.tell(refused_by_tonic(&status).map_or(status, Status::from).code());
            }
            Ok(Response::from_parts(head, Body::new(TracedBody { body, ending })))
        })
    }
}

/// What the caller sent along.
struct Metadata<'a>(&'a HeaderMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The codes by their numbers, as gRPC's own list spells them.
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

/// Tells the span how its call ended. One that was not told so by its end was given up by the caller.
struct Ending {
    span: Span,
    told: bool,
}

impl Ending {
    fn tell(&mut self, code: Code) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let name = CODES[code as usize];
        self.span.record("rpc.response.status_code", name);
        // Those that are a fault of the service, as the conventions for spans of servers have it.
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

impl Drop for Ending {
    fn drop(&mut self) {
        self.tell(Code::Cancelled);
    }
}

/// A body that looks for the status at its end. For a stream that is where the call ends.
struct TracedBody {
    body: Body,
    ending: Ending,
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
    fn every_method_of_both_services_has_a_name_and_no_other_path_has() {
        for name in ["formid.v1.DispatcherService/SendTemplate", "formid.v1.CollectorService/CollectStream"] {
            assert_eq!(named(&format!("/{name}")), Some(name));
        }
        assert!(METHODS.iter().all(|method| named(method.path).is_some()));
        for path in ["", "/", "/formid.v1.CollectorService/Steal", "/grpc.health.v1.Health/Check"] {
            assert_eq!(named(path), None, "{path}");
        }
    }

    #[test]
    fn codes_are_spelt_as_in_the_list_of_grpc() {
        for (number, name) in (0..).zip(CODES) {
            let code = Code::from_i32(number);
            assert_eq!(code as i32, number);
            // The same words as the library's names, such as DataLoss.
            assert_eq!(name.replace('_', ""), format!("{code:?}").to_uppercase());
        }
    }

    #[test]
    fn without_a_collector_of_traces_there_is_no_layer() {
        assert!(layer().is_none());
    }
}
