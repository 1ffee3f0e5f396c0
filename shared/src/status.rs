//! How errors look to a caller: a gRPC status with exactly one `google.rpc.ErrorInfo`, whose reason is made for programs,
//! and a sentence for people. Causes are for the log; a caller sees neither them nor any secret, credential or openid.

use std::collections::HashMap;
use std::time::Duration;

use http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt as _};
use tracing::{debug, error};

use crate::store;

/// The domain of every reason.
pub const DOMAIN: &str = "formid";

/// What is wrong with an app_id that is well-formed, and none of those the service is set up for.
pub(crate) const UNKNOWN_APP: &str = "is not an app this service is set up for";

/// Tells gRPC libraries that repeat calls by a policy when to do so (gRFC A6): after so many milliseconds, or, below 0, not
/// at all. They know nothing of RetryInfo, which says the same to programs.
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The longest wait that a library is asked for. It waits with the call open, so one that ends later than the call's
/// deadline would only hide the reason from the caller.
const LONGEST_PUSHBACK: Duration = Duration::from_secs(30);

/// The most that a status takes up of the headers that end a call, in bytes, as HTTP/2 counts them. Clients of gRPC's own
/// libraries take 8 KiB of headers, unless they are set otherwise, and see another error where there are more.
pub const MAX_STATUS: usize = 7 * 1024;

/// What HTTP/2 counts for each header besides its name and value.
const HEADER: usize = 32;

/// The most bad fields that are named.
pub(crate) const MAX_FIELDS: usize = 64;

/// The longest sentence, in bytes. It travels twice, and with three bytes for each that is not ASCII.
const MAX_MESSAGE: usize = 1024;

/// The longest value of a fact, or name of a field or sentence about it, in bytes.
const MAX_TEXT: usize = 256;

/// Tells programs how many bad fields there are that BadRequest does not name.
pub const MORE_FIELDS: &str = "more_fields";

/// An error on its way to a caller. Boxed, since it is the rare half of nearly every result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(Box<Facts>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: Vec<(&'static str, String)>,
    fields: Vec<(String, String)>,
    more_fields: usize,
    retry_after: Option<Duration>,
    perhaps_done: bool,
    quota: Option<(String, String)>,
}

impl Failure {
    /// A failure with its stable reason, in capitals, and a sentence.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        let message = clipped(message.into(), MAX_MESSAGE);
        let (metadata, fields, more_fields) = (Vec::new(), Vec::new(), 0);
        let (retry_after, perhaps_done, quota) = (None, false, None);
        Self(Box::new(Facts { code, reason, message, metadata, fields, more_fields, retry_after, perhaps_done, quota }))
    }

    /// Adds a fact for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.0.metadata.push((key, clipped(value.to_string(), MAX_TEXT)));
        self
    }

    /// Names a bad field and what is wrong with it. As many are sent as fit into a status; the others are counted.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, problem: impl Into<String>) -> Self {
        self.0.fields.push((clipped(name.into(), MAX_TEXT), clipped(problem.into(), MAX_TEXT)));
        self
    }

    /// There are so many bad fields besides those that are named.
    #[must_use]
    pub fn more_fields(mut self, count: usize) -> Self {
        self.0.more_fields += count;
        self
    }

    /// Tells when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Where the service could not come to an end, part of the call may be done, and a repeat would do it again: of a call
    /// that has nothing to be known again by. Then nothing says when to repeat it, and libraries are told not to.
    #[must_use]
    pub fn perhaps_done(mut self) -> Self {
        if self.0.code == Code::Unavailable {
            self.0.perhaps_done = true;
            self.0.retry_after = None;
        }
        self
    }

    /// Names a quota that is used up: whose, and how.
    #[must_use]
    pub fn quota(mut self, subject: impl Into<String>, description: impl Into<String>) -> Self {
        self.0.quota = Some((clipped(subject.into(), MAX_TEXT), clipped(description.into(), MAX_TEXT)));
        self
    }

    /// The stable reason.
    pub fn reason(&self) -> &'static str {
        self.0.reason
    }

    /// WeChat's code, where one led to this.
    pub fn errcode(&self) -> Option<i32> {
        let (_, errcode) = self.0.metadata.iter().find(|(key, _)| *key == "errcode")?;
        errcode.parse().ok()
    }

    /// The app is none of those the service is set up for.
    pub fn unknown_app() -> Self {
        Self::new(Code::NotFound, "UNKNOWN_APP", format!("app_id {UNKNOWN_APP}")).field("app_id", UNKNOWN_APP)
    }

    /// The service is stopping; another replica will do.
    pub fn shutting_down() -> Self {
        Self::new(Code::Unavailable, "SHUTTING_DOWN", "this replica is shutting down; try again")
            .retry_after(Duration::from_millis(100))
    }

    /// There is no room for another call, or no memory for its message; those in progress are served as fast as before.
    pub fn overloaded() -> Self {
        Self::new(Code::ResourceExhausted, "OVERLOADED", "this replica has all the calls it can serve; try again")
            .retry_after(Duration::from_millis(500))
    }

    /// The message is over the limit, by its size or by what its lists would take up.
    pub fn too_large() -> Self {
        let sentence = "the message is larger than this service takes in; send less at a time";
        Self::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", sentence)
    }

    /// The bytes are not a message of the method's request type.
    pub fn malformed() -> Self {
        Self::new(Code::InvalidArgument, "MALFORMED_MESSAGE", "the bytes are not a message that this method takes")
    }

    /// The caller has as many streams open as are left for the others.
    pub fn share_taken() -> Self {
        let sentence = "this caller has its share of the streams open; close one, or try again";
        Self::new(Code::ResourceExhausted, "OVERLOADED", sentence).retry_after(Duration::from_millis(500))
    }

    /// Something that should not happen; the cause is in the log.
    pub fn internal() -> Self {
        Self::new(Code::Internal, "INTERNAL", "an error on the side of the service; its log has the cause")
    }
}

