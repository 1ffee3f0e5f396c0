//! What an error tells.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use tonic::{Code, ConnectError, Status};
use tonic_types::StatusExt as _;

/// A call that failed: a reason for programs, a sentence for people, and what else the service told.
#[derive(Debug)]
pub struct Problem {
    code: Code,
    message: String,
    /// None where it was not formid that answered.
    reason: Option<String>,
    facts: BTreeMap<String, String>,
    fields: Vec<(String, String)>,
    /// When to try again, where the service says.
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
    /// Whether the same call may fare better later.
    pub fn passes(&self) -> bool {
        use Code::{Aborted, Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown};
        if self.is_formids() {
            // FAILED_PRECONDITION and the like say the same again.
            matches!(self.code, Unavailable | Aborted | DeadlineExceeded | ResourceExhausted)
        } else {
            // tonic has several codes for a connection that breaks (RESOURCE_EXHAUSTED where HTTP/2 says ENHANCE_YOUR_CALM),
            // and CANCELLED for a deadline that passes. How far the call came is not known; every call here is safe to
            // repeat, by its form id or by its request id.
            matches!(self.code, Unavailable | DeadlineExceeded | Unknown | Internal | Cancelled | ResourceExhausted)
        }
    }

    /// Whether formid answered, and not a proxy, or tonic on this side.
    pub fn is_formids(&self) -> bool {
        self.reason.is_some()
    }

    /// Whether no service has seen the call: there was no connection, or the service had said before that it takes no more
    /// calls on it (GOAWAY), as one does that stops. Such a call is safe to repeat, whatever it is, and a moment later comes
    /// to another replica. gRPC's own libraries do that unseen.
    pub fn never_left(&self) -> bool {
        self.never_left
    }

    /// Whether the next call should rather go to another replica.
    pub fn is_of_the_replica(&self) -> bool {
        !self.is_formids() || self.reason.as_deref() == Some("SHUTTING_DOWN")
    }
}

/// What stands behind an error of tonic's.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |&cause| cause.source())
}

fn is_before_the_call(cause: &(dyn Error + 'static)) -> bool {
    let unseen = |error: &h2::Error| {
        // A GOAWAY ends only the calls that came too late for it; those before it are still answered.
        let too_late = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (too_late || refused)
    };
    cause.is::<ConnectError>()
        || cause.downcast_ref::<h2::Error>().is_some_and(unseen)
        // What hyper could not begin, because the connection went in this moment.
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
        // Of one field the sentence itself tells.
        let several = if self.fields.len() > 1 { &self.fields[..] } else { &[] };
        several.iter().try_for_each(|(field, problem)| write!(out, "; {field} {problem}"))
    }
}
