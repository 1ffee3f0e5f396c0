//! Errors of calls to WeChat, and of obtaining an access token. None of them quotes text from WeChat or from a gateway
//! in its place: such text may contain a secret.

use std::net::IpAddr;

use crate::wechat::token_codes;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The apps file does not accept such a URL.
    #[error("the base URL of the app cannot be extended with a path")]
    BaseUrl,
    /// The apps file does not accept such a URL.
    #[error("the URL of the proxy cannot be used")]
    Proxy,
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
    #[error("the proxy wants another user or password than the apps file has (HTTP status 407)")]
    ProxyAuth,
    #[error("no connection to the proxy")]
    ProxyConnect,
    /// The proxy answered CONNECT with another status than 200 or 407, or not at all.
    #[error("the proxy opens no tunnel to WeChat (CONNECT): it does not permit it, or cannot reach WeChat")]
    ProxyTunnel,
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

impl Cause {
    /// Returns true if it is certain that no byte of the request was sent.
    pub fn nothing_sent(self) -> bool {
        use Cause::{Connect, ConnectTimeout, ProxyAuth, ProxyConnect, ProxyTunnel};
        matches!(self, Connect | ConnectTimeout | ProxyAuth | ProxyConnect | ProxyTunnel)
    }

    /// What a token server did. It is called directly, so there is no proxy.
    fn of_token_server(self) -> String {
        match self {
            Self::Connect | Self::ProxyAuth | Self::ProxyConnect | Self::ProxyTunnel => "there is no connection".into(),
            Self::ConnectTimeout => "there is no connection in time".into(),
            Self::Timeout => "there is no answer in time".into(),
            Self::BrokenOff => "the connection broke off".into(),
            Self::HttpStatus(status) => format!("the answer has the HTTP status {status}"),
            Self::Redirected(status) => {
                format!("the answer is a redirect (HTTP status {status}), which is not followed")
            }
            Self::NotJson => "the answer is not a JSON object".into(),
            Self::TooLarge => "the answer is longer than the limit".into(),
            Self::Refused(errcode) => format!("the answer has the errcode {errcode}"),
        }
    }
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
    /// The app has another source of tokens.
    #[error("the app has no secret")]
    NoSecret,
    #[error("{0}: {1}")]
    Source(SourceKey, SourceFault),
    #[error("the service is stopping")]
    Stopping,
}

/// The key of the apps file that names a source of tokens other than WeChat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SourceKey {
    #[error("token_url")]
    TokenUrl,
    #[error("token_file")]
    TokenFile,
    #[error("token = \"none\"")]
    None,
}

impl SourceKey {
    pub(crate) fn fails(self, fault: SourceFault) -> TokenError {
        TokenError::Transient(Trouble::Source(self, fault))
    }
}

/// Why a source gives no usable token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SourceFault {
    #[error("{}", .0.of_token_server())]
    Call(Cause),
    #[error("the file of token_headers_file cannot be read or is invalid")]
    Headers,
    #[error("the file cannot be read ({0})")]
    Unreadable(std::io::ErrorKind),
    #[error("it is not a JSON object")]
    NotJson,
    #[error("the answer has the errcode {0}")]
    Errcode(i32),
    /// A missing token, or one that cannot be a token.
    #[error("there is no token: expected visible ASCII characters, in JSON at token_path")]
    NoToken,
    #[error("expires_in, beside the token, is not a number of seconds")]
    NoLife,
    #[error("the token has expired: its expires_in is not more than 0")]
    Expired,
    #[error("the source still gives the token that WeChat rejected")]
    Rejected,
    #[error("WeChat wants an access token: without one, calls work only in WeChat's cloud run")]
    TokenWanted,
}

impl From<Cause> for TokenError {
    fn from(cause: Cause) -> Self {
        Self::Transient(Trouble::WeChat(cause))
    }
}
