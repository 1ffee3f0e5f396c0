//! The reasons of errors, as a table: the name that callers decide by, the code, and when a retry makes sense.

use std::time::Duration;

use tonic::Code;

/// The reason of an error. Its name is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    pub(super) name: &'static str,
    pub(super) code: Code,
    /// When a retry makes sense, if that is always the same for this reason.
    pub(super) retry_after: Option<Duration>,
}

macro_rules! reasons {
    ($($name:ident $code:ident $(after $millis:literal ms)?;)*) => {
        impl Reason {
            $(pub const $name: Self = Self {
                name: stringify!($name),
                code: Code::$code,
                retry_after: [$(Some(Duration::from_millis($millis)),)? None][0],
            };)*

            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

reasons! {
    INVALID_FIELDS InvalidArgument;
    REQUEST_ID_REUSED InvalidArgument;
    UNKNOWN_APP NotFound;
    BAD_SIGNATURE PermissionDenied;
    NO_CREDENTIAL FailedPrecondition;
    CREDENTIALS_DEAD FailedPrecondition;
    MESSAGE_REFUSED FailedPrecondition;
    USER_REFUSED FailedPrecondition;
    APP_STOPPED FailedPrecondition;
    TEMPLATE_STOPPED FailedPrecondition;
    TOKEN_REFUSED FailedPrecondition;
    QUOTA_REACHED ResourceExhausted;
    REQUEST_UNDER_WAY Aborted;
    USER_BUSY Unavailable;
    IN_DOUBT Unavailable after 1000 ms;
    WECHAT_BUSY Unavailable after 1000 ms;
    WECHAT_UNREACHABLE Unavailable after 1000 ms;
    TOKEN_UNAVAILABLE Unavailable after 1000 ms;
    REDIS_UNAVAILABLE Unavailable after 1000 ms;
    SHUTTING_DOWN Unavailable after 100 ms;
    DEADLINE_EXCEEDED DeadlineExceeded;
    BROADCAST_NOT_FOUND NotFound;
    WRONG_STATE FailedPrecondition;
    EMPTY_AUDIENCE FailedPrecondition;
    NOTHING_LIVES_THEN FailedPrecondition;
    INTERNAL Internal;
    UNAUTHENTICATED Unauthenticated;
    NOT_PERMITTED PermissionDenied;
    RATE_LIMITED ResourceExhausted;
    OVERLOADED ResourceExhausted after 500 ms;
    MESSAGE_TOO_LARGE ResourceExhausted;
    MALFORMED_MESSAGE InvalidArgument;
    UNIMPLEMENTED Unimplemented;
}

impl Reason {
    pub fn name(self) -> &'static str {
        self.name
    }

    pub fn code(self) -> Code {
        self.code
    }
}
