//! Tokens that do not come from WeChat: from a token server or a file, or none.

use dispatcher::token_source::{TokenFile, TokenPath, TokenServer, TokenSource};
use dispatcher::wechat::error::{SourceFault, SourceKey};
use reqwest::Method;
use serde_json::Value;

use super::*;
use crate::token_server;

const FIRST: &str = r#"{"access_token":"CANARY-1","expires_in":7200}"#;
const SECOND: &str = r#"{"access_token":"CANARY-2","expires_in":7200}"#;

fn fault(key: SourceKey, fault: SourceFault) -> TokenError {
    TokenError::Transient(Trouble::Source(key, fault))
}

#[tokio::test]
async fn token_server_is_asked_once_for_all_replicas() {
    let (fixture, server) = (Fixture::start().await, token_server::Tokens::start(FIRST).await);
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(fixture.replica_with(server.source()).await);
    }
    let values = join_all((0..50).map(|n| value(&replicas[n % 3]))).await;
    assert!(values.iter().all(|value| value == "CANARY-1"), "{values:?}");
    assert_eq!((server.calls(), fixture.shared().await.as_deref()), (1, Some("CANARY-1")));
    // A token that dies is replaced once for all.
    server.answers(200, SECOND);
    let dead = join_all(replicas.iter().map(|replica| async { replica.get().await.unwrap() })).await;
    let values = join_all((0..30).map(|n| {
        let (replica, token) = (&replicas[n % 3], &dead[n % 3]);
        async move {
            replica.failed(token).await;
            value(replica).await
        }
    }))
    .await;
    assert!(values.iter().all(|value| value == "CANARY-2"), "{values:?}");
    assert_eq!((server.calls(), fixture.calls()), (2, 0));
}

#[tokio::test]
async fn token_server_is_told_which_token_wechat_rejected_and_paced() {
    for method in [Method::GET, Method::POST] {
        let (fixture, server) = (Fixture::start().await, token_server::Tokens::start(FIRST).await);
        let settings = TokenServer { method: method.clone(), report: Some("invalid".into()), ..server.settings() };
        let tokens = fixture.replica_with(TokenSource::Server(settings)).await;
        let dead = tokens.get().await.unwrap();
        tokens.failed(&dead).await;
        // The server does not know yet, and gives the same token again.
        for _ in 0..100 {
            let again = fault(SourceKey::TokenUrl, SourceFault::Rejected);
            assert_eq!(tokens.get().await.unwrap_err(), again);
        }
        assert_eq!((server.calls(), fixture.shared().await), (2, None));
        server.answers(200, SECOND);
        eventually("the new token is in use", SOON, async || tokens.get().await.is_ok()).await;
        assert_eq!((value(&tokens).await.as_str(), server.calls()), ("CANARY-2", 3));

        let requests = server.requests();
        assert!(requests.iter().all(|request| request.method == method && request.uri.contains("key=CANARY-key")));
        let told = requests.iter().map(|request| match method {
            Method::GET => request.uri.contains("&invalid=CANARY-1"),
            _ => {
                let body: Value = serde_json::from_str(&request.body).unwrap();
                assert_eq!(body["appid"], "wx1");
                body.get("invalid") == Some(&"CANARY-1".into())
            }
        });
        assert_eq!(told.collect::<Vec<_>>(), [false, true, true]);
    }
}

#[tokio::test]
async fn headers_are_read_for_each_request_and_the_token_is_found_at_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let headers = folder.path().join("headers");
    std::fs::write(&headers, "Authorization: Bearer one\nX-Tenant: 7\n").unwrap();
    let fixture = Fixture::start().await;
    let nested = |token| format!(r#"{{"code":0,"data":{{"authorizer_access_token":"{token}","expires_in":7200}}}}"#);
    let server = token_server::Tokens::start(&nested("CANARY-1")).await;
    let path = TokenPath::parse("data.authorizer_access_token").unwrap();
    let settings = TokenServer { headers_file: Some(headers.clone()), path, ..server.settings() };
    let tokens = fixture.replica_with(TokenSource::Server(settings)).await;
    let first = tokens.get().await.unwrap();
    assert_eq!(first.value(), "CANARY-1");

    std::fs::remove_file(&headers).unwrap();
    tokens.failed(&first).await;
    assert_eq!(tokens.get().await.unwrap_err(), fault(SourceKey::TokenUrl, SourceFault::Headers));
    std::fs::write(&headers, "authorization: Bearer two").unwrap();
    server.answers(200, &nested("CANARY-2"));
    eventually("the new token is in use", SOON, async || tokens.get().await.is_ok()).await;
    let requests = server.requests();
    let shown = |name| requests.iter().map(|request| request.headers.get(name)?.to_str().ok()).collect::<Vec<_>>();
    assert_eq!(shown("authorization"), [Some("Bearer one"), Some("Bearer two")]);
    assert_eq!(shown("x-tenant"), [Some("7"), None]);
}

