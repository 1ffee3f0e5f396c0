//! Spans of steps in Redis, by the semantic conventions for database clients.

use tracing::field::Empty;
use tracing::{Span, info_span};

use super::TARGET;
use crate::credential::AppId;
use crate::store::Error;

/// A step that is one script, named by its file as in the metrics. Its attempts are one span. Neither keys nor arguments
/// are in it.
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

/// Notes that a step came to nothing; once for a span.
pub fn failed(span: &Span, error: &Error) {
    if let Some(code) = error.code() {
        span.record("db.response.status_code", code);
    }
    failed_as(span, error.code().unwrap_or(error.class()));
}

/// The same where the kind of error is known otherwise.
pub fn failed_as(span: &Span, kind: &str) {
    span.record("error.type", kind).record("otel.status_code", "ERROR");
}
