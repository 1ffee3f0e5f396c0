//! Spans of Redis operations, by the semantic conventions for database clients.

use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::Error;
use domain::AppId;
use domain::dependency::TRACE_TARGET as TARGET;

/// Creates the span of a script call. As in the metrics, the script is named by its file. All attempts are one span. It
/// contains no keys and no arguments.
pub fn script(name: &'static str, file: &'static str, app: &AppId) -> Span {
    info_span!(
        target: TARGET,
        "redis",
        otel.name = name,
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "redis",
        db.operation.name = "EVALSHA",
        db.stored_procedure.name = file,
        db.response.status_code = Empty,
        error.type = Empty,
        formid.app = %app,
        formid.broadcast = Empty,
        formid.credentials = Empty,
        formid.leased = Empty,
        formid.messages = Empty,
    )
}

/// Marks a span as failed. Call it at most once for a span.
pub fn failed(span: &Span, error: &Error) {
    if let Some(code) = error.code() {
        span.record("db.response.status_code", code);
    }
    failed_as(span, error.code().unwrap_or(error.class()));
}

/// Like [`failed`], with an error type given by the caller.
pub fn failed_as(span: &Span, kind: &str) {
    span.record("error.type", kind).record("otel.status_code", "ERROR");
}
