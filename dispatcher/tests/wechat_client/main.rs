//! The HTTP client against servers that answer correctly and servers that do not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod proxy;
mod quota;
mod server;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dispatcher::app::{App, Secret};
use dispatcher::token_source::{TokenEndpoint, TokenSource};
use dispatcher::wechat::client::Client;
use dispatcher::wechat::error::{Cause, ClientError, TokenError, Trouble};
use dispatcher::wechat::message::Delivery;
use dispatcher::wechat::reply::Reply;
use dispatcher::wechat::token_codes;
use domain::AppId;
use reqwest::Url;
use server::{Habit, Server, http, ok};
use store::broadcast::permits::Bounds;
use store::delivery_failures::MsgId;
use store::eligibility::Kinds;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const SECRET: &str = "CANARY-secret";
const TOKEN: &str = "CANARY-token";

fn with_secret(endpoint: TokenEndpoint) -> TokenSource {
    TokenSource::WeChat { secret: Secret::parse(SECRET).unwrap(), endpoint }
}

fn app(base_url: &str) -> App {
    App {
        id: AppId::parse("wx1").unwrap(),
        token_source: with_secret(TokenEndpoint::Stable),
        base_url: Url::parse(base_url).unwrap(),
        proxy: None,
        connect_timeout: Duration::from_millis(500),
        timeout: Duration::from_secs(10),
        bounds: Bounds::default(),
        delivery: Delivery::FormId,
        refused_rest: Duration::ZERO,
        broadcast_kinds: Kinds::NONE,
    }
}

fn client(base_url: &str) -> Client {
    Client::new(Arc::new(app(base_url)), None).unwrap()
}

async fn send(url: &str) -> Reply {
    client(url).send(Delivery::FormId, TOKEN, b"{}".to_vec()).await
}

