//! Errors as callers see them: a gRPC status with exactly one `google.rpc.ErrorInfo`, whose reason is for programs, and
//! a message for people. Causes go to the log. A caller sees no cause, secret, credential or openid.

use std::collections::HashMap;
use std::time::Duration;

use domain::dependency::{Fault, FaultKind};
use http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt as _};
use tracing::{debug, error};

use super::reason::Reason;

/// The domain of all error reasons.
pub const DOMAIN: &str = "formid";

/// The error text for an app_id that is well-formed but that the service is not configured for.
pub(crate) const UNKNOWN_APP: &str = "is not an app that this service is configured for";

/// Tells gRPC libraries with a retry policy when to retry (gRFC A6): after this many milliseconds, or not at all if it
/// is negative. The libraries ignore RetryInfo, which gives the same information to programs.
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The longest delay that a library is asked for. It waits with the call open. A delay beyond the call's deadline would
/// only hide the error reason from the caller.
const LONGEST_PUSHBACK: Duration = Duration::from_secs(30);

/// The maximum size of a status in the headers that end a call, in bytes, as HTTP/2 counts them. By default, clients
/// with gRPC's own libraries accept 8 KiB of headers, and report a different error if there are more.
pub const MAX_STATUS: usize = 7 * 1024;

/// The overhead that HTTP/2 counts for each header, in addition to its name and value.
const HEADER: usize = 32;

/// The maximum number of invalid fields that are named.
pub(crate) const MAX_FIELDS: usize = 64;

/// The maximum length of a message, in bytes. It is sent twice, and each byte that is not ASCII takes three bytes.
const MAX_MESSAGE: usize = 1024;

/// The maximum length of a metadata value, a field name or the text about a field, in bytes.
const MAX_TEXT: usize = 256;

/// The metadata key for the number of invalid fields that BadRequest does not name.
pub const MORE_FIELDS: &str = "more_fields";

/// An error to be sent to a caller. Boxed, because most results are not errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(Box<Facts>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    reason: Reason,
    message: String,
    metadata: Vec<(&'static str, String)>,
    fields: Vec<(String, String)>,
    more_fields: usize,
    retry_after: Option<Duration>,
    perhaps_done: bool,
    quota: Option<(String, String)>,
}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let message = clipped(message.into(), MAX_MESSAGE);
        let (metadata, fields, more_fields) = (Vec::new(), Vec::new(), 0);
        let (retry_after, perhaps_done, quota) = (reason.retry_after, false, None);
        Self(Box::new(Facts { reason, message, metadata, fields, more_fields, retry_after, perhaps_done, quota }))
    }

    /// Adds metadata for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.0.metadata.push((key, clipped(value.to_string(), MAX_TEXT)));
        self
    }

    /// Adds an invalid field and its problem. As many fields are sent as fit into a status; the others are only
    /// counted.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, problem: impl Into<String>) -> Self {
        self.0.fields.push((clipped(name.into(), MAX_TEXT), clipped(problem.into(), MAX_TEXT)));
        self
    }

    /// Adds this many invalid fields that are not named.
    #[must_use]
    pub fn more_fields(mut self, count: usize) -> Self {
        self.0.more_fields += count;
        self
    }

    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Marks a call that may have been partly executed and cannot be recognized when it is repeated, so that a retry
    /// would execute it again. If the code is UNAVAILABLE, removes the retry delay and tells libraries not to retry.
    #[must_use]
    pub fn perhaps_done(mut self) -> Self {
        if self.0.reason.code == Code::Unavailable {
            self.0.perhaps_done = true;
            self.0.retry_after = None;
        }
        self
    }

    /// Adds the quota that is used up: its subject and a description.
    #[must_use]
    pub fn quota(mut self, subject: impl Into<String>, description: impl Into<String>) -> Self {
        self.0.quota = Some((clipped(subject.into(), MAX_TEXT), clipped(description.into(), MAX_TEXT)));
        self
    }

    pub fn reason(&self) -> &'static str {
        self.0.reason.name
    }

    /// WeChat's error code, if the failure is due to one.
    pub fn errcode(&self) -> Option<i32> {
        let (_, errcode) = self.0.metadata.iter().find(|(key, _)| *key == "errcode")?;
        errcode.parse().ok()
    }

    pub fn unknown_app() -> Self {
        Self::new(Reason::UNKNOWN_APP, format!("app_id {UNKNOWN_APP}")).field("app_id", UNKNOWN_APP)
    }

    pub fn shutting_down() -> Self {
        Self::new(Reason::SHUTTING_DOWN, "this replica is shutting down; try again")
    }

    /// A limit of calls or memory is reached. Rejecting the call keeps the calls in progress fast.
    pub fn overloaded() -> Self {
        Self::new(Reason::OVERLOADED, "this replica is at its limit of calls or memory; try again")
    }

    /// The message exceeds the limit, by its size or by the memory that its lists need.
    pub fn too_large() -> Self {
        let sentence = "the message is larger than this service accepts; send less at a time";
        Self::new(Reason::MESSAGE_TOO_LARGE, sentence)
    }

    pub fn malformed() -> Self {
        Self::new(Reason::MALFORMED_MESSAGE, "the bytes are not a request message of this method")
    }

    pub fn share_taken() -> Self {
        let sentence = "this caller has reached its share of open streams; close one, or try again";
        Self::new(Reason::OVERLOADED, sentence)
    }

    pub fn internal() -> Self {
        Self::new(Reason::INTERNAL, "internal error; the cause is in the log of the service")
    }
}

