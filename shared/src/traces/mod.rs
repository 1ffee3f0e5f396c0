//! Traces: what a call did and how long each part took, as spans, for a collector of traces that speaks OTLP.
//!
//! A span is an ordinary `tracing` span with the target [`TARGET`]. Only those are exported, no events, and no log line
//! shows them: so what a trace can hold is what the few places with that target write, and it is as little as in the
//! logs. Names and attributes are chosen here, never taken from a request: no openid, credential, request id, token,
//! text of a message or URL. What passes through as it comes is the caller's own trace: its ids, and its `tracestate`.
//!
//! - [`rpc`]: a span for each call of the API, whose parent may come from the caller; [`redis`]: spans of steps in Redis;
//! - [`export`]: how spans leave, in the background and within bounds;
//! - [`lines`]: the trace id in log lines, so that logs and traces join.
//!
//! Without an endpoint none of this is set up: no layer around the calls, and each place where a span would begin is
//! one look at a flag that tracing keeps for it. Nothing is passed on to WeChat, which has no use for it.

mod export;
pub(crate) mod lines;
pub mod redis;
pub mod rpc;

use http::Uri;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceState};
use opentelemetry::{Context, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

pub(crate) use export::Exporting;

use crate::problems::Problems;

/// The target of the spans that are exported, and of nothing else.
pub const TARGET: &str = "formid::traces";

/// Where traces go, and how many of them.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceConfig {
    /// The collector of traces; without one there are none.
    pub endpoint: Option<String>,
    /// The part of the calls that is traced where the caller does not say.
    pub ratio: f64,
}

impl TraceConfig {
    /// Reads the texts of the flags.
    pub(crate) fn read(endpoint: &str, ratio: &str, problems: &mut Problems) -> Option<Self> {
        let usable = endpoint.is_empty() || is_endpoint(endpoint);
        if !usable {
            // Without the URL itself: somebody may have put a password into it.
            problems.add("--otlp-endpoint must be http://host:port or https://host:port, without user, path or query");
        }
        let ratio = problems.read::<f64>("--trace-ratio", ratio)?;
        if !(0.0..=1.0).contains(&ratio) {
            problems.add(format!("--trace-ratio is {ratio}, but must lie between 0 and 1"));
            return None;
        }
        usable.then(|| Self { endpoint: (!endpoint.is_empty()).then(|| endpoint.to_owned()), ratio })
    }
}

fn is_endpoint(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| {
        let plain =
            uri.authority().is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
        plain && matches!(uri.scheme_str(), Some("http" | "https")) && uri.path() == "/" && uri.query().is_none()
    })
}

/// The trace that this thread is working for, if it is one that is exported.
pub fn current_id() -> Option<TraceId> {
    Context::map_current(|context| {
        let span = context.span();
        let context = span.span_context();
        (context.is_valid() && context.is_sampled()).then(|| context.trace_id())
    })
}

/// What another span, of another process and another day, can be linked to the current one by.
pub fn link() -> Option<String> {
    current_id()?;
    let mut line = Line::default();
    TraceContextPropagator::new().inject_context(&Context::current(), &mut line);
    line.0
}

/// Links a span to the one that [`link`] was taken from.
pub fn link_to(span: &Span, link: &str) {
    if !span.is_disabled() {
        let from = TraceContextPropagator::new().extract_with_context(&Context::new(), &Line(Some(link.to_owned())));
        let from: SpanContext = from.span().span_context().clone();
        span.add_link(from);
    }
}

/// Makes a span a child of another, after it began. Neither may have been entered: a span that was has its parent.
pub fn adopt(span: &Span, parent: &Span) {
    if !span.is_disabled() {
        // Fails where the span is not taken up, and then it has no parent to miss.
        let _ = span.set_parent(parent.context());
    }
}

/// Drops a span that turned out to say nothing. Only for one that was never entered and has no children.
pub fn discard(span: &Span) {
    if !span.is_disabled() {
        // A span is sampled as its parent is.
        let (trace, parent) = (TraceId::from(1), SpanId::from(1));
        let unsampled = SpanContext::new(trace, parent, TraceFlags::NOT_SAMPLED, true, TraceState::default());
        let _ = span.set_parent(Context::new().with_remote_span_context(unsampled));
    }
}

/// A `traceparent` by itself.
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
    fn an_endpoint_is_a_url_with_nothing_to_hide() {
        for good in ["http://otel:4317", "https://otel.example:4317/", "http://[::1]:4317", "http://otel"] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in
            ["otel:4317", "grpc://otel:4317", "http://u:p@otel:4317", "http://otel/v1", "http://otel?key=x", "http://"]
        {
            let mut problems = Problems::default();
            assert_eq!(TraceConfig::read(bad, "1", &mut problems), None, "{bad}");
            let said = problems.finish().unwrap_err().to_string();
            assert!(!said.contains("u:p") && !said.contains("key"), "{said}");
        }
    }

    #[test]
    fn a_ratio_is_a_part_of_one() {
        for (ratio, good) in
            [("0", true), ("0.25", true), ("1", true), ("1.1", false), ("-1", false), ("NaN", false), ("10%", false)]
        {
            assert_eq!(TraceConfig::read("", ratio, &mut Problems::default()).is_some(), good, "{ratio}");
        }
    }

    #[test]
    fn without_a_trace_there_is_nothing_to_link_to() {
        assert_eq!((current_id(), link()), (None, None));
        link_to(&Span::none(), "00-nothing");
    }
}
