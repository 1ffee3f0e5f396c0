//! HTTP calls to WeChat. The result contains the answer, or an error that says whether it is certain that nothing was
//! sent.
//!
//! This is the only module that holds a URL with a token or a secret. reqwest's errors print the URL that they failed
//! on, so none of them leaves this file. They are converted to [`Cause`], which cannot hold text from outside.
//!
//! Nothing here is retried. Only the caller knows whether a message may be sent twice, so reqwest's own retries are
//! off. Redirects are off, because they would carry the token to another host. The proxies of the environment are not
//! used: a proxy that was set for something else must not see tokens and messages. An app that needs a gateway names it
//! as its base URL.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request, Response, Url};
use server::telemetry::metrics::Histogram;
use server::telemetry::outage::Outages;
use tracing::Span;

use super::error::{Cause, ClientError, QuotaError, TokenError, Trouble};
use super::message::Delivery;
use super::reply::{FetchedToken, Quota, Reply};
use crate::app::{App, TokenEndpoint};
use crate::metrics::WechatMetrics;
use crate::outages::WechatOutages;
use crate::spans;

/// By delivery: the name of a send in traces, and its path. WeChat also uses the path as the name of the quota.
const SENDS: [(&str, &[&str]); 2] = [
    ("template/send", &["cgi-bin", "message", "wxopen", "template", "send"]),
    ("subscribe/send", &["cgi-bin", "message", "subscribe", "send"]),
];

/// Maximum length of an answer in bytes. WeChat's answers have less than a kilobyte.
const MAX_ANSWER: usize = 64 * 1024;

/// How long an idle connection is kept. This is shorter than servers keep theirs: if the server closes a connection
/// while a message is written to it, the message's outcome is unknown.
const IDLE: Duration = Duration::from_secs(15);

/// Maximum number of idle connections: about one second of sends at a usual latency.
const MAX_IDLE: usize = 1024;

/// The connections of one app to WeChat; clones share them.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// Whether calls without a parent span get a span.
    traced: bool,
}

struct Inner {
    http: reqwest::Client,
    app: Arc<App>,
    /// By delivery.
    sends: [Url; 2],
    quota: Url,
    token: Url,
    metrics: Option<WechatMetrics>,
    outages: WechatOutages,
}

impl Client {
    /// Opens no connection yet. https needs the machine's CA certificates.
    pub fn new(app: Arc<App>, metrics: Option<WechatMetrics>) -> Result<Self, ClientError> {
        let builder = reqwest::Client::builder()
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
        let http = tls(builder, &app)?.build().map_err(|error| ClientError::Tls(error_chain(&error.without_url())))?;
        let [template, subscribe] = SENDS.map(|(_, path)| endpoint(&app.base_url, path));
        let quota = endpoint(&app.base_url, &["cgi-bin", "openapi", "quota", "get"])?;
        let token = match app.token_endpoint {
            TokenEndpoint::Stable => endpoint(&app.base_url, &["cgi-bin", "stable_token"])?,
            TokenEndpoint::Plain => endpoint(&app.base_url, &["cgi-bin", "token"])?,
        };
        let outages = metrics.as_ref().map(|metrics| metrics.outages.clone());
        let outages = outages.unwrap_or_else(|| WechatOutages::new(&app.id, &Outages::default()));
        let inner = Inner { http, app, sends: [template?, subscribe?], quota, token, metrics, outages };
        Ok(Self { inner: Arc::new(inner), traced: true })
    }

    /// A client whose calls get a span only inside another span. Broadcasts use it: otherwise each message would have a
    /// span.
    #[must_use]
    pub fn untraced(self) -> Self {
        Self { traced: false, ..self }
    }

    pub fn app(&self) -> &Arc<App> {
        &self.inner.app
    }

    pub(crate) fn outages(&self) -> &WechatOutages {
        &self.inner.outages
    }

    /// Calls `template/send` or `subscribe/send` once. The body is [`super::message::Message::body`].
    pub async fn send(&self, delivery: Delivery, token: &str, body: Vec<u8>) -> Reply {
        let (url, span) = (&self.inner.sends[delivery as usize], self.span(SENDS[delivery as usize].0, "POST"));
        let request = post(with_token(url, token), body);
        let reply = Reply::parse(self.call(request, &span, |metrics| &metrics.sends[delivery as usize]).await);
        match &reply {
            Reply::Answered { errcode, rid, .. } => {
                spans::errcode(&span, *errcode, rid);
                self.inner.outages.sends.succeeded();
            }
            Reply::NotSent(cause) | Reply::Unanswered(cause) => {
                spans::unanswered(&span, *cause);
                self.inner.outages.sends.failed(cause);
            }
        }
        reply
    }

    fn span(&self, api: &'static str, method: &'static str) -> Span {
        if self.traced || !Span::current().is_none() { spans::call(&self.inner.app, api, method) } else { Span::none() }
    }

    /// Returns how much of the day's quota the app has used, by WeChat's count. A gateway may not support this call, so
    /// the caller must cope with an error. WeChat limits this call too: do not make it before each message.
    pub async fn quota(&self, delivery: Delivery, token: &str) -> Result<Quota, QuotaError> {
        // WeChat's own path, even if a gateway has the API under another path.
        let body = serde_json::json!({ "cgi_path": format!("/{}", SENDS[delivery as usize].1.join("/")) });
        let request = post(with_token(&self.inner.quota, token), body.to_string().into_bytes());
        let span = self.span("quota/get", "POST");
        let answer = self.call(request, &span, |metrics| &metrics.quota).await;
        let quota = answer.map_err(QuotaError::from).and_then(|body| Quota::parse(&body));
        match &quota {
            Ok(_) => {}
            Err(QuotaError::Refused { errcode, rid }) => spans::errcode(&span, *errcode, rid),
            Err(QuotaError::Unanswered(cause)) => spans::unanswered(&span, *cause),
        }
        quota
    }