#[tokio::test]
async fn send_is_one_json_post_on_a_kept_alive_connection() {
    let server = Server::start(ok(r#"{"errcode":0,"errmsg":"ok"}"#)).await;
    let client = client(&format!("{}/gateway/", server.url));
    for _ in 0..3 {
        let reply = client.send(Delivery::FormId, "t+o&k", br#"{"touser":"o1"}"#.to_vec()).await;
        assert_eq!(reply, Reply::Answered { errcode: 0, errmsg: "ok".into(), rid: String::new(), msgid: None });
    }
    let requests = server.requests();
    assert_eq!((requests.len(), server.connections.load(Ordering::Relaxed)), (3, 1));
    let path = "POST /gateway/cgi-bin/message/wxopen/template/send?access_token=t%2Bo%26k HTTP/1.1\r\n";
    assert!(requests[0].starts_with(path), "{}", requests[0]);
    assert!(requests[0].contains("content-type: application/json\r\n"));
    assert!(requests[0].ends_with("\r\n\r\n{\"touser\":\"o1\"}"));
}

#[tokio::test]
async fn subscription_message_uses_its_own_path_and_returns_its_msgid() {
    let server = Server::start(ok(r#"{"errcode":0,"errmsg":"ok","msgid":7}"#)).await;
    let reply = client(&server.url).send(Delivery::Subscription, TOKEN, b"{}".to_vec()).await;
    assert!(matches!(reply, Reply::Answered { errcode: 0, msgid: Some(MsgId(7)), .. }), "{reply:?}");
    let path = format!("POST /cgi-bin/message/subscribe/send?access_token={TOKEN} HTTP/1.1\r\n");
    assert!(server.requests()[0].starts_with(&path));
}

#[tokio::test]
async fn refusal_is_an_answer_with_its_rid() {
    let long = Some(12_345_678_901_234_567_890);
    for (body, errcode, errmsg, rid, msgid) in [
        (r#"{"errcode":41028,"errmsg":"invalid form id rid: 5f-1a"}"#, 41028, "invalid form id", "5f-1a", None),
        (r#"{"errcode":-1,"errmsg":"system error"}"#, -1, "system error", "", None),
        (r#"{"errcode":0}"#, 0, "", "", None),
        (r#" {"errmsg":null,"errcode":0,"msgid":12345678901234567890}"#, 0, "", "", long),
    ] {
        let server = Server::start(ok(body)).await;
        let msgid = msgid.map(MsgId);
        let expected = Reply::Answered { errcode, errmsg: errmsg.into(), rid: rid.into(), msgid };
        assert_eq!(send(&server.url).await, expected, "{body}");
    }
}

#[tokio::test]
async fn invalid_answer_leaves_the_outcome_unknown() {
    let long = format!(r#"{{"errcode":0,"errmsg":"{}"}}"#, "x".repeat(64 * 1024));
    let chunked =
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
    for (habit, cause) in [
        (ok("<html>"), Cause::NotJson),
        (ok(""), Cause::NotJson),
        (ok("[0]"), Cause::NotJson),
        (ok(r#"{"errmsg":"ok"}"#), Cause::NotJson),
        (ok(r#"{"errcode":"0"}"#), Cause::NotJson),
        (ok(r#"{"errcode":0.5}"#), Cause::NotJson),
        (ok(r#"{"errcode":0"#), Cause::NotJson),
        (ok(&long), Cause::TooLarge),
        (Habit::Answer(chunked), Cause::TooLarge),
        (Habit::Answer(http("502 Bad Gateway", r#"{"errcode":0}"#)), Cause::HttpStatus(502)),
        (Habit::Answer(http("500 Oops", "")), Cause::HttpStatus(500)),
        (Habit::Answer(http("404 Not Found", r#"{"errcode":0}"#)), Cause::HttpStatus(404)),
        (Habit::Cut(String::new()), Cause::BrokenOff),
        (Habit::Cut("HTTP/1.1 200 OK\r\ncontent-".into()), Cause::BrokenOff),
        (Habit::Cut("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"errcode\":0}".into()), Cause::BrokenOff),
        (Habit::Answer("this is not HTTP\r\n\r\n".into()), Cause::BrokenOff),
    ] {
        let server = Server::start(habit).await;
        assert_eq!(send(&server.url).await, Reply::Unanswered(cause));
        assert_eq!(server.requests().len(), 1, "{cause}: sent again");
    }
}

#[tokio::test]
async fn answer_after_the_timeout_leaves_the_outcome_unknown() {
    for habit in [Habit::Hang, Habit::Answer("HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"err".into())] {
        let server = Server::start(habit).await;
        let app = App { timeout: Duration::from_millis(600), ..app(&server.url) };
        let client = Client::new(Arc::new(app), None).unwrap();
        assert_eq!(client.send(Delivery::FormId, TOKEN, b"{}".to_vec()).await, Reply::Unanswered(Cause::Timeout));
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn without_a_connection_nothing_was_sent() {
    let free = testing::free_port();
    assert_eq!(send(&format!("http://127.0.0.1:{free}")).await, Reply::NotSent(Cause::Connect));
    let unknown = send("http://no-such-host.invalid").await;
    assert!(matches!(unknown, Reply::NotSent(Cause::Connect | Cause::ConnectTimeout)), "{unknown:?}");
}

#[tokio::test]
async fn connect_timeout_means_that_nothing_was_sent() {
    // A listener that never accepts: once its queue is full, further connections hang.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queue.push(stream);
    }
    assert_eq!(send(&format!("http://{address}")).await, Reply::NotSent(Cause::ConnectTimeout));
}

#[tokio::test]
async fn without_tls_nothing_was_sent() {
    // One server waits for a request that it can parse, the other closes the connection immediately.
    let waits = Server::start(ok(r#"{"errcode":0}"#)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hangs_up = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    assert_eq!(send(&waits.url.replace("http:", "https:")).await, Reply::NotSent(Cause::ConnectTimeout));
    assert_eq!(send(&hangs_up).await, Reply::NotSent(Cause::Connect));
    assert!(waits.requests().is_empty());
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let target = Server::start(ok(r#"{"errcode":0,"access_token":"t","expires_in":7200}"#)).await;
    for status in [301, 302, 303, 307, 308] {
        let answer = format!("HTTP/1.1 {status} Moved\r\nlocation: {}/\r\ncontent-length: 0\r\n\r\n", target.url);
        let server = Server::start(Habit::Answer(answer)).await;
        assert_eq!(send(&server.url).await, Reply::Unanswered(Cause::Redirected(status)));
        let fetched = client(&server.url).fetch_token(false).await;
        let cause = Cause::Redirected(status);
        assert_eq!(fetched.unwrap_err(), TokenError::Transient(Trouble::WeChat(cause)));
    }
    assert!(target.requests().is_empty());
}

#[tokio::test]
async fn each_token_endpoint_is_requested_in_its_own_way() {
    let server = Server::start(ok(r#"{"access_token":"t1","expires_in":7200}"#)).await;
    let stable = client(&server.url);
    let plain =
        Client::new(Arc::new(App { token_source: with_secret(TokenEndpoint::Plain), ..app(&server.url) }), None)
            .unwrap();
    for fetched in [stable.fetch_token(false).await, stable.fetch_token(true).await, plain.fetch_token(false).await] {
        let fetched = fetched.unwrap();
        assert_eq!((fetched.token.as_str(), fetched.life), ("t1", Duration::from_secs(7200)));
    }
    let requests = server.requests();
    for (request, force) in [(&requests[0], false), (&requests[1], true)] {
        assert!(request.starts_with("POST /cgi-bin/stable_token HTTP/1.1\r\n"), "{request}");
        let body: serde_json::Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
        let expected = serde_json::json!({
            "grant_type": "client_credential", "appid": "wx1", "secret": SECRET, "force_refresh": force,
        });
        assert_eq!(body, expected);
    }
    let line = format!("GET /cgi-bin/token?grant_type=client_credential&appid=wx1&secret={SECRET} HTTP/1.1\r\n");
    assert!(requests[2].starts_with(&line), "{}", requests[2]);
}

#[tokio::test]
async fn token_refusals_are_final_or_transient_by_the_table() {
    let codes = token_codes::TABLE.iter().map(|row| row.errcode).chain([12345]);
    for errcode in codes {
        let server = Server::start(ok(&format!(r#"{{"errcode":{errcode},"errmsg":"no rid: 5f-1"}}"#))).await;
        let error = client(&server.url).fetch_token(false).await.unwrap_err();
        let row = token_codes::row_of(errcode);
        let expected = match row.weight {
            token_codes::Weight::Final => {
                TokenError::Refused { errcode, rid: "5f-1".into(), sentence: row.sentence, address: None }
            }
            token_codes::Weight::Transient => TokenError::Transient(Trouble::WeChat(Cause::Refused(errcode))),
        };
        assert_eq!(error, expected);
        assert!(error.to_string().contains(&errcode.to_string()), "{error}");
        let passes = [-1, 45009, 45011].contains(&errcode);
        assert_eq!(!passes, matches!(error, TokenError::Refused { .. }), "{errcode}");
    }
}

#[tokio::test]
async fn invalid_token_response_is_retried_later() {
    for body in [
        "{}",
        "oops",
        r#"{"errcode":0}"#,
        r#"{"access_token":"","expires_in":7200}"#,
        r#"{"access_token":"a b","expires_in":7200}"#,
        r#"{"access_token":"t","expires_in":0}"#,
        r#"{"access_token":"t","expires_in":-1}"#,
        r#"{"access_token":"t"}"#,
    ] {
        let server = Server::start(ok(body)).await;
        let error = client(&server.url).fetch_token(false).await.unwrap_err();
        assert_eq!(error, TokenError::Transient(Trouble::WeChat(Cause::NotJson)), "{body}");
    }
    let free = testing::free_port();
    let error = client(&format!("http://127.0.0.1:{free}")).fetch_token(false).await.unwrap_err();
    assert_eq!(error, TokenError::Transient(Trouble::WeChat(Cause::Connect)));
}

#[tokio::test]
async fn no_debug_or_error_text_contains_a_token_or_a_secret() {
    let echo = format!(r#"{{"errcode":40001,"errmsg":"{TOKEN} {SECRET} rid: {TOKEN}?{SECRET}"}}"#);
    let token = format!(r#"{{"access_token":"{TOKEN}","expires_in":7200}}"#);
    let habits = [ok(&echo), ok(&token), ok("x"), Habit::Cut(String::new()), Habit::Answer(http("500 Oops", &echo))];
    let mut printed = String::new();
    let mut urls = vec![format!("http://127.0.0.1:{}", testing::free_port()), "http://no-such-host.invalid".into()];
    for habit in habits {
        urls.push(Server::start(habit).await.url);
    }
    for url in urls {
        for token_endpoint in [TokenEndpoint::Stable, TokenEndpoint::Plain] {
            let app = Arc::new(App { token_source: with_secret(token_endpoint), ..app(&url) });
            let client = Client::new(Arc::clone(&app), None).unwrap();
            printed += &format!("{app:?} {:?}", client.send(Delivery::FormId, TOKEN, b"{}".to_vec()).await);
            match client.quota(Delivery::FormId, TOKEN).await {
                Ok(quota) => printed += &format!("{quota:?}"),
                Err(error) => printed += &format!("{error:?} {error}"),
            }
            match client.fetch_token(false).await {
                Ok(token) => printed += &format!("{token:?}"),
                Err(error) => printed += &format!("{error:?} {error}"),
            }
        }
    }
    assert!(printed.contains("Unanswered") && printed.contains("NotSent") && printed.contains("FetchedToken"));
    assert!(printed.contains("Refused { errcode: 40001"));
    assert!(!printed.contains("CANARY"), "{printed}");
}

/// Runs [`in_a_bare_environment`] in a separate process, since all tests of this process share its environment.
#[test]
fn http_needs_no_certificates_and_proxy_variables_are_ignored() {
    let proxy = format!("http://127.0.0.1:{}", testing::free_port());
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_bare_environment", "--ignored"])
        .env("SSL_CERT_FILE", "/does/not/exist")
        .env_remove("SSL_CERT_DIR")
        .envs(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, &proxy)))
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
#[ignore = "run by the test above in a process with its own environment"]
async fn in_a_bare_environment() {
    let server = Server::start(ok(r#"{"errcode":0}"#)).await;
    assert!(matches!(send(&server.url).await, Reply::Answered { errcode: 0, .. }));
    let error = Client::new(Arc::new(app("https://127.0.0.1")), None).err().unwrap();
    assert!(matches!(error, ClientError::Tls(_)), "{error}");
}

#[tokio::test]
async fn app_without_a_token_sends_none() {
    let server = Server::start(ok(r#"{"errcode":0,"quota":{"daily_limit":1,"used":0,"remain":1}}"#)).await;
    let client = Client::new(Arc::new(App { token_source: TokenSource::None, ..app(&server.url) }), None).unwrap();
    assert!(matches!(client.send(Delivery::FormId, "", vec![]).await, Reply::Answered { errcode: 0, .. }));
    client.quota(Delivery::FormId, "").await.unwrap();
    let paths: Vec<_> = server.requests().iter().map(|request| request.lines().next().unwrap().to_owned()).collect();
    let expected = ["/cgi-bin/message/wxopen/template/send", "/cgi-bin/openapi/quota/get"];
    assert_eq!(paths, expected.map(|path| format!("POST {path} HTTP/1.1")));
    assert_eq!(client.fetch_token(false).await.unwrap_err(), TokenError::Transient(Trouble::NoSecret));
}
