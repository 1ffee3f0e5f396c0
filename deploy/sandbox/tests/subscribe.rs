//! The requests that `subscribe/send` accepts, and its errcode for each invalid one.
#![allow(clippy::unwrap_used, reason = "a failed step of a test should end it")]

mod fixture;

use fixture::*;
use sandbox::{Endpoint, FaultKind, Granting, Kind, Match, Reading, Rule, Settings, Subscription};
use serde_json::{Value, json};

#[tokio::test]
async fn grant_allows_one_message() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    wechat.grant(USER, 1);
    let body = wechat.subscription(USER);
    let answer = wechat.subscribe_answer(&token, body.clone()).await;
    assert_eq!((code(&answer), answer["errmsg"].as_str()), (0, Some("ok")));
    let refused = wechat.subscribe_answer(&token, body).await;
    assert_eq!(code(&refused), 43101);
    assert!(text(&refused["errmsg"]).starts_with("user refuse to accept the msg rid: "), "{refused}");

    let delivered = wechat.sandbox.deliveries(APP, &Reading::default()).unwrap();
    assert_eq!(delivered.len(), 1);
    let only = &delivered[0];
    assert_eq!((only.number, only.kind, only.form_id.as_str()), (1, Kind::Grant, ""));
    assert_eq!((only.openid.as_str(), only.template_id.as_str()), (USER, "template"));
    assert_eq!((only.page.as_deref(), only.data["thing2"].value.as_str()), (Some("pages/index?from=test"), "text"));
    assert_eq!((only.miniprogram_state.as_deref(), only.lang.as_deref()), (Some("trial"), Some("en_US")));
    assert_eq!(only.msgid, answer["msgid"].as_u64());
}

#[tokio::test]
async fn grant_works_only_for_its_user_template_and_app() {
    let wechat = wechat(Settings::default()).await;
    wechat.sandbox.add_app("wx-other", "other-secret").unwrap();
    wechat.sandbox.grant("wx-other", vec![Granting::new(USER, "template")]).unwrap();
    let token = wechat.stable_token(false).await;
    wechat.sandbox.grant(APP, vec![Granting::new(USER, "other"), Granting::new("openid-2", "template")]).unwrap();
    assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 43101);
    assert_eq!(wechat.subscribe(&token, wechat.subscription("openid-2")).await, 0);
    assert_eq!(wechat.sandbox.books(None).unwrap().grants.left, 2);
}

#[tokio::test]
async fn grants_are_added_and_revoked_over_http() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    let post = async |path: &str, list: Value| {
        let name = path.rsplit_once('/').unwrap().1;
        assert_eq!(wechat.post(path, json!({"app_id": APP, name: list})).await, json!({}));
    };
    let send = async || wechat.subscribe(&token, wechat.subscription(USER)).await;
    let one = json!({"openid": USER, "template_id": "template"});
    post("/sandbox/grants", json!([one, {"openid": USER, "template_id": "template", "count": 2}])).await;
    assert_eq!(send().await, 0);
    assert_eq!(wechat.books().grants.left, 2, "accepts add up");
    for end in ["/sandbox/rejections", "/sandbox/withdrawals"] {
        post(end, json!([one])).await;
        assert_eq!(send().await, 43101, "{end}");
        post("/sandbox/grants", json!([{"openid": USER, "template_id": "template", "long_term": true}])).await;
        assert_eq!([send().await, send().await, send().await], [0, 0, 0], "{end}");
    }
    let grants = wechat.books().grants;
    assert_eq!((grants.accepted, grants.spent, grants.voided, grants.long_term_spent), (3, 1, 2, 6));
}

