//! A WeChat, or a gateway in its place, that quotes whatever it is sent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;

use crate::secrets::{BODY, FORM_ID, OPENID, SECRET, TOKEN};

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As WeChat would.
    Fine,
    /// A status, with all that was asked in its body and its headers.
    Quote(u16),
    /// All that was asked, and that is no JSON.
    NotJson,
    /// JSON of another shape, with all that was asked in it.
    OtherJson,
    /// Go elsewhere, and take the secrets along.
    Redirect,
    /// A code, with all that was asked for words, and a secret where the rid belongs.
    Refuse(i32, Rid),
    /// No answer in time.
    Hang,
    /// Half an answer.
    Cut,
}

/// What stands where the rid belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rid {
    Token,
    Secret,
    Openid,
    FormId,
}

/// Whatever app asks, its token is fetched from below `/MOOD`.
#[derive(Clone, Default)]
pub struct Liar {
    sends: Arc<Mutex<Option<Mood>>>,
    tokens: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

/// The moods of token endpoints, each below a path of its own.
pub const TOKEN_MOODS: [Mood; 9] = [
    Mood::Quote(500),
    Mood::NotJson,
    Mood::OtherJson,
    Mood::Redirect,
    Mood::Refuse(40001, Rid::Secret),
    Mood::Refuse(45011, Rid::Secret),
    Mood::Refuse(77777, Rid::Secret),
    Mood::Hang,
    Mood::Cut,
];

impl Liar {
    pub async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    /// How sends are answered from now on.
    pub fn sends(&self, mood: Mood) {
        *self.sends.lock().unwrap() = Some(mood);
    }

    /// How many calls there were.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn answer(State(liar): State<Liar>, uri: Uri, body: Bytes) -> Response {
    liar.asked.fetch_add(1, Ordering::Relaxed);
    let said = format!("{uri} {} {SECRET} {TOKEN}", String::from_utf8_lossy(&body));
    let send = uri.path().ends_with("/send");
    let place = uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
    let mood = match place.parse::<usize>() {
        Ok(number) => TOKEN_MOODS[number],
        Err(_) if send => liar.sends.lock().unwrap().unwrap_or(Mood::Fine),
        Err(_) => Mood::Fine,
    };
    match mood {
        Mood::Fine if send => json(serde_json::json!({"errcode": 0, "errmsg": "ok", "msgid": 7})),
        Mood::Fine if uri.path().ends_with("/get") => json(serde_json::json!({"errcode": 48001, "errmsg": said})),
        Mood::Fine => {
            // Each one twice, so that the second time it may be one that was refused.
            let number = liar.tokens.fetch_add(1, Ordering::Relaxed) / 2;
            json(serde_json::json!({"access_token": format!("{TOKEN}{number}"), "expires_in": 7200}))
        }
        Mood::Quote(status) => {
            let head = [("x-quoted", said.replace(|byte: char| !byte.is_ascii_graphic(), "_"))];
            (StatusCode::from_u16(status).unwrap(), head, said).into_response()
        }
        Mood::NotJson => said.into_response(),
        Mood::OtherJson => json(serde_json::json!({"errcode": said, "access_token": [said], "errmsg": said})),
        Mood::Redirect => {
            let location = format!("http://{SECRET}.invalid/{OPENID}?{}", uri.query().unwrap_or(TOKEN));
            (StatusCode::FOUND, [(header::LOCATION, location)], said).into_response()
        }
        Mood::Refuse(errcode, rid) => {
            let rid = match rid {
                Rid::Token => TOKEN.to_owned(),
                Rid::Secret => SECRET.to_owned(),
                Rid::Openid => format!("{OPENID}000001"),
                Rid::FormId => format!("{FORM_ID}00000001"),
            };
            let errmsg = format!("data.{BODY}.value {said} rid: {rid}");
            json(serde_json::json!({"errcode": errcode, "errmsg": errmsg}))
        }
        Mood::Hang => {
            tokio::time::sleep(Duration::from_secs(3)).await;
            said.into_response()
        }
        Mood::Cut => {
            let broken = futures_util::stream::iter([Ok(Bytes::from(said)), Err(std::io::Error::other("cut"))]);
            ([(header::CONTENT_LENGTH, "100000")], Body::from_stream(broken)).into_response()
        }
    }
}

fn json(value: serde_json::Value) -> Response {
    axum::Json(value).into_response()
}
