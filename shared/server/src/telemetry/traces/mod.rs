//! Traces: records as spans what a call did and how long each part took, and exports them to a trace collector by OTLP.
//!
//! A span is an ordinary `tracing` span with the target [`TARGET`]. Only these are exported, no events, and they do not
//! appear in the log. So a trace contains only what the few places with that target write, and like the logs it
//! contains no personal data. Names and attributes are defined here, never taken from a request: no openid, credential,
//! request id, token, message text or URL. Only the caller's own trace context is passed on unchanged: its ids and its
//! `tracestate`.
//!
//! - [`rpc`]: a span for each API call, whose parent may come from the caller; [`redis`]: spans of Redis operations;
//! - [`export`]: exports spans in the background, with bounded time and memory;
//! - [`lines`]: the trace id in log lines, which connects logs and traces.
//!
//! Without an endpoint, none of this is set up. There is no layer around the calls, and at each place where a span
//! would begin, tracing only checks a flag. No trace context is sent to WeChat, which does not use it.

mod export;
pub(crate) mod lines;
pub mod rpc;

use http::Uri;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceState};
use opentelemetry::{Context, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

pub(crate) use export::Exporting;

pub use domain::dependency::TRACE_TARGET as TARGET;

/// Where traces are exported, and the sampling ratio.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceConfig {
    /// The URL of the trace collector. Traces are disabled if `None`.
    pub endpoint: Option<String>,
    /// The fraction of calls that are traced if the caller's trace does not decide it.
    pub ratio: f64,
}

/// Checks the URL of a trace collector.
pub(crate) fn endpoint(text: &str) -> Result<String, &'static str> {
    let usable = text.parse::<Uri>().is_ok_and(|uri| {
        let plain =
            uri.authority().is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
        plain && matches!(uri.scheme_str(), Some("http" | "https")) && uri.path() == "/" && uri.query().is_none()
    });
    let expected = "must be http://host:port or https://host:port, without user, path or query";
    if usable { Ok(text.to_owned()) } else { Err(expected) }
}

/// Returns the id of the current trace of this thread, if the trace is exported.
pub fn current_id() -> Option<TraceId> {
    Context::map_current(|context| {
        let span = context.span();
        let context = span.span_context();
        (context.is_valid() && context.is_sampled()).then(|| context.trace_id())
    })
}

/// Returns a link to the current span. A later span, also in another process, can be linked to it.
pub fn link() -> Option<String> {
    current_id()?;
    let mut line = Line::default();
    TraceContextPropagator::new().inject_context(&Context::current(), &mut line);
    line.0
}

/// Links a span to the one that [`link`] was called in.
pub fn link_to(span: &Span, link: &str) {
    if !span.is_disabled() {
        let from = TraceContextPropagator::new().extract_with_context(&Context::new(), &Line(Some(link.to_owned())));
        let from: SpanContext = from.span().span_context().clone();
        span.add_link(from);
    }
}

/// Makes a span a child of another after it was created. Neither may have been entered, because entering a span fixes
/// its parent.
pub fn adopt(span: &Span, parent: &Span) {
    if !span.is_disabled() {
        // Fails if the span is not exported, and then its parent does not matter.
        let _ = span.set_parent(parent.context());
    }
}

/// Discards a span that turned out to be irrelevant. It must never have been entered and must have no children.
pub fn discard(span: &Span) {
    if !span.is_disabled() {
        // A span is sampled if its parent is, so an unsampled parent discards it.
        let (trace, parent) = (TraceId::from(1), SpanId::from(1));
        let unsampled = SpanContext::new(trace, parent, TraceFlags::NOT_SAMPLED, true, TraceState::default());
        let _ = span.set_parent(Context::new().with_remote_span_context(unsampled));
    }
}

/// The `traceparent` header value alone.
#[derive(Default)]
struct Line(Option<String>);

const PARENT: &str = "traceparent";

impl Injector for Line {
    fn set(&mut self, key: &str, value: String) {
        if key == PARENT {
            self.0 = Some(value);
        }
    }
}

impl Extractor for Line {
    fn get(&self, key: &str) -> Option<&str> {
        (key == PARENT).then_some(self.0.as_deref()).flatten()
    }

    fn keys(&self) -> Vec<&str> {
        vec![PARENT]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_trace_there_is_no_link() {
        assert_eq!((current_id(), link()), (None, None));
        link_to(&Span::none(), "00-nothing");
    }
}
