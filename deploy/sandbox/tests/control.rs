//! The control API over HTTP: what it accepts, what it refuses, and what it answers.
#![allow(clippy::unwrap_used, reason = "a failed step of a test should end it")]

mod fixture;

use std::time::Duration;

use fixture::*;
use sandbox::{Books, Sandbox, Settings};
use serde_json::{Value, json};

#[tokio::test]
async fn one_call_takes_a_hundred_thousand_submissions() {
    let wechat = wechat(Settings::default()).await;
    let submissions: Vec<Value> = (0..100_000)
        .map(|n| json!({"openid": format!("openid-{n}"), "kind": "form", "id": format!("form-{n}")}))
        .collect();
    let answer = wechat.post("/sandbox/submissions", json!({"app_id": APP, "submissions": submissions})).await;
    let ids = answer["ids"].as_array().unwrap();
    assert_eq!((ids.len(), &ids[0], &ids[99_999]), (100_000, &json!("form-0"), &json!("form-99999")));
    assert_eq!(wechat.books().ids.left, 100_000);
}

#[tokio::test]
async fn deliveries_are_read_in_order_and_page_by_page() {
    let wechat = wechat(Settings::default()).await;
    let token = wechat.stable_token(false).await;
    for openid in ["a", "b", "a"] {
        let body = json!({"touser": openid, "template_id": "t", "form_id": wechat.form(openid)});
        assert_eq!(wechat.send(&token, body).await, 0);
    }
    let read = async |query: &str| {
        let answer = wechat.get(&format!("/sandbox/deliveries?app_id={APP}{query}")).await;
        let numbers = answer["deliveries"].as_array().unwrap().iter().map(|one| one["number"].as_u64().unwrap());
        numbers.collect::<Vec<u64>>()
    };
    assert_eq!(read("").await, [1, 2, 3]);
    assert_eq!(read("&openid=a").await, [1, 3]);
    assert_eq!(read("&after=1").await, [2, 3]);
    assert_eq!(read("&after=1&limit=1").await, [2]);
    assert_eq!(read("&after=18446744073709551615").await, [0; 0]);

    let first = &wechat.get(&format!("/sandbox/deliveries?app_id={APP}&limit=1")).await["deliveries"][0];
    let mut fields: Vec<&String> = first.as_object().unwrap().keys().collect();
    fields.sort();
    let expected =
        ["app_id", "at", "data", "emphasis_keyword", "form_id", "kind", "number", "openid", "page", "template_id"];
    assert_eq!(fields, expected);
}

#[tokio::test]
async fn books_of_all_apps_are_the_sum() {
    let wechat = wechat(Settings::default()).await;
    wechat.sandbox.add_app("wx-other", "other-secret").unwrap();
    wechat.form(USER);
    let token = wechat.stable_token(false).await;
    wechat.send(&token, wechat.message("unknown")).await;
    wechat.send("no-token", wechat.message("unknown")).await;

    let one: Books = serde_json::from_value(wechat.get(&format!("/sandbox/books?app_id={APP}")).await).unwrap();
    assert_eq!(one, wechat.books());
    assert_eq!((one.calls, one.app_id.as_deref()), (1, Some(APP)));
    let all: Books = serde_json::from_value(wechat.get("/sandbox/books").await).unwrap();
    assert_eq!((all.calls, all.app_id, all.ids.issued, all.messages_exact), (2, None, 1, true));
    let other: Books = serde_json::from_value(wechat.get("/sandbox/books?app_id=wx-other").await).unwrap();
    assert_eq!(other.calls, 0);
}