impl Facts {
    /// Returns the retry pushback for gRPC libraries. `None` for codes that no retry policy repeats anyway.
    fn pushback(&self) -> Option<i64> {
        const NEVER: i64 = -1;
        if self.perhaps_done {
            return Some(NEVER);
        }
        let delay = self.retry_after?;
        // With other codes, the error persists until its cause is fixed. RetryInfo then only says how long to wait
        // after the fix.
        let passes = matches!(self.reason.code, Code::Unavailable | Code::Aborted | Code::ResourceExhausted);
        let soon = (passes && delay <= LONGEST_PUSHBACK).then(|| delay.as_micros().div_ceil(1000));
        Some(soon.and_then(|soon| i64::try_from(soon).ok()).unwrap_or(NEVER))
    }

    /// Builds the status, with the first `named` of the invalid fields.
    fn status(&self, named: usize) -> Status {
        let mut metadata = MetadataMap::new();
        if let Some(pushback) = self.pushback() {
            metadata.insert(PUSHBACK, pushback.into());
        }
        let mut details = ErrorDetails::new();
        let mut facts: HashMap<_, _> =
            self.metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let more_fields = self.more_fields + self.fields.len() - named;
        if more_fields > 0 {
            facts.insert(MORE_FIELDS.to_owned(), more_fields.to_string());
        }
        details.set_error_info(self.reason.name, DOMAIN, facts);
        if named > 0 {
            let named = self.fields[..named].iter();
            let violations: Vec<_> = named.map(|(field, problem)| FieldViolation::new(field, problem)).collect();
            details.set_bad_request(violations);
        }
        if let Some((subject, description)) = &self.quota {
            details.set_quota_failure(vec![QuotaViolation::new(subject, description)]);
        }
        if self.retry_after.is_some() {
            details.set_retry_info(self.retry_after);
        }
        Status::with_error_details_and_metadata(self.reason.code, self.message.clone(), details, metadata)
    }
}

impl From<Failure> for Status {
    fn from(Failure(facts): Failure) -> Self {
        let mut named = facts.fields.len().min(MAX_FIELDS);
        loop {
            let status = facts.status(named);
            if named == 0 || size(&status) <= MAX_STATUS {
                return status;
            }
            named /= 2;
        }
    }
}

/// Returns the size of a status in the headers that end a call.
fn size(status: &Status) -> usize {
    let mut headers = HeaderMap::new();
    // A value that is not a valid header is not sent.
    let _ = status.add_header(&mut headers);
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER).sum()
}

/// Truncates a text to at most `most` bytes.
fn clipped(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
    }
    text
}

impl<E: Fault> From<E> for Failure {
    fn from(cause: E) -> Self {
        match cause.kind() {
            FaultKind::Unavailable => {
                debug!(error = %cause, "a call failed because Redis is unavailable");
                Self::new(Reason::REDIS_UNAVAILABLE, "Redis does not answer; try again")
            }
            FaultKind::Lasting { log } => {
                if let Some(log) = log {
                    error!(error = %cause, "{log}");
                }
                Self::internal()
            }
            FaultKind::Misconfigured => {
                error!(error = %cause, "Redis belongs to another deployment");
                Self::internal()
            }
        }
    }
}