    /// Fetches a token from the configured endpoint. `force_refresh` invalidates the current token immediately. Only
    /// `stable_token` supports it, and WeChat permits it 20 times a day, at least 30 seconds apart.
    pub async fn fetch_token(&self, force_refresh: bool) -> Result<FetchedToken, TokenError> {
        let (api, method) = match self.inner.app.token_endpoint {
            TokenEndpoint::Stable => ("stable_token", "POST"),
            TokenEndpoint::Plain => ("token", "GET"),
        };
        let span = self.span(api, method);
        let answer = self.call(self.token_request(force_refresh), &span, |metrics| &metrics.token).await;
        let fetched = answer.map_err(TokenError::from).and_then(|body| FetchedToken::parse(&body));
        match &fetched {
            Err(TokenError::Refused { errcode, rid, .. }) => spans::errcode(&span, *errcode, rid),
            Err(TokenError::Transient(Trouble::WeChat(cause))) => spans::unanswered(&span, *cause),
            Ok(_) | Err(TokenError::Transient(_)) => {}
        }
        if let Some(metrics) = &self.inner.metrics {
            match &fetched {
                Ok(_) => &metrics.tokens_fetched,
                Err(TokenError::Refused { .. }) => &metrics.tokens_refused,
                Err(TokenError::Transient(_)) => &metrics.tokens_failed,
            }
            .inc();
        }
        fetched
    }

    fn token_request(&self, force_refresh: bool) -> Request {
        let Inner { app, token, .. } = &*self.inner;
        let mut url = token.clone();
        let (id, secret) = (app.id.as_str(), app.secret.reveal());
        match app.token_endpoint {
            TokenEndpoint::Stable => {
                let body = serde_json::json!({
                    "grant_type": "client_credential", "appid": id, "secret": secret, "force_refresh": force_refresh,
                });
                post(url, body.to_string().into_bytes())
            }
            TokenEndpoint::Plain => {
                let mut query = url.query_pairs_mut();
                query
                    .append_pair("grant_type", "client_credential")
                    .append_pair("appid", id)
                    .append_pair("secret", secret);
                drop(query);
                Request::new(Method::GET, url)
            }
        }
    }

    /// Returns the body of a successful response. `histogram` gets the duration.
    async fn call(
        &self,
        request: Request,
        span: &Span,
        histogram: impl FnOnce(&WechatMetrics) -> &Histogram,
    ) -> Result<Vec<u8>, Cause> {
        let begun = Instant::now();
        let answer = self.exchange(request, span).await;
        if let Some(metrics) = &self.inner.metrics {
            histogram(metrics).observe(begun.elapsed().as_secs_f64());
        }
        answer
    }

    /// Only the two connect causes mean that nothing was sent.
    async fn exchange(&self, request: Request, span: &Span) -> Result<Vec<u8>, Cause> {
        let response = self.inner.http.execute(request).await.map_err(|error| cause_of(&error))?;
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

fn cause_of(error: &reqwest::Error) -> Cause {
    // is_connect: no connection was established, because of the route, the name resolution or the TLS handshake.
    match (error.is_connect(), error.is_timeout()) {
        (true, true) => Cause::ConnectTimeout,
        (true, false) => Cause::Connect,
        (false, true) => Cause::Timeout,
        (false, false) => Cause::BrokenOff,
    }
}

fn post(url: Url, body: Vec<u8>) -> Request {
    let mut request = Request::new(Method::POST, url);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *request.body_mut() = Some(body.into());
    request
}

fn with_token(endpoint: &Url, token: &str) -> Url {
    let mut url = endpoint.clone();
    url.query_pairs_mut().append_pair("access_token", token);
    url
}

fn endpoint(base: &Url, path: &[&str]) -> Result<Url, ClientError> {
    let mut url = base.clone();
    url.path_segments_mut().map_err(|()| ClientError::BaseUrl)?.pop_if_empty().extend(path);
    Ok(url)
}

/// https is verified against the machine's CA certificates. http gets a TLS configuration without any trusted
/// certificate: reqwest always needs one, and its default fails on a machine without CA certificates.
fn tls(builder: reqwest::ClientBuilder, app: &App) -> Result<reqwest::ClientBuilder, ClientError> {
    let ring = rustls::crypto::ring::default_provider();
    if app.base_url.scheme() == "https" {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_appended_to_any_base_url() {
        for (base, expected) in [
            ("https://api.weixin.qq.com", "https://api.weixin.qq.com/cgi-bin/token"),
            ("http://localhost:1/", "http://localhost:1/cgi-bin/token"),
            ("http://gateway/wechat", "http://gateway/wechat/cgi-bin/token"),
            ("http://gateway/wechat/", "http://gateway/wechat/cgi-bin/token"),
        ] {
            assert_eq!(endpoint(&Url::parse(base).unwrap(), &["cgi-bin", "token"]).unwrap().as_str(), expected);
        }
    }
}
