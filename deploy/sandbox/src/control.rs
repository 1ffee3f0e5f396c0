//! The control API: JSON in, JSON out, under `/sandbox/`.
//!
//! | call | body or query | answer |
//! |---|---|---|
//! | `POST apps` | `{app_id, secret}` | `{}` |
//! | `POST submissions` | `{app_id, submissions: [Submission]}` | `{ids: [..]}`, in order |
//! | `POST block` | `{app_id, id}` | `{}` |
//! | `POST grants` | `{app_id, grants: [Granting]}` | `{}` |
//! | `POST rejections` | `{app_id, rejections: [Subscription]}` | `{}` |
//! | `POST withdrawals` | `{app_id, withdrawals: [Subscription]}` | `{}` |
//! | `GET deliveries` | `?app_id=&openid=&after=&limit=` | `{deliveries: [Delivery]}` |
//! | `POST events` | `{app_id, events: [Push]}` | `{}` |
//! | `GET events` | `?app_id=&openid=&after=&limit=` | `{events: [Event]}` |
//! | `GET books` | `?app_id=`, or nothing for all | [`Books`](crate::Books) |
//! | `GET token` | `?app_id=&invalid=` | `{access_token, expires_in}`, like a token server |
//! | `GET settings` | | [`Settings`](crate::Settings) |
//! | `PUT settings` | the fields to change | all settings |
//! | `POST faults` | `[Rule]`, appended | `{faults: [Rule]}`, all of them |
//! | `GET faults`, `DELETE faults` | | `{faults: [Rule]}` |
//!
//! An invalid request answers 400 with `{"error": "<a sentence>"}`, an unknown app or id 404.

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{Granting, Push, Reading, Refused, Rule, Sandbox, Submission, Subscription, answer, clock};

/// Large enough for several 100,000 submissions or grants in one call.
const LARGEST_BODY: usize = 128 * 1024 * 1024;

type Outcome = Result<Response, Refused>;

pub(crate) fn routes() -> Router<Sandbox> {
    Router::new()
        .route("/sandbox/apps", post(add_app))
        .route("/sandbox/submissions", post(submit))
        .route("/sandbox/block", post(block))
        .route("/sandbox/grants", post(grant))
        .route("/sandbox/rejections", post(reject))
        .route("/sandbox/withdrawals", post(withdraw))
        .route("/sandbox/deliveries", get(deliveries))
        .route("/sandbox/events", get(events).post(push))
        .route("/sandbox/books", get(books))
        .route("/sandbox/token", get(token))
        .route("/sandbox/settings", get(settings).put(change_settings))
        .route("/sandbox/faults", get(faults).post(add_faults).delete(clear_faults))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Unknown(_) => StatusCode::NOT_FOUND,
        };
        (status, answer::json(&json!({ "error": self.to_string() }))).into_response()
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(Refused::invalid)
}

fn asked<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refused> {
    query.map(|Query(query)| query).map_err(|rejection| Refused::invalid(rejection.body_text()))
}

