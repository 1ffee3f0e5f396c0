//! How errors look to a caller: a gRPC status with exactly one `google.rpc.ErrorInfo`, whose reason is made for programs,
//! and a sentence for people. Causes are for the log; a caller sees neither them nor any secret, credential or openid.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt as _};
use tracing::{error, warn};

use crate::store;

/// The domain of every reason.
pub const DOMAIN: &str = "formid";

/// What is wrong with an app_id that is well-formed, and none of those the service is set up for.
pub(crate) const UNKNOWN_APP: &str = "is not an app this service is set up for";

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
    retry_after: Option<Duration>,
    quota: Option<(String, String)>,
}

impl Failure {
    /// A failure with its stable reason, in capitals, and a sentence.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        let (metadata, fields) = (Vec::new(), Vec::new());
        Self(Box::new(Facts { code, reason, message, metadata, fields, retry_after: None, quota: None }))
    }

    /// Adds a fact for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.0.metadata.push((key, value.to_string()));
        self
    }

    /// Names a bad field and what is wrong with it.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, problem: impl Into<String>) -> Self {
        self.0.fields.push((name.into(), problem.into()));
        self
    }

    /// Tells when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Names a quota that is used up: whose, and how.
    #[must_use]
    pub fn quota(mut self, subject: impl Into<String>, description: impl Into<String>) -> Self {
        self.0.quota = Some((subject.into(), description.into()));
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

    /// There is no room for another call; those that are under way are served as fast as before.
    pub fn overloaded() -> Self {
        Self::new(Code::ResourceExhausted, "OVERLOADED", "this replica has all the calls it can serve; try again")
            .retry_after(Duration::from_millis(500))
    }

    /// Something that should not happen; the cause is in the log.
    pub fn internal() -> Self {
        Self::new(Code::Internal, "INTERNAL", "an error on the side of the service; its log has the cause")
    }
}

impl From<Failure> for Status {
    fn from(Failure(failure): Failure) -> Self {
        let mut details = ErrorDetails::new();
        let metadata: HashMap<_, _> =
            failure.metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        details.set_error_info(failure.reason, DOMAIN, metadata);
        if !failure.fields.is_empty() {
            let violations: Vec<_> =
                failure.fields.into_iter().map(|(field, problem)| FieldViolation::new(field, problem)).collect();
            details.set_bad_request(violations);
        }
        if let Some((subject, description)) = failure.quota {
            details.set_quota_failure(vec![QuotaViolation::new(subject, description)]);
        }
        if failure.retry_after.is_some() {
            details.set_retry_info(failure.retry_after);
        }
        Self::with_error_details(failure.code, failure.message, details)
    }
}

impl From<store::Error> for Failure {
    fn from(cause: store::Error) -> Self {
        match &cause {
            // A script that fails is a mistake of ours, which waiting does not mend.
            store::Error::Redis(error) if error.code() == Some("ERR") => {
                error!(error = %cause, "Redis refuses a command");
                Self::internal()
            }
            store::Error::Redis(_) | store::Error::Unavailable(_) => {
                warn!(error = %cause, "Redis failed");
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
    fn a_caller_learns_nothing_of_the_inside_from_a_redis_error() {
        let failure = Failure::from(store::Error::Unavailable("connection refused to 10.0.0.7".into()));
        let status = Status::from(failure);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(!status.message().contains("10.0.0.7"));
    }
}
