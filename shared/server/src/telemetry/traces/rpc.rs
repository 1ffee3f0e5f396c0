//! Creates a span for each API call. The parent is the caller's span if the request has a `traceparent` header.
//!
//! Health checks and reflection get no span, because they would be the majority of all spans. Calls that are rejected
//! because of authentication, permissions or limits get none either, so that an unauthorized caller cannot flood the
//! traces. Metrics count them.

use http::{HeaderMap, Request};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::Code;
use tracing::field::{Empty, display};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::TARGET;
use crate::auth::methods::{MethodAccess, method_access};
use domain::AppId;

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

/// The span of one call. A call that is dropped before its end was cancelled by the caller.
#[derive(Debug)]
pub(crate) struct CallSpan {
    span: Span,
    ended: bool,
}

impl CallSpan {
    /// The span of a call that is not traced.
    pub(crate) fn none() -> Self {
        Self { span: Span::none(), ended: true }
    }

    /// Begins the span of a call, if spans are exported.
    pub(crate) fn begin<B>(request: &Request<B>) -> Self {
        if !tracing::span_enabled!(target: TARGET, tracing::Level::INFO) {
            return Self::none();
        }
        let Some(method) = named(request.uri().path()) else { return Self::none() };
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
        Self { span, ended: false }
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Records the code that the call ended with. Only the first one counts.
    pub(crate) fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
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

impl Drop for CallSpan {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

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
    fn without_a_trace_collector_there_is_no_span() {
        assert!(CallSpan::begin(&Request::get(METHODS[0].path).body(()).unwrap()).span.is_none());
    }
}