#[tokio::test]
async fn settings_change_field_by_field() {
    let wechat = wechat(Settings::default()).await;
    wechat.ask("PUT", "/sandbox/settings", r#"{"latency_ms": 1}"#).await;
    let changed = wechat.ask("PUT", "/sandbox/settings", r#"{"templates": ["t"]}"#).await.json();
    assert_eq!((&changed["latency_ms"], &changed["templates"]), (&json!(1), &json!(["t"])));
    assert_eq!(wechat.get("/sandbox/settings").await, changed);
    assert_eq!(serde_json::to_value(wechat.sandbox.settings()).unwrap(), changed);
}

#[tokio::test]
async fn invalid_requests_are_refused_with_a_sentence() {
    let wechat = wechat(Settings::default()).await;
    let before = wechat.sandbox.settings();
    for (method, path, body) in [
        ("POST", "/sandbox/apps", r#"{"app_id": "a"}"#),
        ("POST", "/sandbox/apps", r#"{"app_id": "a", "secret": ""}"#),
        ("POST", "/sandbox/apps", r#"{"app_id": "a", "secret": "s", "name": "n"}"#),
        ("POST", "/sandbox/submissions", "nonsense"),
        ("POST", "/sandbox/submissions", r#"{"app_id": "wx0123456789abcdef"}"#),
        ("POST", "/sandbox/submissions", r#"{"app_id": "wx0123456789abcdef", "submissions": [{"openid": "u"}]}"#),
        (
            "POST",
            "/sandbox/submissions",
            r#"{"app_id": "wx0123456789abcdef", "submissions": [{"openid": "", "kind": "form"}]}"#,
        ),
        (
            "POST",
            "/sandbox/submissions",
            r#"{"app_id": "wx0123456789abcdef", "submissions": [{"openid": "u", "kind": "form", "count": 3}]}"#,
        ),
        ("POST", "/sandbox/block", r#"{"id": "i"}"#),
        (
            "POST",
            "/sandbox/submissions",
            r#"{"app_id": "wx0123456789abcdef", "submissions": [{"openid": "u", "kind": "grant"}]}"#,
        ),
        ("POST", "/sandbox/grants", r#"{"app_id": "wx0123456789abcdef", "grants": [{"openid": "u"}]}"#),
        (
            "POST",
            "/sandbox/grants",
            r#"{"app_id": "wx0123456789abcdef", "grants": [{"openid": "", "template_id": "t"}]}"#,
        ),
        (
            "POST",
            "/sandbox/grants",
            r#"{"app_id": "wx0123456789abcdef", "grants": [{"openid": "u", "template_id": "t", "count": -1}]}"#,
        ),
        (
            "POST",
            "/sandbox/rejections",
            r#"{"app_id": "wx0123456789abcdef", "rejections": [{"openid": "u", "template_id": "t", "count": 1}]}"#,
        ),
        ("POST", "/sandbox/withdrawals", r#"{"app_id": "wx0123456789abcdef", "rejections": []}"#),
        ("POST", "/sandbox/events", r#"{"app_id": "wx0123456789abcdef", "events": [{"event": "any"}]}"#),
        ("POST", "/sandbox/events", r#"{"app_id": "wx0123456789abcdef", "events": [{"event": "", "openid": "u"}]}"#),
        ("PUT", "/sandbox/settings", r#"{"callback_shape": "round"}"#),
        ("PUT", "/sandbox/settings", r#"{"callback_url": "http://127.0.0.1:1/"}"#),
        ("PUT", "/sandbox/settings", r#"{"latency": 5}"#),
        ("PUT", "/sandbox/settings", r#"{"latency_ms": 5, "prepay_uses": 0}"#),
        ("PUT", "/sandbox/settings", "[]"),
        ("POST", "/sandbox/faults", r#"{"kind": "cut_after"}"#),
        ("POST", "/sandbox/faults", r#"[{"kind": "explode"}]"#),
        ("POST", "/sandbox/faults", r#"[{"kind": "cut_after", "chance": 1}]"#),
        ("POST", "/sandbox/faults", r#"[{"kind": "cut_after", "match": {"user": "u"}}]"#),
        ("POST", "/sandbox/faults", r#"[{"kind": "cut_after", "probability": 2}]"#),
        ("GET", "/sandbox/deliveries", ""),
        ("GET", "/sandbox/deliveries?app_id=wx0123456789abcdef&limit=0", ""),
        ("GET", "/sandbox/deliveries?app_id=wx0123456789abcdef&user=u", ""),
        ("GET", "/sandbox/events", ""),
        ("GET", "/sandbox/events?app_id=wx0123456789abcdef&limit=0", ""),
        ("GET", "/sandbox/books?app=wx0123456789abcdef", ""),
    ] {
        let reply = wechat.ask(method, path, body).await;
        assert_eq!(reply.status, 400, "{method} {path} {body}: {reply:?}");
        assert!(text(&reply.json()["error"]).len() > 10, "{reply:?}");
    }
    assert_eq!(wechat.sandbox.settings(), before);
    assert!(wechat.sandbox.faults().is_empty());
}

#[tokio::test]
async fn unknown_apps_and_ids_are_404() {
    let wechat = wechat(Settings::default()).await;
    for (method, path, body) in [
        ("POST", "/sandbox/submissions", r#"{"app_id": "nobody", "submissions": []}"#),
        ("POST", "/sandbox/block", r#"{"app_id": "nobody", "id": "i"}"#),
        ("POST", "/sandbox/block", r#"{"app_id": "wx0123456789abcdef", "id": "i"}"#),
        ("POST", "/sandbox/grants", r#"{"app_id": "nobody", "grants": []}"#),
        ("POST", "/sandbox/rejections", r#"{"app_id": "nobody", "rejections": []}"#),
        ("POST", "/sandbox/withdrawals", r#"{"app_id": "nobody", "withdrawals": []}"#),
        ("POST", "/sandbox/events", r#"{"app_id": "nobody", "events": []}"#),
        ("GET", "/sandbox/deliveries?app_id=nobody", ""),
        ("GET", "/sandbox/events?app_id=nobody", ""),
        ("GET", "/sandbox/books?app_id=nobody", ""),
    ] {
        assert_eq!(wechat.ask(method, path, body).await.status, 404, "{method} {path} {body}");
    }
}

#[tokio::test]
async fn serving_ends_at_shutdown_even_with_a_hanging_call() {
    let sandbox = Sandbox::new(settings(json!({"latency_ms": 60_000})));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(sandbox::serve(listener, sandbox, async { _ = stopped.await }));
    let mut hanging = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut hanging, b"GET /cgi-bin/token HTTP/1.1\r\nhost: w\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
