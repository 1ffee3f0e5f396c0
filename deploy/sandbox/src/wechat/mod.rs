//! WeChat's endpoints. Each is a route and a [`Call`]. The two that send share one.

mod quota;
mod send;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use rand::RngExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::answer::{self, No, code};
use crate::api::Api;
use crate::app::App;
use crate::faults::Fault;
use crate::rules::Facts;
use crate::rules::{Endpoint, FaultKind};
use crate::tokens::Token;
use crate::wire::Wire;
use crate::{Sandbox, Settings, clock};

const GRANT_TYPE: &str = "client_credential";

type MaybeWire = Option<Extension<ConnectInfo<Wire>>>;

pub(crate) fn routes() -> Router<Sandbox> {
    Router::new()
        .route("/cgi-bin/token", get(plain_token).fallback(|| refuse(code::GET_REQUIRED)))
        .route("/cgi-bin/stable_token", post(stable_token).fallback(|| refuse(code::POST_REQUIRED)))
        .route("/cgi-bin/openapi/quota/get", post(quota::quota).fallback(|| refuse(code::POST_REQUIRED)))
        .route("/cgi-bin/clear_quota", post(quota::clear).fallback(|| refuse(code::POST_REQUIRED)))
        .route(Api::Template.path(), post(send::template).fallback(|| refuse(code::POST_REQUIRED)))
        .route(Api::Subscribe.path(), post(send::subscribe).fallback(|| refuse(code::POST_REQUIRED)))
        .fallback(nowhere)
}

async fn refuse(code: i32) -> Response {
    answer::refusal(&No::code(code))
}

async fn nowhere(uri: Uri) -> Response {
    if uri.path().starts_with("/cgi-bin/") {
        return answer::refusal(&No::code(code::NO_SUCH_URL));
    }
    StatusCode::NOT_FOUND.into_response()
}

/// A parsed call. It is either processed and answered, or recorded as not processed.
trait Call {
    fn facts(&self) -> Facts<'_>;
    fn app(&self) -> Option<&App>;
    /// Decides, records the result, and answers.
    fn process(self, sandbox: &Sandbox) -> Response;
    /// Records a call that a fault ended: with this errcode, or with no answer from WeChat.
    fn skip(&self, sandbox: &Sandbox, answered: Option<i32>);
    /// Takes a call whose message WeChat reviews: it is processed later. Other calls are skipped.
    fn review(self, sandbox: &Sandbox)
    where
        Self: Sized,
    {
        self.skip(sandbox, Some(code::IN_REVIEW));
    }
}

async fn run(sandbox: &Sandbox, wire: MaybeWire, call: impl Call) -> Response {
    match sandbox.fault_rules().pick(&call.facts()) {
        None => call.process(sandbox),
        Some(fault) => misbehave(sandbox, wire, call, fault).await,
    }
}

async fn misbehave(sandbox: &Sandbox, wire: MaybeWire, call: impl Call, fault: Fault) -> Response {
    tracing::debug!(fault = fault.name, "injecting a fault");
    sandbox.note(call.app(), |book| book.fault(&fault.name));
    let answer = if fault.kind.processes() {
        call.process(sandbox)
    } else {
        match (fault.kind, fault.errcode) {
            (FaultKind::Answer, code::IN_REVIEW) => call.review(sandbox),
            (FaultKind::Answer, errcode) => call.skip(sandbox, Some(errcode)),
            _ => call.skip(sandbox, None),
        }
        answer::refusal(&No::with(fault.errcode, fault.detail))
    };
    match fault.kind {
        FaultKind::Answer => answer,
        FaultKind::Http500Before | FaultKind::Http500After => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        FaultKind::NotJsonBefore | FaultKind::NotJsonAfter => Html("<html>be right back</html>").into_response(),
        FaultKind::Redirect => (StatusCode::FOUND, [(header::LOCATION, fault.location)]).into_response(),
        FaultKind::HangAfter => {
            tokio::time::sleep(Duration::from_millis(fault.hang_ms)).await;
            answer
        }
        FaultKind::HangBefore => {
            tokio::time::sleep(Duration::from_millis(fault.hang_ms)).await;
            break_off(wire, Wire::cut, answer)
        }
        FaultKind::CutBefore | FaultKind::CutAfter => break_off(wire, Wire::cut, answer),
        FaultKind::ResetAfter => break_off(wire, Wire::reset, answer),
        FaultKind::CutMid => break_off(wire, Wire::cut_mid, answer),
    }
}

/// Makes the connection break while it writes the answer. The caller sees the answer in part or not at all.
fn break_off(wire: MaybeWire, how: impl FnOnce(&Wire), answer: Response) -> Response {
    match wire {
        Some(Extension(ConnectInfo(wire))) => {
            how(&wire);
            answer
        }
        None => (StatusCode::INTERNAL_SERVER_ERROR, "this connection cannot be cut").into_response(),
    }
}

