//! A WeChat, or a gateway in front of it, that echoes the request in its answers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;

use crate::secrets::{BODY, FORM_ID, OPENID, SECRET, TOKEN};

/// How it answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Answers as WeChat would.
    Fine,
    /// Answers with this HTTP status and echoes the request in the body and the headers.
    Quote(u16),
    /// Echoes the request in a body that is not JSON.
    NotJson,
    /// Answers with JSON of another shape that contains the request.
    OtherJson,
    /// Redirects to another host, with secrets in the location.
    Redirect,
    /// Answers with this errcode. The errmsg contains the request, and a secret replaces the rid.
    Refuse(i32, Rid),
    /// Does not answer within the timeout.
    Hang,
    /// Sends half of an answer, then closes the connection.
    Cut,
}

/// The secret that is sent in place of the rid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rid {
    Token,
    Secret,
    Openid,
    FormId,
}

/// The first segment of the path selects how it answers a token request (an index into [`TOKEN_LIES`]).
#[derive(Clone, Default)]
pub struct LyingUpstream {
    sends: Arc<Mutex<Option<Lie>>>,
    tokens: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

/// How the token endpoints answer, each below a path of its own.
pub const TOKEN_LIES: [Lie; 10] = [
    Lie::Quote(500),
    Lie::NotJson,
    Lie::OtherJson,
    Lie::Redirect,
    Lie::Refuse(40001, Rid::Secret),
    Lie::Refuse(45011, Rid::Secret),
    Lie::Refuse(77777, Rid::Secret),
    Lie::Refuse(61004, Rid::Secret),
    Lie::Hang,
    Lie::Cut,
];

impl LyingUpstream {
    pub async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    /// Sets how it answers sends from now on.
    pub fn sends(&self, lie: Lie) {
        *self.sends.lock().unwrap() = Some(lie);
    }

    /// Number of requests so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn answer(State(lying_upstream): State<LyingUpstream>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    lying_upstream.asked.fetch_add(1, Ordering::Relaxed);
    let said = format!("{uri} {headers:?} {} {SECRET} {TOKEN}", String::from_utf8_lossy(&body));
    let send = uri.path().ends_with("/send");
    let place = uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
    let lie = match place.parse::<usize>() {
        Ok(number) => TOKEN_LIES[number],
        Err(_) if send => lying_upstream.sends.lock().unwrap().unwrap_or(Lie::Fine),
        Err(_) => Lie::Fine,
    };
    match lie {
        Lie::Fine if send => json(serde_json::json!({"errcode": 0, "errmsg": "ok", "msgid": 7})),
        Lie::Fine if uri.path().ends_with("/get") => json(serde_json::json!({"errcode": 48001, "errmsg": said})),
        Lie::Fine => {
            // Each token is handed out twice, so that the second one may be a token that was already rejected.
            let number = lying_upstream.tokens.fetch_add(1, Ordering::Relaxed) / 2;
            json(serde_json::json!({"access_token": format!("{TOKEN}{number}"), "expires_in": 7200}))
        }
        Lie::Quote(status) => {
            let head = [("x-quoted", said.replace(|byte: char| !byte.is_ascii_graphic(), "_"))];
            (StatusCode::from_u16(status).unwrap(), head, said).into_response()
        }
        Lie::NotJson => said.into_response(),
        Lie::OtherJson => json(serde_json::json!({"errcode": said, "access_token": [said], "errmsg": said})),
        Lie::Redirect => {
            let location = format!("http://{SECRET}.invalid/{OPENID}?{}", uri.query().unwrap_or(TOKEN));
            (StatusCode::FOUND, [(header::LOCATION, location)], said).into_response()
        }
        Lie::Refuse(errcode, rid) => {
            let rid = match rid {
                Rid::Token => TOKEN.to_owned(),
                Rid::Secret => SECRET.to_owned(),
                Rid::Openid => format!("{OPENID}000001"),
                Rid::FormId => format!("{FORM_ID}00000001"),
            };
            let errmsg = format!("data.{BODY}.value {said} rid: {rid}");
            json(serde_json::json!({"errcode": errcode, "errmsg": errmsg}))
        }
        Lie::Hang => {
            tokio::time::sleep(Duration::from_secs(3)).await;
            said.into_response()
        }
        Lie::Cut => {
            let broken = futures_util::stream::iter([Ok(Bytes::from(said)), Err(std::io::Error::other("cut"))]);
            ([(header::CONTENT_LENGTH, "100000")], Body::from_stream(broken)).into_response()
        }
    }
}

fn json(value: serde_json::Value) -> Response {
    axum::Json(value).into_response()
}
