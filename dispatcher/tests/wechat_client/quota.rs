//! How the client reads the answers to its quota request.

use dispatcher::wechat::errcode::{Meaning, row_of};
use dispatcher::wechat::error::QuotaError;
use dispatcher::wechat::reply::Quota;

use super::*;

async fn quota(url: &str) -> Result<Quota, QuotaError> {
    client(url).quota(Delivery::FormId, TOKEN).await
}

#[tokio::test]
async fn quota_is_requested_by_wechats_own_path_even_via_a_gateway() {
    let answer = r#"{"errcode":0,"errmsg":"ok","quota":{"daily_limit":100,"used":40,"remain":60},
        "rate_limit":{"call_count":1000,"refresh_second":60}}"#;
    let server = Server::start(ok(answer)).await;
    let quota = client(&format!("{}/gateway/", server.url)).quota(Delivery::FormId, "t+o&k").await;
    assert_eq!(quota, Ok(Quota { daily_limit: 100, used: 40, remain: 60 }));
    let request = &server.requests()[0];
    let line = "POST /gateway/cgi-bin/openapi/quota/get?access_token=t%2Bo%26k HTTP/1.1\r\n";
    assert!(request.starts_with(line), "{request}");
    assert!(request.contains("content-type: application/json\r\n"));
    assert!(request.ends_with("\r\n\r\n{\"cgi_path\":\"/cgi-bin/message/wxopen/template/send\"}"), "{request}");
}

#[tokio::test]
async fn quota_refusal_carries_the_code_but_not_wechats_text() {
    for (body, errcode, rid) in [
        (r#"{"errcode":48001,"errmsg":"api unauthorized rid: 5f-1a"}"#, 48001, "5f-1a"),
        (r#"{"errcode":76021,"errmsg":null}"#, 76021, ""),
        (r#"{"errcode":-1,"quota":{"daily_limit":1,"used":0,"remain":1}}"#, -1, ""),
        (r#"{"errcode":42001,"quota":"none"}"#, 42001, ""),
    ] {
        let server = Server::start(ok(body)).await;
        let error = quota(&server.url).await.unwrap_err();
        assert_eq!(error, QuotaError::Refused { errcode, rid: rid.into() }, "{body}");
        assert_eq!(error.to_string(), format!("WeChat does not report the quota (errcode {errcode})"));
        assert_eq!(server.requests().len(), 1, "{body}: asked again");
    }
}

#[tokio::test]
async fn invalid_quota_answer_yields_no_quota() {
    let long = format!(r#"{{"errcode":0,"errmsg":"{}"}}"#, "x".repeat(64 * 1024));
    let redirect = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n";
    for (habit, cause) in [
        (ok("<html>"), Cause::NotJson),
        (ok("[0]"), Cause::NotJson),
        (ok(r#"{"errcode":0,"errmsg":"ok"}"#), Cause::NotJson),
        (ok(r#"{"errcode":0,"quota":null}"#), Cause::NotJson),
        (ok(r#"{"errcode":0,"quota":[1,0,1]}"#), Cause::NotJson),
        (ok(r#"{"errcode":0,"quota":{"daily_limit":"1","used":"0","remain":"1"}}"#), Cause::NotJson),
        (ok(r#"{"quota":{"daily_limit":1,"used":0,"remain":1}}"#), Cause::NotJson),
        (ok(&long), Cause::TooLarge),
        (Habit::Answer(http("404 Not Found", r#"{"errcode":0}"#)), Cause::HttpStatus(404)),
        (Habit::Answer(redirect.into()), Cause::Redirected(302)),
        (Habit::Cut(String::new()), Cause::BrokenOff),
    ] {
        let server = Server::start(habit).await;
        assert_eq!(quota(&server.url).await, Err(QuotaError::Unanswered(cause)));
        assert_eq!(server.requests().len(), 1, "{cause}: asked again");
    }
    let free = testing::free_port();
    assert_eq!(quota(&format!("http://127.0.0.1:{free}")).await, Err(QuotaError::Unanswered(Cause::Connect)));
}

#[tokio::test]
async fn quota_of_a_strict_wechat_is_read_and_refusals_are_distinguished() {
    let wechat = sandbox::Sandbox::new(sandbox::Settings { daily_quota: 3, ..Default::default() });
    wechat.add_app("wx1", SECRET).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(&format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(sandbox::serve(listener, wechat.clone(), std::future::pending()));
    let token = client.fetch_token(false).await.unwrap().token;
    assert_eq!(client.quota(Delivery::FormId, &token).await, Ok(Quota { daily_limit: 3, used: 0, remain: 3 }));

    let refused = async |token: &str| match client.quota(Delivery::FormId, token).await {
        Err(QuotaError::Refused { errcode, rid }) if !rid.is_empty() => (errcode, row_of(errcode).meaning),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused("").await, (41001, Meaning::TokenMissing));
    assert_eq!(refused(TOKEN).await, (40001, Meaning::TokenInvalid));
    wechat.set_settings(sandbox::Settings { quota_get: false, ..Default::default() }).unwrap();
    assert_eq!(refused(&token).await, (48001, Meaning::ApiForbidden));
}
