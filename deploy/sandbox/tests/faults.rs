//! Every kind of fault, as a caller sees it, and its effect on the books.
#![allow(clippy::unwrap_used, reason = "a failed step of a test should end it")]

mod fixture;

use std::time::{Duration, Instant};

use fixture::*;
use sandbox::{Endpoint, FaultKind, Match, Rule, Settings};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Makes one send with a new form id under this rule. Returns the answer and the number of messages delivered.
async fn one_send(rule: Rule) -> (std::io::Result<Option<Reply>>, u64) {
    let wechat = wechat(Settings::default()).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    let kind = rule.kind;
    wechat.sandbox.add_faults(vec![rule]).unwrap();
    let body = wechat.message(&form_id).to_string();
    let reply = wechat.call("POST", &format!("{SEND}?access_token={token}"), &body).await;

    let books = wechat.books();
    assert_eq!((books.calls, books.faults[kind.name()]), (1, 1));
    assert_eq!(books.delivered > 0, kind.processes(), "{kind:?}");
    wechat.sandbox.clear_faults();
    let again = wechat.send(&token, wechat.message(&form_id)).await;
    assert_eq!(again, if kind.processes() { 41029 } else { 0 }, "{kind:?}");
    (reply, books.delivered)
}

async fn answered(rule: Rule) -> (Reply, u64) {
    let (reply, delivered) = one_send(rule).await;
    (reply.unwrap().unwrap(), delivered)
}

#[tokio::test]
async fn forced_answer_spends_nothing() {
    let (reply, delivered) = answered(Rule { errcode: Some(40037), ..Rule::new(FaultKind::Answer) }).await;
    assert_eq!((reply.status, code(&reply.json()), delivered), (200, 40037, 0));
}

#[tokio::test]
async fn http_500_comes_before_or_after_the_delivery() {
    for (kind, deliveries) in [(FaultKind::Http500Before, 0), (FaultKind::Http500After, 1)] {
        let (reply, delivered) = answered(Rule::new(kind)).await;
        assert_eq!((reply.status, delivered), (500, deliveries), "{kind:?}");
    }
}

#[tokio::test]
async fn html_comes_before_or_after_the_delivery() {
    for (kind, deliveries) in [(FaultKind::NotJsonBefore, 0), (FaultKind::NotJsonAfter, 1)] {
        let (reply, delivered) = answered(Rule::new(kind)).await;
        assert_eq!((reply.status, delivered), (200, deliveries), "{kind:?}");
        assert!(reply.body.starts_with("<html>") && reply.head.contains("text/html"), "{reply:?}");
    }
}

#[tokio::test]
async fn cut_connection_gives_no_answer() {
    for (kind, deliveries) in [(FaultKind::CutBefore, 0), (FaultKind::CutAfter, 1)] {
        let (reply, delivered) = one_send(Rule::new(kind)).await;
        assert!(matches!(reply, Ok(None)), "{kind:?}: {reply:?}");
        assert_eq!(delivered, deliveries);
    }
}

#[tokio::test]
async fn kept_alive_connection_is_cut_as_well() {
    let wechat = wechat(Settings::default()).await;
    let mut stream = TcpStream::connect(wechat.address).await.unwrap();
    let request = b"GET /cgi-bin/token HTTP/1.1\r\nhost: wechat\r\n\r\n";
    let mut answer = [0; 1024];
    for _ in 0..2 {
        stream.write_all(request).await.unwrap();
        assert!(stream.read(&mut answer).await.unwrap() > 0);
    }
    let cut = Rule { endpoint: Endpoint::Token, ..Rule::new(FaultKind::CutAfter) };
    wechat.sandbox.add_faults(vec![cut]).unwrap();
    stream.write_all(request).await.unwrap();
    assert_eq!(stream.read(&mut answer).await.unwrap(), 0);
}