/// Returns the failure for a status that tonic itself created: for a request that reached no handler, or for a message
/// of a stream.
pub fn refused_by_tonic(status: &Status) -> Option<Failure> {
    if !status.details().is_empty() {
        return None;
    }
    match status.code() {
        Code::OutOfRange => Some(Failure::too_large()),
        Code::Internal => Some(Failure::malformed()),
        Code::Unimplemented => {
            let sentence = "this service has no such method, or the compression of the message is not supported";
            Some(Failure::new(Reason::UNIMPLEMENTED, sentence))
        }
        _ => None,
    }
}

/// Returns the code that a call ended with, if these headers or trailers contain it.
pub(crate) fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_has_one_error_info_and_all_invalid_fields() {
        let failure = Failure::new(Reason::INVALID_FIELDS, "two fields are wrong")
            .field("app_id", "must not be empty")
            .field("page", "must not be longer than 1024 bytes")
            .with("errcode", 40037)
            .retry_after(Duration::from_secs(3));
        let status = Status::from(failure);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_FIELDS", DOMAIN));
        assert_eq!(info.metadata["errcode"], "40037");
        assert_eq!(details.bad_request().unwrap().field_violations.len(), 2);
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(3)));
    }

    #[test]
    fn status_is_never_larger_than_clients_accept() {
        // One text whose size triples when it is encoded, and one whose size does not.
        for letter in ["字", "x"] {
            let long = letter.repeat(2000);
            let failure = Failure::new(Reason::INVALID_FIELDS, &long)
                .with("errcode", &long)
                .with("rid", &long)
                .with("field", &long)
                .with("sequence", &long)
                .quota(&long, &long)
                .retry_after(Duration::MAX);
            let bare = Status::from(failure.clone());
            assert!(size(&bare) <= MAX_STATUS, "{}", size(&bare));
            for count in [1, 2, 50, 1000] {
                let many = (0..count).fold(failure.clone().more_fields(7), |failure, _| failure.field(&long, &long));
                let status = Status::from(many);
                assert!(size(&status) <= MAX_STATUS, "{count}: {}", size(&status));
                let details = status.get_error_details();
                let named = details.bad_request().map_or(0, |bad| bad.field_violations.len());
                assert_eq!(details.error_info().unwrap().metadata[MORE_FIELDS], (count + 7 - named).to_string());
            }
        }
    }

    #[test]
    fn as_many_invalid_fields_are_named_as_fit() {
        let usual = (0..64).fold(Failure::new(Reason::INVALID_FIELDS, "64 are wrong"), |failure, at| {
            failure.field(format!("recipients.list[{at}].openid"), "must not be empty")
        });
        let details = Status::from(usual).get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations.len(), 64);
        assert!(!details.error_info().unwrap().metadata.contains_key(MORE_FIELDS));
    }

    #[test]
    fn pushback_gives_the_delay_or_forbids_useless_retries() {
        let pushback = |failure: Failure| {
            let status = Status::from(failure);
            status.metadata().get(PUSHBACK).map(|value| value.to_str().unwrap().to_owned())
        };
        let reason = |code| Reason { name: "REASON", code, retry_after: None };
        let after = |code, delay| Failure::new(reason(code), "a sentence").retry_after(delay);
        let (soon, midnight) = (Duration::from_micros(1_500_001), Duration::from_secs(3600));
        for code in [Code::Unavailable, Code::Aborted, Code::ResourceExhausted] {
            assert_eq!(pushback(after(code, soon)).as_deref(), Some("1501"));
            assert_eq!(pushback(after(code, midnight)).as_deref(), Some("-1"));
            assert_eq!(pushback(Failure::new(reason(code), "a sentence")), None);
        }
        assert_eq!(pushback(after(Code::FailedPrecondition, soon)).as_deref(), Some("-1"));
        let perhaps_done = after(Code::Unavailable, soon).perhaps_done();
        assert_eq!(pushback(perhaps_done.clone()).as_deref(), Some("-1"));
        assert!(Status::from(perhaps_done).get_error_details().retry_info().is_none());
        // The call was not begun.
        assert_eq!(pushback(Failure::overloaded().perhaps_done()).as_deref(), Some("500"));
    }

    #[test]
    fn a_caller_learns_nothing_of_the_inside_from_a_redis_error() {
        #[derive(Debug, thiserror::Error)]
        #[error("connection refused to 10.0.0.7")]
        struct Unreachable;
        impl Fault for Unreachable {
            fn kind(&self) -> FaultKind {
                FaultKind::Unavailable
            }
        }
        let failure = Failure::from(Unreachable);
        let status = Status::from(failure);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(!status.message().contains("10.0.0.7"));
    }
}