#[tokio::test]
async fn each_wrong_part_has_its_code_and_spends_nothing() {
    let wechat = wechat(settings(json!({"templates": ["template"]}))).await;
    let token = wechat.stable_token(false).await;
    wechat.grant(USER, 1);
    wechat.form("openid-2");
    let changed = |change: Value| {
        let mut body = wechat.subscription(USER);
        body.as_object_mut().unwrap().extend(change.as_object().cloned().unwrap());
        body
    };
    for (change, expected) in [
        (json!({"touser": 7}), 47001),
        (json!({"lang": 7}), 47001),
        (json!({"miniprogram_state": ["formal"]}), 47001),
        (json!({"form_id": "f"}), 47001),
        (json!({"touser": "stranger"}), 40003),
        (json!({"touser": null}), 40003),
        (json!({"template_id": "other"}), 40037),
        (json!({"template_id": null}), 40037),
        (json!({"page": "https://example.com"}), 41030),
        (json!({"data": ["thing1"]}), 47003),
        (json!({"data": {}}), 47003),
        (json!({"data": {"thing1": {"value": 7}}}), 47003),
        (json!({"data": {"thing1": {"value": ""}}}), 47003),
        (json!({"data": {"thing1": {"value": "x", "color": "#173177"}}}), 47003),
        (json!({"data": {"phrase1": {"value": "一二三四五六"}}}), 47003),
        (json!({"miniprogram_state": "release"}), 47003),
        (json!({"lang": "zh"}), 47003),
        (json!({"touser": "openid-2"}), 43101),
    ] {
        assert_eq!(wechat.subscribe(&token, changed(change.clone())).await, expected, "{change}");
    }
    let path = format!("{SUBSCRIBE}?access_token={token}");
    for body in ["", "{", "[]", "\"text\""] {
        assert_eq!(code(&wechat.ask("POST", &path, body).await.json()), 47001, "{body}");
    }
    for (change, expected) in [
        (json!({"data": {"thing3": {"value": "x".repeat(21)}}}), "data.thing3.value invalid"),
        (json!({"data": {"thing3": {"value": ""}}}), "data.thing3.value is empty"),
        (json!({"lang": "zh"}), "lang"),
    ] {
        let answer = wechat.subscribe_answer(&token, changed(change)).await;
        assert!(text(&answer["errmsg"]).starts_with(&format!("argument invalid! {expected} rid: ")), "{answer}");
    }
    assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 0);
    let books = wechat.books();
    assert_eq!((books.calls, books.subscribe_calls, books.subscribe_answers[&47003]), (26, 26, 11));
}

#[tokio::test]
async fn token_is_checked_first() {
    let wechat = wechat(Settings::default()).await;
    for (query, expected) in [("", 41001), ("?access_token=", 41001), ("?access_token=never-issued", 40001)] {
        assert_eq!(code(&wechat.ask("POST", &format!("{SUBSCRIBE}{query}"), "nonsense").await.json()), expected);
    }
    wechat.grant(USER, 1);
    let token = wechat.stable_token(false).await;
    wechat.sandbox.set_settings(settings(json!({"clock_ahead_seconds": 7200}))).unwrap();
    assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 42001);
    let all = wechat.sandbox.books(None).unwrap();
    assert_eq!((all.subscribe_calls, all.subscribe_answers[&41001], all.grants.left), (4, 2, 1));
}

