//! HTTP calls that carry a token or a secret.
//!
//! reqwest's errors print the URL that they failed on, so none of them leaves this file. They are converted to
//! [`Cause`], which cannot hold text from outside.
//!
//! Nothing here is retried. Only the caller knows whether a message may be sent twice, so reqwest's own retries are
//! off. Redirects are off, because they would carry the token to another host. The proxies of the environment are not
//! used: a proxy that was set for something else must not see tokens and messages. The proxy of the app is used for
//! https, through a tunnel (CONNECT), so it sees only the host name.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request, Response, Url};
use tracing::Span;

use super::error::{Cause, ClientError};
use crate::app::{App, Proxy};
use crate::spans;

/// Maximum length of an answer in bytes. WeChat's answers have less than a kilobyte.
const MAX_ANSWER: usize = 64 * 1024;

/// How long an idle connection is kept. This is shorter than servers keep theirs: if the server closes a connection
/// while a message is written to it, the message's outcome is unknown.
const IDLE: Duration = Duration::from_secs(15);

/// Maximum number of idle connections: about one second of sends at a usual latency.
const MAX_IDLE: usize = 1024;

/// Connections with the timeouts of an app.
pub(super) struct Http {
    client: reqwest::Client,
    proxied: bool,
}

impl Http {
    /// For calls to one server, by its URL. Opens no connection yet. https needs the machine's CA certificates.
    pub(super) fn new(app: &App, server: &Url, proxy: Option<&Proxy>) -> Result<Self, ClientError> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(app.connect_timeout)
            .timeout(app.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .http1_only()
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE);
        if let Some(proxy) = proxy {
            let proxy = reqwest::Proxy::https(proxy.reveal().clone()).map_err(|_| ClientError::Proxy)?;
            builder = builder.proxy(proxy);
        }
        let client = tls(builder, server.scheme() == "https")?.build();
        let client = client.map_err(|error| ClientError::Tls(error_chain(&error.without_url())))?;
        Ok(Self { client, proxied: proxy.is_some() })
    }

    /// Returns the body of a successful response. Only causes for which [`Cause::nothing_sent`] holds mean that nothing
    /// was sent.
    pub(super) async fn exchange(&self, request: Request, span: &Span) -> Result<Vec<u8>, Cause> {
        let response = self.client.execute(request).await.map_err(|error| self.cause_of(&error))?;
        let status = response.status();
        spans::status(span, status);
        if status.is_redirection() {
            return Err(Cause::Redirected(status.as_u16()));
        }
        if !status.is_success() {
            return Err(Cause::HttpStatus(status.as_u16()));
        }
        // From here on the request has been sent, even if the error looks like a failure to connect.
        body(response)
            .await
            .map_err(|error| if error.is_timeout() { Cause::Timeout } else { Cause::BrokenOff })?
            .ok_or(Cause::TooLarge)
    }

    fn cause_of(&self, error: &reqwest::Error) -> Cause {
        // is_connect: no connection was established, because of the route, the name resolution, the proxy or the TLS
        // handshake.
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => Cause::ConnectTimeout,
            (true, false) if self.proxied => proxy_cause(error),
            (true, false) => Cause::Connect,
            (false, true) => Cause::Timeout,
            (false, false) => Cause::BrokenOff,
        }
    }
}

/// Tells what the proxy did by the texts of hyper-util's `TunnelError`, because reqwest does not export its type. With
/// other texts, only the advice in the log would be less precise.
fn proxy_cause(error: &reqwest::Error) -> Cause {
    let chain = error_chain(error);
    let said = |text| chain.contains(text);
    if said("proxy authorization required") {
        Cause::ProxyAuth
    } else if said("failed to create underlying connection") {
        Cause::ProxyConnect
    } else if said("tunnel error") {
        Cause::ProxyTunnel
    } else {
        Cause::Connect
    }
}

async fn body(mut response: Response) -> reqwest::Result<Option<Vec<u8>>> {
    let length = response.content_length().unwrap_or(0);
    if length > MAX_ANSWER as u64 {
        return Ok(None);
    }
    let mut body = Vec::with_capacity(length as usize);
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

pub(super) fn post(url: Url, body: Vec<u8>) -> Request {
    let mut request = Request::new(Method::POST, url);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *request.body_mut() = Some(body.into());
    request
}

/// https is verified against the machine's CA certificates. http gets a TLS configuration without any trusted
/// certificate: reqwest always needs one, and its default fails on a machine without CA certificates.
fn tls(builder: reqwest::ClientBuilder, https: bool) -> Result<reqwest::ClientBuilder, ClientError> {
    let ring = rustls::crypto::ring::default_provider();
    if https {
        // Fails if there is a default provider already; then that one is used.
        let _ = ring.install_default();
        return Ok(builder.https_only(true));
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(ring))
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Tls(error.to_string()))?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Ok(builder.tls_backend_preconfigured(config))
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
