//! The two token endpoints, and how tokens expire.
#![allow(clippy::unwrap_used, reason = "a failed step of a test should end it")]

mod fixture;

use fixture::*;
use sandbox::{Endpoint, FaultKind, Rule, Settings};
use serde_json::json;

#[tokio::test]
async fn plain_fetch_issues_a_new_token_and_leaves_a_grace_period() {
    let wechat = wechat(Settings::default()).await;
    let (first, second) = (wechat.plain_token().await, wechat.plain_token().await);
    assert_eq!((first.len(), second.len()), (512, 512));
    assert_ne!(first, second);
    for token in [&first, &second] {
        assert_eq!(wechat.send(token, wechat.message(&wechat.form(USER))).await, 0);
    }
    wechat.sandbox.set_settings(settings(json!({"clock_ahead_seconds": 300}))).unwrap();
    assert_eq!(wechat.send(&first, wechat.message("any")).await, 42001);
    assert_eq!(wechat.send(&second, wechat.message(&wechat.form(USER))).await, 0);
}

#[tokio::test]
async fn token_expires_after_its_lifetime() {
    let wechat = wechat(settings(json!({"token_life_seconds": 60}))).await;
    let (plain, stable) = (wechat.plain_token().await, wechat.stable_token(false).await);
    wechat.sandbox.set_settings(settings(json!({"clock_ahead_seconds": 60}))).unwrap();
    for token in [plain, stable] {
        assert_eq!(wechat.send(&token, wechat.message("any")).await, 42001);
    }
}

#[tokio::test]
async fn stable_token_stays_until_a_forced_refresh() {
    let wechat = wechat(Settings::default()).await;
    let first = wechat.stable_token(false).await;
    assert_eq!(wechat.stable_token(false).await, first);
    let answer = wechat.post(STABLE, stable_request(false)).await;
    assert!((7190..=7200).contains(&answer["expires_in"].as_u64().unwrap()), "{answer}");

    let forced = wechat.stable_token(true).await;
    assert_ne!(forced, first);
    assert_eq!(wechat.send(&first, wechat.message("any")).await, 40001);
    assert_eq!(wechat.send(&forced, wechat.message(&wechat.form(USER))).await, 0);
    assert_eq!(wechat.books().token_fetches, 4);
}

#[tokio::test]
async fn wrong_credentials_have_their_codes() {
    let wechat = wechat(Settings::default()).await;
    let right = json!({"grant_type": "client_credential", "appid": APP, "secret": SECRET});
    for (field, value, expected) in [
        ("grant_type", "authorization_code", 40002),
        ("grant_type", "", 40002),
        ("appid", "wx-unheard-of", 40013),
        ("appid", "", 41002),
        ("secret", "wrong", 40125),
        ("secret", "", 41004),
    ] {
        let mut wrong = right.clone();
        wrong[field] = value.into();
        assert_eq!(code(&wechat.post(STABLE, wrong.clone()).await), expected, "{wrong}");
        let part = |name: &str| text(&wrong[name]);
        let query = format!("grant_type={}&appid={}&secret={}", part("grant_type"), part("appid"), part("secret"));
        assert_eq!(code(&wechat.get(&format!("/cgi-bin/token?{query}")).await), expected, "{query}");
    }
    assert_eq!(code(&wechat.get("/cgi-bin/token").await), 40002);
    for body in ["", "[]", r#"{"appid": 7}"#, r#"{"force_refresh": "yes"}"#, r#"{"force": true}"#] {
        assert_eq!(code(&wechat.ask("POST", STABLE, body).await.json()), 47001, "{body}");
    }
    let books = wechat.books();
    assert_eq!(
        (books.token_fetches, books.token_answers[&40125]),
        (8, 2),
        "calls with a known app id count for the app"
    );
    assert_eq!(wechat.sandbox.books(None).unwrap().token_answers[&47001], 5);
}

#[tokio::test]
async fn secret_of_an_app_can_change() {
    let wechat = wechat(Settings::default()).await;
    assert_eq!(wechat.post("/sandbox/apps", json!({"app_id": APP, "secret": "changed"})).await, json!({}));
    assert_eq!(code(&wechat.post(STABLE, stable_request(false)).await), 40125);
}

#[tokio::test]
async fn errcodes_can_be_forced_on_token_calls_only() {
    let wechat = wechat(Settings::default()).await;
    let form_id = wechat.form(USER);
    let token = wechat.stable_token(false).await;
    for errcode in [40164, 89503, -1] {
        let forced =
            Rule { errcode: Some(errcode), endpoint: Endpoint::Token, times: Some(1), ..Rule::new(FaultKind::Answer) };
        wechat.sandbox.add_faults(vec![forced]).unwrap();
        assert_eq!(code(&wechat.post(STABLE, stable_request(false)).await), errcode);
    }
    assert_eq!(wechat.stable_token(false).await, token);
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 0);
    let books = wechat.books();
    assert_eq!((books.faults["answer"], books.token_answers[&89503], books.token_answers[&0]), (3, 1, 2));
}

#[tokio::test]
async fn token_call_can_be_cut_before_and_after_issuing() {
    let wechat = wechat(Settings::default()).await;
    for kind in [FaultKind::CutBefore, FaultKind::CutAfter] {
        wechat.sandbox.add_faults(vec![Rule { endpoint: Endpoint::Token, times: Some(1), ..Rule::new(kind) }]).unwrap();
        let reply = wechat.call("POST", STABLE, &stable_request(true).to_string()).await.unwrap();
        assert!(reply.is_none(), "{reply:?}");
    }
    let books = wechat.books();
    assert_eq!((books.token_fetches, books.token_unprocessed, books.token_answers[&0]), (2, 1, 1));
}

#[tokio::test]
async fn token_server_gives_the_stable_token_until_it_is_reported() {
    let wechat = wechat(Settings::default()).await;
    let stable = wechat.stable_token(false).await;
    let ask = async |query: &str| {
        let answer = wechat.get(&format!("/sandbox/token?app_id={APP}{query}")).await;
        assert!(answer["expires_in"].as_u64().unwrap() > 7000, "{answer}");
        answer["access_token"].as_str().unwrap().to_owned()
    };
    assert_eq!((ask("").await, ask("&invalid=another").await), (stable.clone(), stable.clone()));
    let next = ask(&format!("&invalid={stable}")).await;
    assert!(next != stable && next == wechat.stable_token(false).await);
    assert_eq!((wechat.send(&stable, json!({})).await, ask(&format!("&invalid={stable}")).await), (40001, next));
}