#[tokio::test]
async fn each_fault_of_a_token_server_is_told_and_the_server_is_not_asked_again_at_once() {
    for (status, body, expected) in [
        (200, "", SourceFault::NotJson),
        (200, "<html>CANARY</html>", SourceFault::NotJson),
        (200, r#"{"token":"CANARY"}"#, SourceFault::NoToken),
        (200, r#"{"errcode":40164,"errmsg":"CANARY"}"#, SourceFault::Errcode(40164)),
        (200, r#"{"access_token":"CANARY","expires_in":0}"#, SourceFault::Expired),
        (200, r#"{"access_token":"CANARY","expires_in":"CANARY"}"#, SourceFault::NoLife),
        (403, FIRST, SourceFault::Call(Cause::HttpStatus(403))),
        (302, FIRST, SourceFault::Call(Cause::Redirected(302))),
    ] {
        let (fixture, server) = (Fixture::start().await, token_server::Tokens::start(body).await);
        server.answers(status, body);
        let tokens = fixture.replica_with(server.source()).await;
        for error in join_all((0..100).map(|_| tokens.get())).await {
            let error = error.unwrap_err();
            assert_eq!(error, fault(SourceKey::TokenUrl, expected));
            assert!(error.to_string().starts_with("no access token for now: token_url: "), "{error}");
            assert!(!format!("{error} {error:?}").contains("CANARY"), "{error:?}");
        }
        assert_eq!((server.calls(), fixture.shared().await), (1, None), "{body}");
        server.answers(200, FIRST);
        eventually("the token is in use", SOON, async || tokens.get().await.is_ok()).await;
    }
}

#[tokio::test]
async fn token_server_that_is_away_is_told_and_redis_is_not_needed() {
    let mut fixture = Fixture::start().await;
    let url = format!("http://127.0.0.1:{}", testing::free_port());
    let server = token_server::Tokens::start(FIRST).await;
    let away = TokenServer { url: url.parse().unwrap(), ..server.settings() };
    let tokens = fixture.replica_with(TokenSource::Server(away)).await;
    let expected = fault(SourceKey::TokenUrl, SourceFault::Call(Cause::Connect));
    assert_eq!(tokens.get().await.unwrap_err(), expected);
    // Another replica reaches the server, and shares the token.
    let other = fixture.replica_with(server.source()).await;
    assert_eq!(value(&other).await, "CANARY-1");
    eventually("the shared token is in use", SOON, async || tokens.get().await.is_ok()).await;
    fixture.redis.kill();
    let other = fixture.replica_with(server.source()).await;
    assert_eq!(value(&other).await, "CANARY-1");
}

#[tokio::test]
async fn token_server_that_gives_one_dead_token_after_the_other_is_asked_ever_more_rarely() {
    let (fixture, server) = (Fixture::start().await, token_server::Tokens::start(FIRST).await);
    let tokens = fixture.replica_with(server.source()).await;
    let mut number = 1;
    let error = loop {
        number += 1;
        match tokens.get().await {
            Ok(token) => {
                server.answers(200, &format!(r#"{{"access_token":"CANARY-{number}"}}"#));
                tokens.failed(&token).await;
            }
            Err(error) => break error,
        }
    };
    assert_eq!((error, server.calls()), (TokenError::Transient(Trouble::Dying), 11));
}

#[tokio::test]
async fn token_file_is_followed_and_redis_takes_no_part() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let write = |text: &str| {
        std::fs::write(folder.path().join("next"), text).unwrap();
        std::fs::rename(folder.path().join("next"), &path).unwrap();
    };
    let mut fixture = Fixture::start().await;
    let source = TokenSource::File(TokenFile { path: path.clone(), json: None });
    let tokens = fixture.replica_with(source).await;
    fixture.redis.kill();
    let missing = fault(SourceKey::TokenFile, SourceFault::Unreadable(std::io::ErrorKind::NotFound));
    assert_eq!(tokens.get().await.unwrap_err(), missing);
    let following = tokio::spawn(tokens.clone().renew_forever());
    let becomes = async |expected: &str| {
        eventually("the token of the file is in use", SOON, async || {
            tokens.get().await.is_ok_and(|token| token.value() == expected)
        })
        .await;
    };
    write("CANARY-1\n");
    becomes("CANARY-1").await;
    write("CANARY-2");
    becomes("CANARY-2").await;
    // What is no token changes nothing, and neither does a missing file.
    write("<html>");
    tokio::time::sleep(server::reload::INTERVAL * 3).await;
    assert_eq!(value(&tokens).await, "CANARY-2");
    std::fs::remove_file(&path).unwrap();
    tokio::time::sleep(server::reload::INTERVAL * 2).await;
    assert_eq!(value(&tokens).await, "CANARY-2");

    // A rejected token is not used again, although the file still has it.
    write("CANARY-2");
    tokens.failed(&tokens.get().await.unwrap()).await;
    for _ in 0..100 {
        assert_eq!(tokens.get().await.unwrap_err(), fault(SourceKey::TokenFile, SourceFault::Rejected));
    }
    tokio::time::sleep(server::reload::INTERVAL * 3).await;
    assert_eq!(tokens.get().await.unwrap_err(), fault(SourceKey::TokenFile, SourceFault::Rejected));
    write("CANARY-3");
    becomes("CANARY-3").await;
    following.abort();
    assert_eq!(fixture.calls(), 0);
}

#[tokio::test]
async fn calls_without_a_token_go_on_rarely_if_wechat_wants_one() {
    let mut fixture = Fixture::start().await;
    let tokens = fixture.replica_with(TokenSource::None).await;
    fixture.redis.kill();
    let mut given = 0;
    let error = loop {
        match tokens.get().await {
            Ok(token) => {
                assert_eq!(token.value(), "");
                given += 1;
                tokens.failed(&token).await;
            }
            Err(error) => break error,
        }
    };
    assert_eq!((given, error), (11, fault(SourceKey::None, SourceFault::TokenWanted)));
    assert_eq!(fixture.calls(), 0);
}