async fn wait(settings: &Settings) {
    let jitter = if settings.jitter_ms == 0 { 0 } else { rand::rng().random_range(0..=settings.jitter_ms) };
    let ms = settings.latency_ms.saturating_add(jitter);
    if ms > 0 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

#[derive(Default, Deserialize)]
struct TokenQuery {
    access_token: Option<String>,
}

fn token_of(query: Result<Query<TokenQuery>, QueryRejection>) -> Option<String> {
    query.map(|Query(query)| query.access_token).unwrap_or_default()
}

/// Parses a body that must be an object. serde would also accept an array of the right values.
fn object<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, No> {
    let body = body.ok().filter(|body| body.trim_ascii_start().starts_with(b"{"));
    body.and_then(|body| serde_json::from_slice(&body).ok()).ok_or_else(|| No::code(code::BODY_WRONG))
}

/// The parameters of both token endpoints.
#[derive(Default, Deserialize)]
struct Credentials {
    #[serde(default)]
    grant_type: String,
    #[serde(default)]
    appid: String,
    #[serde(default)]
    secret: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StableRequest {
    #[serde(default)]
    grant_type: String,
    #[serde(default)]
    appid: String,
    #[serde(default)]
    secret: String,
    #[serde(default)]
    force_refresh: bool,
}

enum Issue {
    Plain,
    Stable { force: bool },
}

struct Fetch {
    credentials: Result<Credentials, No>,
    issue: Issue,
    app: Option<Arc<App>>,
    now_ms: u64,
    settings: Arc<Settings>,
}

async fn plain_token(
    State(sandbox): State<Sandbox>,
    wire: MaybeWire,
    query: Result<Query<Credentials>, QueryRejection>,
) -> Response {
    let credentials = query.map(|Query(credentials)| credentials).unwrap_or_default();
    fetch(&sandbox, wire, Ok(credentials), Issue::Plain).await
}

async fn stable_token(
    State(sandbox): State<Sandbox>,
    wire: MaybeWire,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (credentials, force) = match object(body) {
        Ok(StableRequest { grant_type, appid, secret, force_refresh }) => {
            (Ok(Credentials { grant_type, appid, secret }), force_refresh)
        }
        Err(no) => (Err(no), false),
    };
    fetch(&sandbox, wire, credentials, Issue::Stable { force }).await
}

async fn fetch(sandbox: &Sandbox, wire: MaybeWire, credentials: Result<Credentials, No>, issue: Issue) -> Response {
    let settings = sandbox.current();
    wait(&settings).await;
    let now_ms = clock::now_ms(&settings);
    let app = credentials.as_ref().ok().and_then(|credentials| sandbox.app(&credentials.appid));
    run(sandbox, wire, Fetch { credentials, issue, app, now_ms, settings }).await
}

impl Fetch {
    fn decide(&self, sandbox: &Sandbox) -> Result<Token, No> {
        let credentials = self.credentials.as_ref().map_err(No::clone)?;
        if credentials.grant_type != GRANT_TYPE {
            return Err(No::code(code::WRONG_GRANT_TYPE));
        }
        if credentials.appid.is_empty() {
            return Err(No::code(code::APP_MISSING));
        }
        let app = self.app.as_ref().ok_or_else(|| No::code(code::APP_UNKNOWN))?;
        if credentials.secret.is_empty() {
            return Err(No::code(code::SECRET_MISSING));
        }
        if !app.has_secret(&credentials.secret) {
            return Err(No::code(code::WRONG_SECRET));
        }
        Ok(match self.issue {
            Issue::Plain => sandbox.tokens().plain(app, self.now_ms, &self.settings),
            Issue::Stable { force } => sandbox.tokens().stable(app, force, self.now_ms, &self.settings),
        })
    }
}

impl Call for Fetch {
    fn facts(&self) -> Facts<'_> {
        let app_id = self.credentials.as_ref().ok().map(|credentials| credentials.appid.as_str());
        Facts { endpoint: Endpoint::Token, app_id, openid: None, template_id: None }
    }

    fn app(&self) -> Option<&App> {
        self.app.as_deref()
    }

    fn process(self, sandbox: &Sandbox) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            access_token: &'a str,
            expires_in: u64,
        }
        let outcome = self.decide(sandbox);
        let code = outcome.as_ref().map_or_else(|no| no.code, |_| code::OK);
        sandbox.note(self.app(), |book| book.token_answered(code));
        match outcome {
            Ok(token) => answer::json(&Body { access_token: &token.text, expires_in: token.expires_in }),
            Err(no) => answer::refusal(&no),
        }
    }

    fn skip(&self, sandbox: &Sandbox, answered: Option<i32>) {
        sandbox.note(self.app(), |book| match answered {
            Some(code) => book.token_answered(code),
            None => book.token_unprocessed(),
        });
    }
}
