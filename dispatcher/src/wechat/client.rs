//! HTTP calls to WeChat. The result contains the answer, or an error that says whether it is certain that nothing was
//! sent.

use std::sync::Arc;
use std::time::Instant;

use reqwest::{Method, Request, Url};
use server::telemetry::metrics::Histogram;
use server::telemetry::outage::Outages;
use tracing::Span;

use super::error::{Cause, ClientError, QuotaError, TokenError, Trouble};
use super::http::{Http, post};
use super::message::Delivery;
use super::reply::{FetchedToken, Quota, Reply};
use crate::app::{App, Secret};
use crate::metrics::WechatMetrics;
use crate::outages::WechatOutages;
use crate::spans;
use crate::token_source::{TokenEndpoint, TokenSource};

/// By delivery: the name of a send in traces, and its path. WeChat also uses the path as the name of the quota.
const SENDS: [(&str, &[&str]); 2] = [
    ("template/send", &["cgi-bin", "message", "wxopen", "template", "send"]),
    ("subscribe/send", &["cgi-bin", "message", "subscribe", "send"]),
];

/// The connections of one app to WeChat; clones share them.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// Whether calls without a parent span get a span.
    traced: bool,
}

struct Inner {
    http: Http,
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
        let http = Http::new(&app, &app.base_url, app.proxy.as_ref())?;
        let [template, subscribe] = SENDS.map(|(_, path)| endpoint(&app.base_url, path));
        let quota = endpoint(&app.base_url, &["cgi-bin", "openapi", "quota", "get"])?;
        let plain = matches!(app.token_source, TokenSource::WeChat { endpoint: TokenEndpoint::Plain, .. });
        let token = endpoint(&app.base_url, &["cgi-bin", if plain { "token" } else { "stable_token" }])?;
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

    pub(crate) fn metrics(&self) -> Option<&WechatMetrics> {
        self.inner.metrics.as_ref()
    }

    /// Calls `template/send` or `subscribe/send` once. The body is [`super::message::Message::body`].
    pub async fn send(&self, delivery: Delivery, token: &str, body: Vec<u8>) -> Reply {
        let (url, span) = (&self.inner.sends[delivery as usize], self.span(SENDS[delivery as usize].0, "POST"));
        let request = post(self.with_token(url, token), body);
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
        let traced = self.traced || !Span::current().is_none();
        let app = &self.inner.app;
        if traced { spans::call(&app.id, &app.base_url, api, method) } else { Span::none() }
    }

    /// Returns how much of the day's quota the app has used, by WeChat's count. A gateway may not support this call, so
    /// the caller must cope with an error. WeChat limits this call too: do not make it before each message.
    pub async fn quota(&self, delivery: Delivery, token: &str) -> Result<Quota, QuotaError> {
        // WeChat's own path, even if a gateway has the API under another path.
        let body = serde_json::json!({ "cgi_path": format!("/{}", SENDS[delivery as usize].1.join("/")) });
        let request = post(self.with_token(&self.inner.quota, token), body.to_string().into_bytes());
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

    /// Fetches a token from the configured endpoint, with the app's secret. `force_refresh` invalidates the current token
    /// immediately. Only `stable_token` supports it, and WeChat permits it 20 times a day, at least 30 seconds apart.
    pub async fn fetch_token(&self, force_refresh: bool) -> Result<FetchedToken, TokenError> {
        let TokenSource::WeChat { secret, endpoint } = &self.inner.app.token_source else {
            return Err(TokenError::Transient(Trouble::NoSecret));
        };
        let (api, method) = match endpoint {
            TokenEndpoint::Stable => ("stable_token", "POST"),
            TokenEndpoint::Plain => ("token", "GET"),
        };
        let span = self.span(api, method);
        let answer =
            self.call(self.token_request(secret, *endpoint, force_refresh), &span, |metrics| &metrics.token).await;
        let fetched = answer.map_err(TokenError::from).and_then(|body| FetchedToken::parse(&body));
        match &fetched {
            Err(TokenError::Refused { errcode, rid, .. }) => spans::errcode(&span, *errcode, rid),
            Err(TokenError::Transient(Trouble::WeChat(cause))) => spans::unanswered(&span, *cause),
            Ok(_) | Err(TokenError::Transient(_)) => {}
        }
        if let Some(metrics) = &self.inner.metrics {
            metrics.count_token(&fetched);
        }
        fetched
    }

    fn token_request(&self, secret: &Secret, endpoint: TokenEndpoint, force_refresh: bool) -> Request {
        let mut url = self.inner.token.clone();
        let (id, secret) = (self.inner.app.id.as_str(), secret.reveal());
        match endpoint {
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
        let answer = self.inner.http.exchange(request, span).await;
        if let Some(metrics) = &self.inner.metrics {
            histogram(metrics).observe(begun.elapsed().as_secs_f64());
        }
        answer
    }

    /// Adds the token, unless the calls of the app carry none.
    fn with_token(&self, endpoint: &Url, token: &str) -> Url {
        let mut url = endpoint.clone();
        if !matches!(self.inner.app.token_source, TokenSource::None) {
            url.query_pairs_mut().append_pair("access_token", token);
        }
        url
    }
}

fn endpoint(base: &Url, path: &[&str]) -> Result<Url, ClientError> {
    let mut url = base.clone();
    url.path_segments_mut().map_err(|()| ClientError::BaseUrl)?.pop_if_empty().extend(path);
    Ok(url)
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
