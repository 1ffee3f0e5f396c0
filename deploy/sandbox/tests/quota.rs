//! `openapi/quota/get`: what it answers about the daily quota, and which calls it refuses.
#![allow(clippy::unwrap_used, reason = "a failed step of a test should end it")]

mod fixture;

use fixture::*;
use sandbox::{Endpoint, FaultKind, Match, Rule, Settings, Submission};
use serde_json::{Value, json};

const QUOTA: &str = "/cgi-bin/openapi/quota/get";
const DAY: u64 = 24 * 3600;

/// Asks for the quota of a path, and returns the answer.
async fn ask_about(path: &str, wechat: &WeChat, token: &str) -> Value {
    wechat.post(&format!("{QUOTA}?access_token={token}"), json!({"cgi_path": path})).await
}

async fn ask(wechat: &WeChat, token: &str) -> Value {
    ask_about(SEND, wechat, token).await
}

/// The daily limit of `template/send`, the number of calls used, and the number that remains.
async fn quota(wechat: &WeChat, token: &str) -> [u64; 3] {
    quota_of(SEND, wechat, token).await
}

async fn quota_of(path: &str, wechat: &WeChat, token: &str) -> [u64; 3] {
    let answer = ask_about(path, wechat, token).await;
    assert_eq!(code(&answer), 0, "{answer}");
    ["daily_limit", "used", "remain"].map(|field| answer["quota"][field].as_u64().unwrap())
}

/// How many seconds to set the clock ahead so that it is noon in China and no midnight falls into the test.
fn to_noon() -> u64 {
    let since_midnight = (unix_seconds() + 8 * 3600) % DAY;
    (DAY + DAY / 2 - since_midnight) % DAY
}

#[tokio::test]
async fn sends_use_the_quota_and_quota_calls_do_not() {
    let wechat = wechat(settings(json!({"daily_quota": 3, "clock_ahead_seconds": to_noon()}))).await;
    let token = wechat.stable_token(false).await;
    let id = wechat.submit(Submission { uses: Some(9), ..Submission::prepay(USER) });
    for _ in 0..5 {
        assert_eq!(quota(&wechat, &token).await, [3, 0, 3]);
    }
    assert_eq!(wechat.send(&token, wechat.message(&id)).await, 0);
    assert_eq!(wechat.send(&token, wechat.message("unknown")).await, 41028);
    assert_eq!(quota(&wechat, &token).await, [3, 2, 1], "a send that WeChat decided on has used the quota");
    assert_eq!(wechat.send(&token, wechat.message(&id)).await, 0);
    assert_eq!(wechat.send(&token, wechat.message(&id)).await, 45009);
    assert_eq!(quota(&wechat, &token).await, [3, 3, 0], "a send refused with 45009 has not");

    let books = wechat.books();
    assert_eq!((books.calls, books.quota_queries), (4, 7));
}

#[tokio::test]
async fn used_is_reset_at_midnight_in_china_and_when_the_quota_is_set() {
    let noon = to_noon();
    let set = json!({"daily_quota": 5, "clock_ahead_seconds": noon, "token_life_seconds": 3 * DAY});
    let wechat = wechat(settings(set)).await;
    let token = wechat.stable_token(false).await;
    let send = async || wechat.send(&token, wechat.message(&wechat.form(USER))).await;
    let change = async |fields: Value| {
        assert_eq!(wechat.ask("PUT", "/sandbox/settings", &fields.to_string()).await.status, 200);
    };
    assert_eq!(send().await, 0);
    change(json!({"clock_ahead_seconds": noon + DAY / 2 - 3600})).await;
    assert_eq!(quota(&wechat, &token).await, [5, 1, 4], "eleven in the evening");
    change(json!({"clock_ahead_seconds": noon + DAY / 2 + 3600})).await;
    assert_eq!(quota(&wechat, &token).await, [5, 0, 5], "one in the morning");

    assert_eq!(send().await, 0);
    assert_eq!(quota(&wechat, &token).await, [5, 1, 4]);
    change(json!({"daily_quota": 8})).await;
    assert_eq!(quota(&wechat, &token).await, [8, 0, 8]);
}

const CLEAR: &str = "/cgi-bin/clear_quota";

