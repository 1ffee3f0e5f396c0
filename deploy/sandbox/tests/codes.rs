//! Codes on demand, and those for banned templates, repeated messages and messages in review.
#![allow(clippy::unwrap_used, reason = "a failed step of a test should end it")]

mod fixture;

use fixture::*;
use sandbox::{Endpoint, FaultKind, Rule, Settings};
use serde_json::json;

/// The codes that WeChat's documents and its users report.
const SENDS: [i32; 65] = [
    -1, 20001, 40001, 40003, 40013, 40014, 40033, 40035, 40036, 40037, 40066, 40097, 40164, 40241, 40249, 40250, 40251,
    40252, 41001, 41002, 41018, 41028, 41029, 41030, 41031, 41032, 41034, 41035, 42001, 43001, 43002, 43003, 43004,
    43005, 43019, 43101, 43104, 43107, 43108, 43116, 43117, 44002, 45002, 45009, 45011, 45029, 45035, 45102, 45103,
    45168, 45501, 47001, 47003, 48001, 48002, 48004, 50001, 50002, 50005, 61003, 61004, 61007, 61014, 61016, 61450,
];
const TOKENS: [i32; 26] = [
    -1, 40001, 40002, 40013, 40125, 40164, 40243, 41002, 41004, 43002, 45009, 45011, 45035, 47001, 48001, 50002, 50004,
    50007, 61004, 61014, 61016, 61024, 89501, 89503, 89506, 89507,
];

#[tokio::test]
async fn every_code_is_answered_with_a_text_and_spends_nothing() {
    let wechat = wechat(settings(json!({"review_ms": 600_000}))).await;
    let token = wechat.stable_token(false).await;
    wechat.grant(USER, 1);
    let body = wechat.message(&wechat.form(USER));
    let rule = |endpoint, errcode| Rule { endpoint, errcode: Some(errcode), ..Rule::new(FaultKind::Answer) };
    let answered = async |endpoint, errcode| {
        wechat.sandbox.clear_faults();
        wechat.sandbox.add_faults(vec![rule(endpoint, errcode)]).unwrap();
        let answer = match endpoint {
            Endpoint::Send => wechat.post(&format!("{SEND}?access_token={token}"), body.clone()).await,
            Endpoint::Subscribe => wechat.subscribe_answer(&token, wechat.subscription(USER)).await,
            _ => wechat.post(STABLE, stable_request(false)).await,
        };
        assert_eq!(code(&answer), errcode);
        text(&answer["errmsg"])
    };
    for (endpoint, codes) in
        [(Endpoint::Send, &SENDS[..]), (Endpoint::Subscribe, &SENDS[..]), (Endpoint::Token, &TOKENS[..])]
    {
        for errcode in codes {
            let said = answered(endpoint, *errcode).await;
            assert!(!said.starts_with("refused") && !said.contains("{}"), "{errcode}: {said}");
        }
    }
    assert_eq!((wechat.books().delivered, wechat.books().uses.left, wechat.books().grants.left), (0, 1, 1));
}

#[tokio::test]
async fn rule_says_what_the_text_names() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    for (errcode, detail, expected) in [
        (40164, "203.0.113.7", "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist"),
        (47003, "data.number2.value is empty", "argument invalid! data.number2.value is empty"),
    ] {
        let rule = json!([{"kind": "answer", "errcode": errcode, "detail": detail, "times": 1}]);
        wechat.post("/sandbox/faults", rule).await;
        let answer = wechat.post(&format!("{SEND}?access_token={token}"), json!({})).await;
        assert!(text(&answer["errmsg"]).starts_with(expected), "{answer}");
    }
}

#[tokio::test]
async fn banned_template_is_refused_by_both_endpoints() {
    let wechat = wechat(Settings::default()).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    wechat.grant(USER, 1);
    let change =
        |banned| wechat.sandbox.change_settings(json!({"banned_templates": banned}).as_object().cloned().unwrap());
    let send = async || {
        let sent = wechat.send(&token, wechat.message(&form_id)).await;
        (sent, wechat.subscribe(&token, wechat.subscription(USER)).await)
    };
    change(vec!["template"]).unwrap();
    assert_eq!(send().await, (43116, 43116));
    change(vec!["another"]).unwrap();
    assert_eq!(send().await, (0, 0));
}

#[tokio::test]
async fn repeated_message_is_refused_for_the_set_time_and_spends_nothing() {
    let wechat = wechat(settings(json!({"same_message_seconds": 60}))).await;
    let token = wechat.stable_token(false).await;
    wechat.grant(USER, 3);
    let (once, other) = (wechat.subscription(USER), wechat.subscription(USER));
    let send = async |body: &serde_json::Value| wechat.subscribe(&token, body.clone()).await;
    assert_eq!((send(&once).await, send(&once).await, send(&other).await), (0, 40241, 0));
    assert_eq!((wechat.books().grants.left, wechat.books().delivered_twice), (1, 0));
    wechat.sandbox.change_settings(json!({"clock_ahead_seconds": 61}).as_object().cloned().unwrap()).unwrap();
    assert_eq!((send(&once).await, wechat.books().delivered_twice), (0, 1));
}

#[tokio::test]
async fn message_in_review_is_delivered_later_by_itself() {
    let wechat = wechat(settings(json!({"review_ms": 300}))).await;
    let token = wechat.stable_token(false).await;
    wechat.grant(USER, 2);
    let rule = |endpoint| Rule { endpoint, errcode: Some(40252), times: Some(1), ..Rule::new(FaultKind::Answer) };
    wechat.sandbox.add_faults(vec![rule(Endpoint::Send), rule(Endpoint::Subscribe)]).unwrap();
    assert_eq!(wechat.send(&token, wechat.message(&wechat.form(USER))).await, 40252);
    assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 40252);
    // It keeps no other message to the user back.
    assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 0);
    eventually("both messages have passed", || wechat.books().delivered == 3).await;
    assert_eq!((wechat.books().uses.left, wechat.books().grants.left), (0, 0));
}
