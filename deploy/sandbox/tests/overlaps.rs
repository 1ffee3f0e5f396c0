//! One `subscribe/send` at a time for a user.
#![allow(clippy::unwrap_used, reason = "a failed step of a test should end it")]

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use fixture::*;
use sandbox::{Endpoint, FaultKind, Rule, Settings};
use serde_json::json;

/// Sends to these users concurrently, and returns the errcodes, sorted.
async fn sends(wechat: &Arc<WeChat>, users: &[&'static str]) -> Vec<i32> {
    let token = wechat.stable_token(false).await;
    let mut calls = Vec::new();
    for &openid in users {
        let (wechat, token) = (Arc::clone(wechat), token.clone());
        calls.push(tokio::spawn(async move { wechat.subscribe(&token, wechat.subscription(openid)).await }));
    }
    let mut codes = Vec::new();
    for call in calls {
        codes.push(call.await.unwrap());
    }
    codes.sort_unstable();
    codes
}

#[tokio::test]
async fn second_concurrent_call_for_a_user_is_refused_and_spends_nothing() {
    let wechat = Arc::new(wechat(settings(json!({"latency_ms": 2000}))).await);
    wechat.grant("a", 5);
    wechat.grant("b", 5);
    assert_eq!(sends(&wechat, &["a", "a", "b", "a"]).await, [0, 0, 43108, 43108]);
    let books = wechat.books();
    assert_eq!((books.overlaps, books.subscribe_answers[&43108], books.grants.spent), (2, 2, 2));
    assert_eq!(sends(&wechat, &["a"]).await, [0], "the turn was given back");
    assert_eq!(wechat.books().overlaps, 2);
}

#[tokio::test]
async fn sequential_calls_never_overlap() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    wechat.grant(USER, 50);
    for _ in 0..50 {
        assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 0);
    }
    assert_eq!(wechat.books().overlaps, 0);
}

#[tokio::test]
async fn hanging_call_keeps_its_turn_only_until_it_is_processed() {
    for (kind, expected) in [(FaultKind::HangBefore, 43108), (FaultKind::HangAfter, 0)] {
        let wechat = Arc::new(wechat(Settings::default()).await);
        wechat.grant(USER, 5);
        let hang = Rule { endpoint: Endpoint::Subscribe, hang_ms: Some(1500), times: Some(1), ..Rule::new(kind) };
        wechat.sandbox.add_faults(vec![hang]).unwrap();
        let token = wechat.stable_token(false).await;
        let path = format!("{SUBSCRIBE}?access_token={token}");
        let hanging = tokio::spawn({
            let (wechat, body) = (Arc::clone(&wechat), wechat.subscription(USER).to_string());
            async move { wechat.call("POST", &path, &body).await }
        });
        eventually("the fault fired", || wechat.books().faults.contains_key(kind.name())).await;
        assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, expected, "{kind:?}");
        assert_eq!(hanging.await.unwrap().unwrap().is_some(), kind.processes());
        assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 0, "{kind:?}");
        assert_eq!(wechat.books().overlaps, u64::from(expected == 43108));
    }
}

#[tokio::test]
async fn disconnected_caller_gives_its_turn_back() {
    let wechat = Arc::new(wechat(Settings::default()).await);
    wechat.grant(USER, 1);
    let token = wechat.stable_token(false).await;
    wechat.sandbox.set_settings(settings(json!({"latency_ms": 60_000}))).unwrap();
    let leaving = tokio::spawn({
        let (wechat, token, body) = (Arc::clone(&wechat), token.clone(), wechat.subscription(USER));
        async move { wechat.subscribe(&token, body).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    leaving.abort();
    wechat.sandbox.set_settings(Settings::default()).unwrap();
    let mut code = 43108;
    while code == 43108 {
        code = wechat.subscribe(&token, wechat.subscription(USER)).await;
    }
    assert_eq!(code, 0);
}

#[tokio::test]
async fn sends_with_form_ids_need_no_turn() {
    let wechat = Arc::new(wechat(settings(json!({"latency_ms": 200}))).await);
    let token = wechat.stable_token(false).await;
    let send = || {
        let (wechat, token, form_id) = (Arc::clone(&wechat), token.clone(), wechat.form(USER));
        tokio::spawn(async move { wechat.send(&token, wechat.message(&form_id)).await })
    };
    let (one, two) = (send(), send());
    assert_eq!((one.await.unwrap(), two.await.unwrap(), wechat.books().overlaps), (0, 0, 0));
}