#[tokio::test]
async fn message_ids_increase_over_all_apps() {
    let wechat = wechat(Settings::default()).await;
    wechat.sandbox.add_app("wx-other", "other-secret").unwrap();
    let long_term = || vec![Granting { long_term: true, ..Granting::new(USER, "template") }];
    wechat.sandbox.grant(APP, long_term()).unwrap();
    wechat.sandbox.grant("wx-other", long_term()).unwrap();
    let request = json!({"grant_type": "client_credential", "appid": "wx-other", "secret": "other-secret"});
    let tokens = [wechat.stable_token(false).await, text(&wechat.post(STABLE, request).await["access_token"])];
    let mut ids = Vec::new();
    for token in tokens.iter().cycle().take(6) {
        ids.push(wechat.subscribe_answer(token, wechat.subscription(USER)).await["msgid"].as_u64().unwrap());
    }
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

#[tokio::test]
async fn same_message_by_form_id_and_by_grant_is_a_repeat() {
    let wechat = wechat(Settings::default()).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    wechat.grant(USER, 1);
    let mut body = json!({"touser": USER, "template_id": "template", "data": {"thing1": {"value": "x"}}});
    assert_eq!(wechat.subscribe(&token, body.clone()).await, 0);
    body["form_id"] = form_id.into();
    assert_eq!(wechat.send(&token, body).await, 0);
    let books = wechat.books();
    assert_eq!((books.delivered, books.delivered_twice, books.calls, books.subscribe_calls), (2, 1, 2, 1));
}

#[tokio::test]
async fn each_endpoint_has_its_own_rate() {
    let wechat = wechat(settings(json!({"subscribe_per_second": 1}))).await;
    let token = wechat.stable_token(false).await;
    wechat.grant(USER, 9);
    let id = wechat.submit(sandbox::Submission { uses: Some(9), ..sandbox::Submission::prepay(USER) });
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(wechat.subscribe(&token, wechat.subscription(USER)).await);
        assert_eq!(wechat.send(&token, wechat.message(&id)).await, 0);
    }
    assert!(codes.contains(&45011) && codes.iter().all(|code| [0, 45011].contains(code)), "{codes:?}");
}

#[tokio::test]
async fn rule_applies_only_to_its_endpoint() {
    let wechat = wechat(Settings::default()).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    wechat.grant(USER, 2);
    let matching = || Match { openid: Some(USER.into()), template_id: Some("template".into()), ..Match::default() };
    let answer = |errcode, endpoint| Rule {
        errcode: Some(errcode),
        endpoint,
        matching: matching(),
        times: Some(1),
        ..Rule::new(FaultKind::Answer)
    };
    wechat.sandbox.add_faults(vec![answer(40037, Endpoint::Send)]).unwrap();
    assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 0);
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 40037);
    let rules = json!([{"kind": "answer", "errcode": 43107, "endpoint": "subscribe", "times": 1,
                        "match": {"openid": USER, "template_id": "template"}}]);
    wechat.post("/sandbox/faults", rules).await;
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 0);
    assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, 43107);
    assert_eq!(wechat.books().grants.left, 1);
}

#[tokio::test]
async fn lost_answer_has_spent_the_grant_only_if_processed() {
    for (kind, then) in [(FaultKind::CutBefore, 0), (FaultKind::CutAfter, 43101), (FaultKind::Http500After, 43101)] {
        let wechat = wechat(Settings::default()).await;
        let token = wechat.stable_token(false).await;
        wechat.grant(USER, 1);
        let rule = Rule { endpoint: Endpoint::Subscribe, times: Some(1), ..Rule::new(kind) };
        wechat.sandbox.add_faults(vec![rule]).unwrap();
        let path = format!("{SUBSCRIBE}?access_token={token}");
        let reply = wechat.call("POST", &path, &wechat.subscription(USER).to_string()).await.unwrap();
        assert!(reply.is_none_or(|reply| reply.status == 500), "{kind:?}");
        assert_eq!(wechat.subscribe(&token, wechat.subscription(USER)).await, then, "{kind:?}");
        let books = wechat.books();
        assert_eq!((books.delivered, books.subscribe_calls, books.faults[kind.name()]), (1, 2, 1), "{kind:?}");
        assert_eq!(books.subscribe_unprocessed, u64::from(!kind.processes()), "{kind:?}");
    }
}

#[tokio::test]
async fn user_who_only_rejected_is_known() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    assert_eq!(wechat.subscribe(&token, wechat.subscription("new")).await, 40003);
    wechat.sandbox.reject(APP, vec![Subscription::new("new", "template")]).unwrap();
    assert_eq!(wechat.subscribe(&token, wechat.subscription("new")).await, 43101);
}
