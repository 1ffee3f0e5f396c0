//! A sandbox on its own port, and a minimal HTTP client that shows every way an answer can fail.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use sandbox::{Books, Granting, Sandbox, Settings, Submission};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const APP: &str = "wx0123456789abcdef";
pub const SECRET: &str = "very-secret";
pub const USER: &str = "openid-1";
pub const SEND: &str = "/cgi-bin/message/wxopen/template/send";
pub const SUBSCRIBE: &str = "/cgi-bin/message/subscribe/send";
pub const STABLE: &str = "/cgi-bin/stable_token";

/// An answer, complete or not.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
    /// The body has the length that its head announced.
    pub whole: bool,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub struct WeChat {
    pub sandbox: Sandbox,
    pub address: SocketAddr,
    unique: AtomicU64,
}

/// Starts and serves a sandbox with one app.
pub async fn wechat(settings: Settings) -> WeChat {
    let sandbox = Sandbox::new(settings);
    sandbox.add_app(APP, SECRET).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(sandbox::serve(listener, sandbox.clone(), std::future::pending()));
    WeChat { sandbox, address, unique: AtomicU64::new(0) }
}

impl WeChat {
    /// Makes one request on its own connection. `Ok(None)` means that the connection was closed without a byte of
    /// answer.
    pub async fn call(&self, method: &str, path: &str, body: &str) -> std::io::Result<Option<Reply>> {
        let mut stream = TcpStream::connect(self.address).await?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: wechat\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        if answer.is_empty() {
            return Ok(None);
        }
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let head = head.to_lowercase();
        let promised = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        Ok(Some(Reply {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            whole: promised.parse() == Ok(body.len()),
            body: body.to_owned(),
            head,
        }))
    }

    /// Makes a request whose answer must be complete.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        let reply = self.call(method, path, body).await.unwrap().unwrap();
        assert!(reply.whole, "{reply:?}");
        reply
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.ask("POST", path, &body.to_string()).await.json()
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, "").await.json()
    }

    pub async fn plain_token(&self) -> String {
        let path = format!("/cgi-bin/token?grant_type=client_credential&appid={APP}&secret={SECRET}");
        text(&self.get(&path).await["access_token"])
    }

    pub async fn stable_token(&self, force: bool) -> String {
        text(&self.post(STABLE, stable_request(force)).await["access_token"])
    }

    pub fn form(&self, openid: &str) -> String {
        self.submit(Submission::form(openid))
    }

    pub fn submit(&self, submission: Submission) -> String {
        self.sandbox.submit(APP, vec![submission]).unwrap().remove(0)
    }

    /// Makes one `template/send`, and returns its errcode.
    pub async fn send(&self, token: &str, body: Value) -> i32 {
        code(&self.post(&format!("{SEND}?access_token={token}"), body).await)
    }

    /// A body that no other call has, so that it does not count as a repeat.
    pub fn message(&self, form_id: &str) -> Value {
        let number = self.unique.fetch_add(1, Ordering::Relaxed).to_string();
        json!({
            "touser": USER, "template_id": "template", "form_id": form_id, "page": "pages/index?from=test",
            "data": {"keyword1": {"value": number}, "keyword2": {"value": "text", "color": "#173177"}},
            "emphasis_keyword": "keyword1.DATA",
        })
    }

    /// Records that a user accepted messages of the template in [`WeChat::subscription`].
    pub fn grant(&self, openid: &str, count: u32) {
        self.sandbox.grant(APP, vec![Granting { count, ..Granting::new(openid, "template") }]).unwrap();
    }

    /// Makes one `subscribe/send`, and returns its answer.
    pub async fn subscribe_answer(&self, token: &str, body: Value) -> Value {
        self.post(&format!("{SUBSCRIBE}?access_token={token}"), body).await
    }

    /// Makes one `subscribe/send`, and returns its errcode.
    pub async fn subscribe(&self, token: &str, body: Value) -> i32 {
        code(&self.subscribe_answer(token, body).await)
    }

    /// A body that no other call has, so that it does not count as a repeat.
    pub fn subscription(&self, openid: &str) -> Value {
        let number = self.unique.fetch_add(1, Ordering::Relaxed).to_string();
        json!({
            "touser": openid, "template_id": "template", "page": "pages/index?from=test",
            "data": {"number1": {"value": number}, "thing2": {"value": "text"}},
            "miniprogram_state": "trial", "lang": "en_US",
        })
    }

    /// The books of the app. Asserts that they add up.
    pub fn books(&self) -> Books {
        let books = self.sandbox.books(Some(APP)).unwrap();
        assert_eq!(books.calls, books.unprocessed + books.answers.values().sum::<u64>(), "{books:?}");
        assert_eq!(books.token_fetches, books.token_unprocessed + books.token_answers.values().sum::<u64>());
        let subscribe_answers = books.subscribe_answers.values().sum::<u64>();
        assert_eq!(books.subscribe_calls, books.subscribe_unprocessed + subscribe_answers, "{books:?}");
        let accepted = |answers: &BTreeMap<i32, u64>| answers.get(&0).copied().unwrap_or_default();
        let grants = books.grants;
        assert_eq!(accepted(&books.answers), books.delivered + books.undelivered);
        assert_eq!(accepted(&books.answers), books.uses.spent + grants.spent + grants.long_term_spent);
        assert_eq!(accepted(&books.subscribe_answers), grants.spent + grants.long_term_spent);
        assert_eq!(grants.accepted, grants.spent + grants.voided + grants.left);
        assert_eq!(books.delivered, books.messages + books.delivered_twice);
        assert_eq!(books.uses.issued, books.uses.spent + books.uses.left);
        assert_eq!(books.ids.issued, books.ids.spent + books.ids.left);
        books
    }
}

pub fn stable_request(force: bool) -> Value {
    json!({"grant_type": "client_credential", "appid": APP, "secret": SECRET, "force_refresh": force})
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}

/// The errcode of an answer. Asserts that the text of an error ends in a request id.
pub fn code(answer: &Value) -> i32 {
    let code = answer["errcode"].as_i64().unwrap_or_else(|| panic!("{answer} has no errcode"));
    let message = text(&answer["errmsg"]);
    if let Some(msgid) = answer.get("msgid") {
        assert!(code == 0 && msgid.as_u64().is_some_and(|id| id > 1 << 53), "{answer}");
    }
    match message.rsplit_once(" rid: ") {
        Some((_, rid)) => {
            let parts: Vec<&str> = rid.split('-').collect();
            assert!(parts.len() == 3 && parts.iter().all(|part| part.len() == 8), "{message}");
        }
        None => assert_eq!((code, message.as_str()), (0, "ok")),
    }
    code.try_into().unwrap()
}

pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Waits until a condition holds, with no limit of its own: the test runner ends a test that hangs and shows this
/// message.
#[allow(clippy::print_stderr, reason = "see above")]
pub async fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let mut polls = 0_u64;
    while !happened() {
        polls += 1;
        if polls >= 1000 && polls.is_power_of_two() {
            eprintln!("still waiting: {what}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

pub fn settings(fields: Value) -> Settings {
    Settings::default().with(fields.as_object().cloned().unwrap()).unwrap()
}
