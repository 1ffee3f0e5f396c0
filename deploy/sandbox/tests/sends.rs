//! The requests that `template/send` accepts, and its errcode for each invalid one.
#![allow(clippy::unwrap_used, reason = "a failed step of a test should end it")]

mod fixture;

use std::collections::HashSet;

use fixture::*;
use sandbox::{Kind, Reading, Settings, Submission};
use serde_json::{Value, json};

const DAY: u64 = 24 * 3600;

#[tokio::test]
async fn message_with_a_form_id_is_delivered_once() {
    let wechat = wechat(Settings::default()).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    let body = wechat.message(&form_id);
    assert_eq!(wechat.send(&token, body.clone()).await, 0);
    assert_eq!(wechat.send(&token, body).await, 41029);

    let delivered = wechat.sandbox.deliveries(APP, &Reading::default()).unwrap();
    assert_eq!(delivered.len(), 1);
    let only = &delivered[0];
    assert_eq!((only.number, only.kind, only.form_id.as_str()), (1, Kind::Form, form_id.as_str()));
    assert_eq!((only.openid.as_str(), only.page.as_deref()), (USER, Some("pages/index?from=test")));
    assert_eq!(only.data["keyword2"].color.as_deref(), Some("#173177"));
    assert_eq!(only.emphasis_keyword.as_deref(), Some("keyword1.DATA"));
    assert!(unix_seconds() - only.at < 10);
}

#[tokio::test]
async fn payment_allows_three_messages_or_its_given_uses() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    for (submission, uses) in
        [(Submission::prepay(USER), 3), (Submission { uses: Some(1), ..Submission::prepay(USER) }, 1)]
    {
        let id = wechat.submit(submission);
        for _ in 0..uses {
            assert_eq!(wechat.send(&token, wechat.message(&id)).await, 0);
        }
        assert_eq!(wechat.send(&token, wechat.message(&id)).await, 41029);
    }
    let books = wechat.books();
    assert_eq!((books.delivered, books.uses.left, books.ids.spent), (4, 0, 2));
}

#[tokio::test]
async fn each_wrong_part_of_a_send_has_its_code_and_spends_nothing() {
    let wechat = wechat(settings(json!({"templates": ["template"]}))).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    wechat.form("openid-2");
    let changed = |change: Value| {
        let mut body = wechat.message(&form_id);
        body.as_object_mut().unwrap().extend(change.as_object().cloned().unwrap());
        body
    };
    for (change, expected) in [
        (json!({"touser": 7}), 47001),
        (json!({"unheard_of": 7}), 47001),
        (json!({"touser": "stranger"}), 40003),
        (json!({"touser": null}), 40003),
        (json!({"touser": ""}), 40003),
        (json!({"template_id": "other"}), 40037),
        (json!({"template_id": null}), 40037),
        (json!({"page": "https://example.com"}), 41030),
        (json!({"page": format!("p{}", "x".repeat(1024))}), 41030),
        (json!({"data": {"keyword1": {"value": 7}}}), 47003),
        (json!({"data": ["keyword1"]}), 47003),
        (json!({"emphasis_keyword": "keyword3.DATA"}), 47003),
        (json!({"form_id": "unheard-of"}), 41028),
        (json!({"form_id": ""}), 41028),
        (json!({"touser": "openid-2"}), 41028),
    ] {
        assert_eq!(wechat.send(&token, changed(change.clone())).await, expected, "{change}");
    }
    let path = format!("{SEND}?access_token={token}");
    for body in ["", "{", "[]", "\"text\""] {
        assert_eq!(code(&wechat.ask("POST", &path, body).await.json()), 47001, "{body}");
    }
    let answer = wechat.post(&path, changed(json!({"data": {"keyword1": {"value": 7}}}))).await;
    assert!(text(&answer["errmsg"]).starts_with("argument invalid! data.keyword1.value rid: "), "{answer}");

    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 0);
    let books = wechat.books();
    assert_eq!((books.calls, books.delivered, books.answers[&47003]), (21, 1, 4));
}

#[tokio::test]
async fn optional_fields_of_a_message_may_be_absent() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    for extra in [
        json!({}),
        json!({"page": null, "data": null, "emphasis_keyword": null}),
        json!({"page": "", "emphasis_keyword": ""}),
    ] {
        let mut body = json!({"touser": USER, "template_id": "t", "form_id": wechat.form(USER)});
        body.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap());
        assert_eq!(wechat.send(&token, body).await, 0, "{extra}");
    }
    let books = wechat.books();
    assert_eq!((books.messages, books.delivered_twice), (1, 2), "the three messages look the same to the user");
}

#[tokio::test]
async fn token_is_checked_first() {
    let wechat = wechat(Settings::default()).await;
    for (query, expected) in [("", 41001), ("?access_token=", 41001), ("?access_token=never-issued", 40001)] {
        assert_eq!(code(&wechat.ask("POST", &format!("{SEND}{query}"), "nonsense").await.json()), expected);
    }
    assert_eq!(wechat.books().calls, 0, "the app of these calls is unknown");
    let all = wechat.sandbox.books(None).unwrap();
    assert_eq!((all.calls, all.answers[&41001], all.answers[&40001]), (3, 2, 1));
}

#[tokio::test]
async fn id_works_only_in_the_app_it_was_submitted_to() {
    let wechat = wechat(Settings::default()).await;
    wechat.sandbox.add_app("wx-other", "other-secret").unwrap();
    let form_id = wechat.form(USER);
    wechat.sandbox.submit("wx-other", vec![Submission::form(USER)]).unwrap();
    let request = json!({"grant_type": "client_credential", "appid": "wx-other", "secret": "other-secret"});
    let other = text(&wechat.post(STABLE, request).await["access_token"]);
    assert_eq!(wechat.send(&other, wechat.message(&form_id)).await, 41028);
    let token = wechat.stable_token(false).await;
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 0);
}