#[tokio::test]
async fn answer_can_be_cut_in_the_middle() {
    let (reply, delivered) = answered(Rule::new(FaultKind::CutMid)).await;
    assert_eq!((reply.status, reply.whole, delivered), (200, false, 1));
    assert_eq!(reply.body, r#"{"errcode":0,"errmsg":"#);
}

#[tokio::test]
async fn connection_can_be_reset() {
    let (reply, delivered) = one_send(Rule::new(FaultKind::ResetAfter)).await;
    assert_eq!(reply.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(delivered, 1);
}

#[tokio::test]
async fn hang_ends_in_a_cut_or_in_a_late_answer() {
    let hang = |kind| Rule { hang_ms: Some(150), ..Rule::new(kind) };
    let started = Instant::now();
    let (reply, delivered) = one_send(hang(FaultKind::HangBefore)).await;
    assert!(matches!(reply, Ok(None)), "{reply:?}");
    assert_eq!(delivered, 0);
    let (reply, delivered) = answered(hang(FaultKind::HangAfter)).await;
    assert_eq!((code(&reply.json()), delivered), (0, 1));
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn message_is_delivered_though_the_caller_disconnects() {
    let wechat = wechat(Settings::default()).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    wechat.sandbox.add_faults(vec![Rule { hang_ms: Some(60_000), ..Rule::new(FaultKind::HangAfter) }]).unwrap();
    let wechat = std::sync::Arc::new(wechat);
    let caller = tokio::spawn({
        let (wechat, body) = (wechat.clone(), wechat.message(&form_id));
        async move { wechat.send(&token, body).await }
    });
    eventually("the message is delivered", || wechat.books().delivered > 0).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    assert_eq!(wechat.books().delivered, 1);
}

#[tokio::test]
async fn redirect_has_the_location_of_its_rule() {
    let location = "http://127.0.0.1:9/elsewhere";
    let (reply, delivered) = answered(Rule { location: Some(location.into()), ..Rule::new(FaultKind::Redirect) }).await;
    assert_eq!((reply.status, delivered), (302, 0));
    assert!(reply.head.contains(&format!("location: {location}")), "{}", reply.head);
}

#[tokio::test]
async fn rules_are_set_over_http_and_apply_to_matching_calls() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    let rules = json!([
        {"kind": "answer", "name": "frozen", "errcode": 48001, "times": 1, "endpoint": "send",
         "match": {"app_id": APP, "openid": USER, "template_id": "template"}},
        {"kind": "http_500_before", "probability": 0.5, "seed": 7, "match": {"openid": "somebody-else"}},
    ]);
    let listed = wechat.post("/sandbox/faults", rules).await;
    assert_eq!(listed["faults"].as_array().unwrap().len(), 2);
    assert_eq!(wechat.get("/sandbox/faults").await, listed);

    let form_id = wechat.form(USER);
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 48001);
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 0);
    assert_eq!(wechat.books().faults, [("frozen".to_owned(), 1)].into());

    assert_eq!(wechat.ask("DELETE", "/sandbox/faults", "").await.json(), json!({"faults": []}));
}

#[tokio::test]
async fn fault_of_one_app_does_not_affect_others() {
    let wechat = wechat(Settings::default()).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    let matching = Match { app_id: Some("wx-other".into()), ..Match::default() };
    wechat.sandbox.add_faults(vec![Rule { matching, ..Rule::new(FaultKind::CutBefore) }]).unwrap();
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 0);
}

#[tokio::test]
async fn books_add_up_when_a_share_of_calls_fails() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    let some = |kind, seed| Rule { probability: Some(0.2), seed: Some(seed), ..Rule::new(kind) };
    wechat.sandbox.add_faults(vec![some(FaultKind::CutBefore, 1), some(FaultKind::CutAfter, 2)]).unwrap();
    let path = format!("{SEND}?access_token={token}");
    let mut unanswered = 0;
    for _ in 0..200 {
        let body = wechat.message(&wechat.form(USER)).to_string();
        unanswered += u64::from(wechat.call("POST", &path, &body).await.unwrap().is_none());
    }
    let books = wechat.books();
    let (before, after) = (books.faults["cut_before"], books.faults["cut_after"]);
    assert_eq!(unanswered, before + after);
    assert_eq!((books.delivered, books.unprocessed), (200 - before, before));
    assert!(before > 20 && after > 15, "{before} cut before processing, {after} after");
}

#[tokio::test]
async fn latency_delays_every_call() {
    let wechat = wechat(settings(json!({"latency_ms": 50, "jitter_ms": 10}))).await;
    let started = Instant::now();
    wechat.stable_token(false).await;
    wechat.send("wrong", json!({})).await;
    assert!(started.elapsed() >= Duration::from_millis(100));
}
