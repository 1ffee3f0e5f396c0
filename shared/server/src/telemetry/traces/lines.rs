//! Adds the trace id to log lines.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::current_id;

/// Formats lines with another format, and appends `trace_id` as the last field if the call is traced.
pub(crate) struct WithTraceId<F> {
    pub(crate) lines: F,
    pub(crate) json: bool,
    /// Whether traces are enabled. If not, no trace id is looked up.
    pub(crate) traced: bool,
}

impl<S, N, F> FormatEvent<S, N> for WithTraceId<F>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(id) = self.traced.then(current_id).flatten() else {
            return self.lines.format_event(context, out, event);
        };
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end_matches('\n');
        match line.strip_suffix('}') {
            Some(open) if self.json => writeln!(out, "{open},\"trace_id\":\"{id}\"}}"),
            _ => writeln!(out, "{line} trace_id={id}"),
        }
    }
}