impl Facts {
    /// What a library that repeats by itself is told. Nothing where no policy repeats the code anyway.
    fn pushback(&self) -> Option<i64> {
        const NEVER: i64 = -1;
        if self.perhaps_done {
            return Some(NEVER);
        }
        let delay = self.retry_after?;
        // Of other codes RetryInfo says when somebody who mended something need not wait any more.
        let passes = matches!(self.code, Code::Unavailable | Code::Aborted | Code::ResourceExhausted);
        let soon = (passes && delay <= LONGEST_PUSHBACK).then(|| delay.as_micros().div_ceil(1000));
        Some(soon.and_then(|soon| i64::try_from(soon).ok()).unwrap_or(NEVER))
    }

    /// The status, which names the first `named` of the bad fields.
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
        details.set_error_info(self.reason, DOMAIN, facts);
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
        Status::with_error_details_and_metadata(self.code, self.message.clone(), details, metadata)
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

/// What a status takes up of the headers that end a call.
fn size(status: &Status) -> usize {
    let mut headers = HeaderMap::new();
    // What cannot be a header is not sent.
    let _ = status.add_header(&mut headers);
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER).sum()
}

/// A text that is cut where it is longer than `most` bytes.
fn clipped(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
    }
    text
}

impl From<store::Error> for Failure {
    fn from(cause: store::Error) -> Self {
        match &cause {
            // A script that fails is a mistake of ours, which waiting does not mend.
            store::Error::Redis(_) if cause.is_lasting() => {
                error!(error = %cause, "Redis refuses a command");
                Self::internal()
            }
            // The store logs it, once for each key.
            store::Error::WrongType { .. } => Self::internal(),
            store::Error::Redis(_) | store::Error::Unavailable(_) => {
                // The store logs that Redis fails, once for all calls.
                debug!(error = %cause, "a call fails for lack of Redis");
                Self::new(Code::Unavailable, "REDIS_UNAVAILABLE", "Redis does not answer; try again")
                    .retry_after(Duration::from_secs(1))
            }
            store::Error::Corrupt(_) | store::Error::BucketCount { .. } => {
                error!(error = %cause, "unusable data in Redis");
                Self::internal()
            }
        }
    }
}

/// The code that a call ended with, if it stands in these headers or trailers.
pub(crate) fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_one_error_info_and_every_bad_field() {
        let failure = Failure::new(Code::InvalidArgument, "INVALID_FIELDS", "two fields are wrong")
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
    fn a_status_is_never_larger_than_clients_take() {
        // A sentence that grows threefold on its way, and one that does not.
        for letter in ["字", "x"] {
            let long = letter.repeat(2000);
            let failure = Failure::new(Code::InvalidArgument, "INVALID_FIELDS", &long)
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
    fn as_many_bad_fields_are_named_as_fit() {
        let usual = (0..64)
            .fold(Failure::new(Code::InvalidArgument, "INVALID_FIELDS", "64 are wrong"), |failure, at| {
                failure.field(format!("recipients.list[{at}].openid"), "must not be empty")
            });
        let details = Status::from(usual).get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations.len(), 64);
        assert!(!details.error_info().unwrap().metadata.contains_key(MORE_FIELDS));
    }

    #[test]
    fn a_library_that_repeats_is_told_when_and_not_to_where_it_would_do_no_good() {
        let pushback = |failure: Failure| {
            let status = Status::from(failure);
            status.metadata().get(PUSHBACK).map(|value| value.to_str().unwrap().to_owned())
        };
        let after = |code, delay| Failure::new(code, "REASON", "a sentence").retry_after(delay);
        let (soon, midnight) = (Duration::from_micros(1_500_001), Duration::from_secs(3600));
        for code in [Code::Unavailable, Code::Aborted, Code::ResourceExhausted] {
            assert_eq!(pushback(after(code, soon)).as_deref(), Some("1501"));
            assert_eq!(pushback(after(code, midnight)).as_deref(), Some("-1"));
            assert_eq!(pushback(Failure::new(code, "REASON", "a sentence")), None);
        }
        assert_eq!(pushback(after(Code::FailedPrecondition, soon)).as_deref(), Some("-1"));
        let perhaps_done = after(Code::Unavailable, soon).perhaps_done();
        assert_eq!(pushback(perhaps_done.clone()).as_deref(), Some("-1"));
        assert!(Status::from(perhaps_done).get_error_details().retry_info().is_none());
        // Nothing was begun.
        assert_eq!(pushback(Failure::overloaded().perhaps_done()).as_deref(), Some("500"));
    }

    #[test]
    fn a_caller_learns_nothing_of_the_inside_from_a_redis_error() {
        let failure = Failure::from(store::Error::Unavailable("connection refused to 10.0.0.7".into()));
        let status = Status::from(failure);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(!status.message().contains("10.0.0.7"));
    }
}
