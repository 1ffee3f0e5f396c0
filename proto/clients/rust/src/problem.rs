//! Errors of calls, and which of them to retry.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use tonic::{Code, ConnectError, Status};
use tonic_types::StatusExt as _;

/// A failed call: a reason for programs, a message for people, and the other details of the status.
#[derive(Debug)]
pub struct Problem {
    code: Code,
    message: String,
    /// `None` if formid did not answer.
    reason: Option<String>,
    facts: BTreeMap<String, String>,
    fields: Vec<(String, String)>,
    /// How long to wait before a retry, if the service says so.
    pub retry_after: Option<Duration>,
    never_left: bool,
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == "formid");
        let fields = details.bad_request().into_iter().flat_map(|bad| &bad.field_violations);
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason: info.map(|info| info.reason.clone()),
            facts: info.map(|info| info.metadata.clone().into_iter().collect()).unwrap_or_default(),
            fields: fields.map(|field| (field.field.clone(), field.description.clone())).collect(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            never_left: causes(&status).any(is_before_the_call),
        }
    }
}

impl Problem {
    /// Whether a retry of the same call may succeed.
    pub fn passes(&self) -> bool {
        use Code::{Aborted, Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown};
        if self.is_formids() {
            // FAILED_PRECONDITION and the like would be answered again.
            matches!(self.code, Unavailable | Aborted | DeadlineExceeded | ResourceExhausted)
        } else {
            // tonic has several codes for a broken connection (RESOURCE_EXHAUSTED for HTTP/2's ENHANCE_YOUR_CALM), and
            // CANCELLED for a deadline. It is not known whether the service has processed the call. Every call here is
            // safe to repeat, because of its form id or its request id.
            matches!(self.code, Unavailable | DeadlineExceeded | Unknown | Internal | Cancelled | ResourceExhausted)
        }
    }

    /// Whether formid answered, rather than a proxy or tonic on this side.
    pub fn is_formids(&self) -> bool {
        self.reason.is_some()
    }

    /// Whether no service has seen the call. Either there was no connection, or the service had announced before that
    /// it accepts no more calls on it (GOAWAY), as a service does that stops. Such a call is always safe to repeat, and
    /// the retry goes to another replica. gRPC's own libraries do this transparently.
    pub fn never_left(&self) -> bool {
        self.never_left
    }

    /// Whether the next call should go to another replica.
    pub fn is_of_the_replica(&self) -> bool {
        !self.is_formids() || self.reason.as_deref() == Some("SHUTTING_DOWN")
    }
}

/// The chain of causes of a status.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |&cause| cause.source())
}

fn is_before_the_call(cause: &(dyn Error + 'static)) -> bool {
    let unseen = |error: &h2::Error| {
        // A GOAWAY ends only the calls that came after it. Earlier calls are still answered.
        let too_late = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (too_late || refused)
    };
    cause.is::<ConnectError>()
        || cause.downcast_ref::<h2::Error>().is_some_and(unseen)
        // hyper could not start the call, because the connection was closed at this moment.
        || cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(out, "{reason}")?,
            None => write!(out, "{:?}", self.code)?,
        }
        for (key, value) in &self.facts {
            write!(out, ", {key} {value}")?;
        }
        write!(out, ": {}", self.message)?;
        // The message names a single field itself.
        let several = if self.fields.len() > 1 { &self.fields[..] } else { &[] };
        several.iter().try_for_each(|(field, problem)| write!(out, "; {field} {problem}"))
    }
}