#[tokio::test]
async fn clear_quota_resets_both_quotas_ten_times_a_month() {
    let set = json!({"daily_quota": 1, "subscribe_daily_quota": 1, "clock_ahead_seconds": to_noon(), "token_life_seconds": 99 * DAY});
    let wechat = wechat(settings(set)).await;
    let token = wechat.stable_token(false).await;
    let id = wechat.submit(Submission { uses: Some(9), ..Submission::prepay(USER) });
    wechat.grant(USER, 9);
    let send = async || wechat.send(&token, wechat.message(&id)).await;
    let clear = async |body: Value| code(&wechat.post(&format!("{CLEAR}?access_token={token}"), body).await);
    assert_eq!([send().await, send().await], [0, 45009]);
    assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 0);
    assert_eq!(clear(json!({"appid": APP})).await, 0);
    assert_eq!(quota(&wechat, &token).await, [1, 0, 1]);
    assert_eq!(quota_of(SUBSCRIBE, &wechat, &token).await, [1, 0, 1]);
    assert_eq!([send().await, send().await], [0, 45009]);

    for _ in 1..10 {
        assert_eq!(clear(json!({"appid": APP})).await, 0);
    }
    assert_eq!(clear(json!({"appid": APP})).await, 48006);
    wechat.sandbox.set_settings(settings(json!({"clock_ahead_seconds": to_noon() + 31 * DAY}))).unwrap();
    assert_eq!(clear(json!({"appid": APP})).await, 0, "in the next month");
}

