//! Errors of calls to WeChat, and of obtaining an access token. None of them quotes text from WeChat or from a gateway
//! in its place: such text may contain a secret.

use std::net::IpAddr;

use crate::wechat::token_codes;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The apps file does not accept such a URL.
    #[error("the base URL of the app cannot be extended with a path")]
    BaseUrl,
    /// Most often because the machine has no CA certificates.
    #[error("TLS cannot be set up; are CA certificates installed? ({0})")]
    Tls(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// No connection: refused, unknown host, unreachable, or no TLS.
    #[error("no connection to WeChat")]
    Connect,
    #[error("no connection to WeChat in time")]
    ConnectTimeout,
    #[error("no answer from WeChat in time")]
    Timeout,
    #[error("the connection to WeChat broke off")]
    BrokenOff,
    #[error("WeChat answered with the HTTP status {0}")]
    HttpStatus(u16),
    #[error("WeChat answered with a redirect (HTTP status {0}), which is not followed")]
    Redirected(u16),
    /// The body is not a JSON object with the required fields: an integer errcode, a token, or a quota.
    #[error("WeChat's answer is not the JSON that was expected")]
    NotJson,
    #[error("WeChat's answer is longer than the limit")]
    TooLarge,
    /// The token endpoint answered with a code that may be temporary.
    #[error("WeChat gives no access token for now (errcode {code}: {})", token_codes::row_of(*.0).sentence, code = .0)]
    Refused(i32),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// WeChat answered with an errcode. The codes for the token and for a busy WeChat mean the same as for a send, see
    /// [`crate::wechat::errcode`]. 48001 (not permitted), 76021 (unknown path) and 76022 (wrong kind of account) mean
    /// that the quota is not available at all.
    #[error("WeChat does not report the quota (errcode {errcode})")]
    Refused {
        errcode: i32,
        /// Id of the call (rid), which WeChat's support asks for; empty if WeChat gave none.
        rid: String,
    },
    /// There is no usable answer. A gateway that does not know the path usually answers with an HTTP status.
    #[error(transparent)]
    Unanswered(#[from] Cause),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// May be temporary. Repeated requests within a short time are answered from memory.
    #[error("no access token for now: {0}")]
    Transient(Trouble),
    /// An operator has to change something first, or the errcode is unknown. WeChat is called again only every few
    /// minutes.
    #[error("WeChat refuses an access token (errcode {errcode}): {sentence}{}", seen(*.address))]
    Refused {
        errcode: i32,
        rid: String,
        sentence: &'static str,
        /// The address that WeChat saw, if the refusal is about this address.
        address: Option<IpAddr>,
    },
}

/// The end of a sentence about an address that WeChat refuses.
pub(crate) fn seen(address: Option<IpAddr>) -> String {
    address.map(|address| format!("; WeChat saw {address}")).unwrap_or_default()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("{0}")]
    WeChat(Cause),
    #[error("another replica is fetching one and has not finished in time")]
    Locked,
    #[error("Redis does not answer, and fetching a token without it would invalidate the token of the other replicas")]
    Store,
    /// WeChat returns the same token that it rejects, and another forced refresh is not permitted yet.
    #[error("WeChat returned a token again that it rejected before")]
    SameAgain,
    #[error("WeChat rejects tokens soon after it returned them, one after the other")]
    Dying,
    #[error("the service is stopping")]
    Stopping,
}

impl From<Cause> for TokenError {
    fn from(cause: Cause) -> Self {
        Self::Transient(Trouble::WeChat(cause))
    }
}