#[tokio::test]
async fn id_expires_after_seven_days() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    let aged = |seconds: u64| {
        wechat.submit(Submission { submitted_at: Some(unix_seconds() - seconds), ..Submission::form(USER) })
    };
    let (old, fresh) = (aged(7 * DAY), aged(7 * DAY - 60));
    assert_eq!(wechat.send(&token, wechat.message(&old)).await, 41028);
    assert_eq!(wechat.send(&token, wechat.message(&fresh)).await, 0);

    let submitted_now = wechat.form(USER);
    wechat.sandbox.set_settings(settings(json!({"clock_ahead_seconds": 7 * DAY}))).unwrap();
    let token = wechat.stable_token(false).await;
    assert_eq!(wechat.send(&token, wechat.message(&submitted_now)).await, 41028);
}

#[tokio::test]
async fn blocked_id_keeps_answering_41031() {
    let wechat = wechat(Settings::default()).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    assert_eq!(wechat.post("/sandbox/block", json!({"app_id": APP, "id": form_id})).await, json!({}));
    for _ in 0..2 {
        assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 41031);
    }
    assert_eq!(wechat.books().uses.left, 1);
}

#[tokio::test]
async fn young_payment_answers_41028_and_works_later() {
    let wechat = wechat(settings(json!({"young_prepay_seconds": 10}))).await;
    let (token, id) = (wechat.stable_token(false).await, wechat.submit(Submission::prepay(USER)));
    assert_eq!(wechat.send(&token, wechat.message(&id)).await, 41028);
    wechat.sandbox.set_settings(settings(json!({"young_prepay_seconds": 10, "clock_ahead_seconds": 10}))).unwrap();
    assert_eq!(wechat.send(&token, wechat.message(&id)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_many_concurrent_sends_with_one_form_id_is_delivered() {
    let wechat = std::sync::Arc::new(wechat(Settings::default()).await);
    let token = wechat.stable_token(false).await;
    for _ in 0..20 {
        let form_id = wechat.form(USER);
        let sends: Vec<_> = (0..16)
            .map(|_| {
                let (wechat, token, form_id) = (wechat.clone(), token.clone(), form_id.clone());
                tokio::spawn(async move { wechat.send(&token, wechat.message(&form_id)).await })
            })
            .collect();
        let mut codes = Vec::new();
        for send in sends {
            codes.push(send.await.unwrap());
        }
        codes.sort_unstable();
        assert_eq!((codes[0], codes[1], codes[15]), (0, 41029, 41029));
    }
    let books = wechat.books();
    assert_eq!((books.delivered, books.answers[&41029]), (20, 300));
}

#[tokio::test]
async fn rate_and_quota_are_enforced_for_each_app() {
    let wechat = wechat(settings(json!({"daily_quota": 2}))).await;
    let token = wechat.stable_token(false).await;
    let id = wechat.submit(Submission { uses: Some(9), ..Submission::prepay(USER) });
    let send = async || wechat.send(&token, wechat.message(&id)).await;
    assert_eq!([send().await, send().await, send().await], [0, 0, 45009]);

    let reply = wechat.ask("PUT", "/sandbox/settings", r#"{"daily_quota": 2}"#).await;
    assert_eq!(reply.status, 200);
    assert_eq!([send().await, send().await, send().await], [0, 0, 45009]);

    wechat.sandbox.set_settings(settings(json!({"per_second": 1}))).unwrap();
    let codes: HashSet<i32> = [send().await, send().await, send().await].into();
    assert!(codes.contains(&45011) && codes.is_subset(&[0, 45011].into()), "{codes:?}");
    wechat.books();
}

#[tokio::test]
async fn answer_setting_applies_to_every_valid_send() {
    let wechat = wechat(settings(json!({"answer": 45103}))).await;
    let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
    assert_eq!(wechat.send(&token, wechat.message(&form_id)).await, 45103);
    assert_eq!(wechat.books().uses.left, 1);
}

#[tokio::test]
async fn each_answer_setting_affects_only_its_endpoint() {
    for (field, expected) in [("answer", [45103, 0]), ("subscribe_answer", [0, 45103])] {
        let mut fields = serde_json::Map::new();
        fields.insert(field.to_owned(), json!(45103));
        let wechat = wechat(settings(fields.into())).await;
        let (token, form_id) = (wechat.stable_token(false).await, wechat.form(USER));
        wechat.grant(USER, 1);
        let template = wechat.send(&token, wechat.message(&form_id)).await;
        let subscribe = wechat.subscribe(&token, wechat.subscription(USER)).await;
        assert_eq!([template, subscribe], expected, "{field}");
        let books = wechat.books();
        assert_eq!([books.uses.spent, books.grants.spent], expected.map(|code| u64::from(code == 0)), "{field}");
    }
}

#[tokio::test]
async fn wrong_methods_and_paths_have_their_codes() {
    let wechat = wechat(Settings::default()).await;
    assert_eq!(code(&wechat.get(SEND).await), 43002);
    assert_eq!(code(&wechat.get(SUBSCRIBE).await), 43002);
    assert_eq!(code(&wechat.get(STABLE).await), 43002);
    assert_eq!(code(&wechat.post("/cgi-bin/token", json!({})).await), 43001);
    assert_eq!(code(&wechat.get("/cgi-bin/elsewhere").await), 40066);
    assert_eq!(wechat.ask("GET", "/elsewhere", "").await.status, 404);
}