#[tokio::test]
async fn each_wrong_part_of_clear_quota_has_its_code() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    let path = format!("{CLEAR}?access_token={token}");
    for (body, expected) in
        [("", 47001), ("[]", 47001), (r#"{"appid": 7}"#, 47001), ("{}", 40013), (r#"{"appid": "x"}"#, 40013)]
    {
        assert_eq!(code(&wechat.ask("POST", &path, body).await.json()), expected, "{body}");
    }
    assert_eq!(code(&wechat.post(CLEAR, json!({"appid": APP})).await), 41001);
    assert_eq!(code(&wechat.get(&path).await), 43002);
}

#[tokio::test]
async fn without_a_quota_the_limit_is_the_published_one() {
    let wechat = wechat(settings(json!({"clock_ahead_seconds": to_noon()}))).await;
    let token = wechat.stable_token(false).await;
    assert_eq!(wechat.send(&token, wechat.message(&wechat.form(USER))).await, 0);
    let expected = json!({"errcode": 0, "errmsg": "ok", "quota":
        {"daily_limit": 1_000_000, "used": 1, "remain": 999_999}});
    assert_eq!(ask(&wechat, &token).await, expected);

    wechat.ask("PUT", "/sandbox/settings", r#"{"per_second": 50}"#).await;
    assert_eq!(ask(&wechat, &token).await["rate_limit"], json!({"call_count": 50, "refresh_second": 1}));
}

#[tokio::test]
async fn each_sending_endpoint_has_its_own_quota() {
    let set = json!({"daily_quota": 1, "subscribe_daily_quota": 2, "clock_ahead_seconds": to_noon()});
    let wechat = wechat(settings(set)).await;
    let token = wechat.stable_token(false).await;
    wechat.grant(USER, 9);
    let form_id = wechat.form(USER);
    let subscribe = async || wechat.subscribe(&token, wechat.subscription(USER)).await;
    assert_eq!(quota_of(SUBSCRIBE, &wechat, &token).await, [2, 0, 2]);
    assert_eq!([subscribe().await, subscribe().await, subscribe().await], [0, 0, 45009]);
    assert_eq!(quota_of(SUBSCRIBE, &wechat, &token).await, [2, 2, 0]);
    assert_eq!(quota(&wechat, &token).await, [1, 0, 1]);
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 0);
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 45009);

    wechat.ask("PUT", "/sandbox/settings", r#"{"subscribe_daily_quota": 3, "subscribe_per_second": 7}"#).await;
    assert_eq!(quota_of(SUBSCRIBE, &wechat, &token).await, [3, 0, 3], "only the quota in the request is reset");
    assert_eq!(quota(&wechat, &token).await, [1, 1, 0]);
    let rate_limit = json!({"call_count": 7, "refresh_second": 1});
    assert_eq!(ask_about(SUBSCRIBE, &wechat, &token).await["rate_limit"], rate_limit);
    assert!(ask(&wechat, &token).await.get("rate_limit").is_none());
}

#[tokio::test]
async fn default_subscribe_quota_is_ten_million_a_day() {
    let wechat = wechat(settings(json!({"clock_ahead_seconds": to_noon()}))).await;
    let token = wechat.stable_token(false).await;
    assert_eq!(quota_of(SUBSCRIBE, &wechat, &token).await, [10_000_000, 0, 10_000_000]);
}

#[tokio::test]
async fn each_app_has_its_own_quota() {
    let wechat = wechat(settings(json!({"daily_quota": 5, "clock_ahead_seconds": to_noon()}))).await;
    wechat.sandbox.add_app("wx-other", "other-secret").unwrap();
    let request = json!({"grant_type": "client_credential", "appid": "wx-other", "secret": "other-secret"});
    let other = text(&wechat.post(STABLE, request).await["access_token"]);
    let token = wechat.stable_token(false).await;
    assert_eq!(wechat.send(&token, wechat.message(&wechat.form(USER))).await, 0);
    assert_eq!(quota(&wechat, &token).await, [5, 1, 4]);
    assert_eq!(quota(&wechat, &other).await, [5, 0, 5]);
}

#[tokio::test]
async fn each_wrong_part_of_a_quota_call_has_its_code() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    let right = json!({"cgi_path": SEND}).to_string();
    for (query, expected) in [("", 41001), ("?access_token=", 41001), ("?access_token=never-issued", 40001)] {
        for body in [right.as_str(), "nonsense"] {
            assert_eq!(code(&wechat.ask("POST", &format!("{QUOTA}{query}"), body).await.json()), expected);
        }
    }
    let path = format!("{QUOTA}?access_token={token}");
    for (body, expected) in [
        ("", 47001),
        ("[\"/cgi-bin/message/wxopen/template/send\"]", 47001),
        (r#"{"cgi_path": 7}"#, 47001),
        (r#"{"cgi_path": "/cgi-bin/message/wxopen/template/send", "more": 7}"#, 47001),
        ("{}", 76021),
        (r#"{"cgi_path": ""}"#, 76021),
        (r#"{"cgi_path": "cgi-bin/message/wxopen/template/send"}"#, 76021),
        (r#"{"cgi_path": "/cgi-bin/message/subscribe"}"#, 76021),
    ] {
        assert_eq!(code(&wechat.ask("POST", &path, body).await.json()), expected, "{body}");
    }
    assert_eq!(code(&wechat.get(&path).await), 43002);
    assert_eq!((wechat.books().quota_queries, wechat.sandbox.books(None).unwrap().quota_queries), (8, 14));

    wechat.stable_token(true).await;
    assert_eq!(code(&ask(&wechat, &token).await), 40001);
    let token = wechat.stable_token(false).await;
    wechat.sandbox.set_settings(settings(json!({"clock_ahead_seconds": 7200}))).unwrap();
    assert_eq!(code(&ask(&wechat, &token).await), 42001);
}

#[tokio::test]
async fn unserved_quota_get_answers_48001_and_sends_still_work() {
    let wechat = wechat(settings(json!({"quota_get": false}))).await;
    let token = wechat.stable_token(false).await;
    assert_eq!(code(&ask(&wechat, &token).await), 48001);
    assert_eq!(code(&ask(&wechat, "never-issued").await), 40001);
    assert_eq!(wechat.send(&token, wechat.message(&wechat.form(USER))).await, 0);
}

#[tokio::test]
async fn answer_setting_of_sends_does_not_affect_quota_get() {
    let wechat = wechat(settings(json!({"answer": 45103}))).await;
    let token = wechat.stable_token(false).await;
    assert_eq!(quota(&wechat, &token).await, [1_000_000, 0, 1_000_000]);
}

#[tokio::test]
async fn only_faults_of_the_quota_endpoint_affect_quota_get() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    let matching = Match { app_id: Some(APP.into()), ..Match::default() };
    let once = |kind| Rule { endpoint: Endpoint::Quota, times: Some(1), ..Rule::new(kind) };
    let forced = Rule { errcode: Some(76022), matching, ..once(FaultKind::Answer) };
    wechat.sandbox.add_faults(vec![forced, once(FaultKind::CutAfter), once(FaultKind::CutBefore)]).unwrap();
    assert_eq!(wechat.send(&token, wechat.message(&wechat.form(USER))).await, 0);

    let answer = ask(&wechat, &token).await;
    assert_eq!(code(&answer), 76022);
    assert!(text(&answer["errmsg"]).starts_with("could not use this cgi_path"), "{answer}");
    let (path, body) = (format!("{QUOTA}?access_token={token}"), json!({"cgi_path": SEND}).to_string());
    for _ in 0..2 {
        assert!(wechat.call("POST", &path, &body).await.unwrap().is_none());
    }
    assert_eq!(code(&ask(&wechat, &token).await), 0);
    let books = wechat.books();
    assert_eq!((books.calls, books.quota_queries, books.faults["answer"]), (1, 4, 1));

    let rules = json!([{"kind": "http_500_before", "endpoint": "quota"}]);
    assert_eq!(wechat.post("/sandbox/faults", rules).await["faults"].as_array().unwrap().len(), 4);
    assert_eq!(wechat.call("POST", &path, &body).await.unwrap().unwrap().status, 500);
}