fn done() -> Outcome {
    Ok(answer::json(&json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewApp {
    app_id: String,
    secret: String,
}

async fn add_app(State(sandbox): State<Sandbox>, body: Bytes) -> Outcome {
    let new: NewApp = read(&body)?;
    sandbox.add_app(&new.app_id, &new.secret)?;
    done()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Submissions {
    app_id: String,
    submissions: Vec<Submission>,
}

async fn submit(State(sandbox): State<Sandbox>, body: Bytes) -> Outcome {
    let Submissions { app_id, submissions } = read(&body)?;
    let ids = sandbox.submit(&app_id, submissions)?;
    Ok(answer::json(&json!({ "ids": ids })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    app_id: String,
    id: String,
}

async fn block(State(sandbox): State<Sandbox>, body: Bytes) -> Outcome {
    let Block { app_id, id } = read(&body)?;
    sandbox.block(&app_id, &id)?;
    done()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grants {
    app_id: String,
    grants: Vec<Granting>,
}

async fn grant(State(sandbox): State<Sandbox>, body: Bytes) -> Outcome {
    let Grants { app_id, grants } = read(&body)?;
    sandbox.grant(&app_id, grants)?;
    done()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rejections {
    app_id: String,
    rejections: Vec<Subscription>,
}

async fn reject(State(sandbox): State<Sandbox>, body: Bytes) -> Outcome {
    let Rejections { app_id, rejections } = read(&body)?;
    sandbox.reject(&app_id, rejections)?;
    done()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Withdrawals {
    app_id: String,
    withdrawals: Vec<Subscription>,
}

async fn withdraw(State(sandbox): State<Sandbox>, body: Bytes) -> Outcome {
    let Withdrawals { app_id, withdrawals } = read(&body)?;
    sandbox.withdraw(&app_id, withdrawals)?;
    done()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Events {
    app_id: String,
    events: Vec<Push>,
}

async fn push(State(sandbox): State<Sandbox>, body: Bytes) -> Outcome {
    let Events { app_id, events } = read(&body)?;
    sandbox.push(&app_id, events)?;
    done()
}

/// Query of an app's lists: its app and a [`Reading`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    app_id: String,
    openid: Option<String>,
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

impl ListQuery {
    fn split(self) -> (String, Reading) {
        let Self { app_id, openid, after, limit } = self;
        (app_id, Reading { openid, after, limit })
    }
}

async fn deliveries(State(sandbox): State<Sandbox>, query: Result<Query<ListQuery>, QueryRejection>) -> Outcome {
    let (app_id, reading) = asked(query)?.split();
    Ok(answer::json(&json!({ "deliveries": sandbox.deliveries(&app_id, &reading)? })))
}

async fn events(State(sandbox): State<Sandbox>, query: Result<Query<ListQuery>, QueryRejection>) -> Outcome {
    let (app_id, reading) = asked(query)?.split();
    Ok(answer::json(&json!({ "events": sandbox.events(&app_id, &reading)? })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BooksQuery {
    app_id: Option<String>,
}

async fn books(State(sandbox): State<Sandbox>, query: Result<Query<BooksQuery>, QueryRejection>) -> Outcome {
    let app_id = asked(query)?.app_id.filter(|app_id| !app_id.is_empty());
    Ok(answer::json(&sandbox.books(app_id.as_deref())?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenQuery {
    app_id: String,
    /// The token that WeChat rejected.
    invalid: Option<String>,
}

/// Plays a company's token server, which has the secret: it gives the stable token. If a caller reports that the
/// current one is invalid, it forces a new one.
async fn token(State(sandbox): State<Sandbox>, query: Result<Query<TokenQuery>, QueryRejection>) -> Outcome {
    let TokenQuery { app_id, invalid } = asked(query)?;
    let (app, settings) = (sandbox.known(&app_id)?, sandbox.current());
    let stable = |force| sandbox.tokens().stable(&app, force, clock::now_ms(&settings), &settings);
    let current = stable(false);
    let token = if invalid.as_deref() == Some(&*current.text) { stable(true) } else { current };
    Ok(answer::json(&json!({ "access_token": &*token.text, "expires_in": token.expires_in })))
}

async fn settings(State(sandbox): State<Sandbox>) -> Response {
    answer::json(&*sandbox.current())
}

async fn change_settings(State(sandbox): State<Sandbox>, body: Bytes) -> Outcome {
    let fields: Map<String, Value> = read(&body)?;
    let changed = sandbox.change_settings(fields)?;
    Ok(answer::json(&changed))
}

async fn faults(State(sandbox): State<Sandbox>) -> Response {
    answer::json(&json!({ "faults": sandbox.faults() }))
}

async fn add_faults(State(sandbox): State<Sandbox>, body: Bytes) -> Outcome {
    let rules: Vec<Rule> = read(&body)?;
    sandbox.add_faults(rules)?;
    Ok(faults(State(sandbox)).await)
}

async fn clear_faults(State(sandbox): State<Sandbox>) -> Response {
    sandbox.clear_faults();
    faults(State(sandbox)).await
}
