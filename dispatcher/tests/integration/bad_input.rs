//! Invalid input: the error names the field, and no credential is spent.

use std::collections::HashMap;
use std::time::Duration;

use crate::broadcast::{tally, to_all};
use crate::fixture::{Fixture, Running, fields, message, reason};
use clap::Parser as _;
use dispatcher::settings::{Args, Settings};
use domain::dependency::Dependency as _;
use domain::{Credential, CredentialId, Kind, LIFETIME, OpenId};
use server::proto::{BroadcastRequest, BroadcastState, Outcome, TemplateValue};
use server::rpc::status::PUSHBACK;
use store::credentials::Packed;
use testing::{Redis, eventually, now};
use tonic::Code;

#[tokio::test]
async fn all_invalid_fields_are_reported_together() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let mut request = message("", "x");
    request.app_id = "no such app!".into();
    request.template_id = String::new();
    request.page = "p".repeat(1025);
    request.request_id = "with space".into();
    request.emphasis_keyword = "keyword9.DATA".into();
    request.data.insert("keyword2".into(), TemplateValue { value: "bell\u{7}".into(), color: "c".repeat(33) });
    let status = dispatcher.send(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
    let named = fields(&status);
    let expected = [
        "app_id",
        "openid",
        "request_id",
        "template_id",
        "page",
        "data.keyword2.value",
        "data.keyword2.color",
        "emphasis_keyword",
    ];
    assert_eq!(named, expected);
}

#[tokio::test]
async fn each_string_is_checked_for_emptiness_size_and_control_characters() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 1).await;
    let long = "x".repeat(5000);
    for bad in ["", "\u{1}", " ", long.as_str()] {
        for field in ["app_id", "openid", "template_id"] {
            let mut request = message("oUser", "x");
            match field {
                "app_id" => request.app_id = bad.into(),
                "openid" => request.openid = bad.into(),
                _ => request.template_id = bad.into(),
            }
            let status = dispatcher.send(request).await.unwrap_err();
            assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec![field.to_owned()]), "{bad:?}");
        }
    }
    for bad in ["\u{1}", long.as_str()] {
        for field in ["page", "request_id", "data.keyword1.value", "data.keyword1.color"] {
            let mut request = message("oUser", "x");
            match field {
                "page" => request.page = bad.into(),
                "request_id" => request.request_id = bad.into(),
                "data.keyword1.value" => request.data.get_mut("keyword1").unwrap().value = bad.into(),
                _ => request.data.get_mut("keyword1").unwrap().color = bad.into(),
            }
            let status = dispatcher.send(request).await.unwrap_err();
            assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec![field.to_owned()]));
        }
    }
    assert_eq!(fixture.left("oUser").await, 1);
}

#[tokio::test]
async fn text_for_a_missing_value_is_no_openid_and_no_template() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    for bad in ["undefined", "null", "NaN", "[object Object]"] {
        let mut request = message(bad, "x");
        request.template_id = bad.into();
        let status = dispatcher.send(request).await.unwrap_err();
        assert_eq!(
            (status.code(), fields(&status)),
            (Code::InvalidArgument, vec!["openid".into(), "template_id".into()])
        );
        assert!(status.message().contains("which programs write for a missing value"), "{status:?}");
    }
}

/// The door refuses such a user today.
#[tokio::test]
async fn user_whom_an_older_release_took_in_stops_no_broadcast() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let openid = OpenId::existing("undefined").unwrap();
    let expiry = (now() as u64 + LIFETIME.as_secs()) as u32;
    let id = CredentialId::existing("null").unwrap();
    let packed = [Packed::new(openid.clone(), &Credential { kind: Kind::FormId, id, uses: 1, expiry })];
    fixture.store.collect(&fixture.app(), fixture.store.bucket_of(&openid), &packed).await.unwrap();
    for user in 0..20 {
        fixture.submit(&format!("oUser{user}"), 2).await;
    }
    let excluding = BroadcastRequest { exclude: vec!["undefined".into()], ..to_all() };
    for (request, delivered, failed) in [(excluding, 20, 0), (to_all(), 20, 1)] {
        let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
        dispatcher.until(&id, BroadcastState::Done).await;
        let info = dispatcher.look(&id).await;
        let failures: u64 = tally(&info).failed.iter().map(|one| one.count).sum();
        assert_eq!((tally(&info).delivered, failures), (delivered, failed), "{info:?}");
    }
}

#[tokio::test]
async fn data_has_a_maximum_size_and_no_empty_keys() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let value = || TemplateValue { value: "x".into(), color: String::new() };
    let mut many = message("oUser", "x");
    many.data = (0..65).map(|number| (format!("keyword{number}"), value())).collect();
    let mut odd = message("oUser", "x");
    odd.data = HashMap::from([(String::new(), value())]);
    for request in [many, odd] {
        assert_eq!(fields(&dispatcher.send(request).await.unwrap_err()), ["data"]);
    }
}

#[tokio::test]
async fn unknown_app_is_refused() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let mut request = message("oUser", "x");
    request.app_id = "wxfeedfeedfeedfeed".into();
    let status = dispatcher.send(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "UNKNOWN_APP"));
    assert_eq!(fields(&status), ["app_id"]);
}

#[tokio::test]
async fn redis_may_be_down_at_the_start_and_go_away_midway() {
    let mut fixture = Fixture::on(Redis::durable()).await.patiently();
    fixture.submit("oUser", 3).await;
    fixture.redis.kill();
    let dispatcher = Running::start(fixture.settings(&["--redis-timeout", "2s"])).await;
    let unavailable = |status: tonic::Status| (status.code(), reason(&status));
    let expected = |found| assert_eq!(found, (Code::Unavailable, "REDIS_UNAVAILABLE".to_owned()));
    expected(unavailable(dispatcher.send(message("oUser", "1")).await.unwrap_err()));
    // A client library that retries by itself would start a second broadcast: without a request id, nothing identifies
    // the retry.
    for (request_id, told) in [("", "-1"), ("spring-1", "1000")] {
        let request = BroadcastRequest { request_id: request_id.into(), ..to_all() };
        let status = dispatcher.broadcast(request).await.unwrap_err();
        assert_eq!(status.metadata().get(PUSHBACK).unwrap(), told);
        expected(unavailable(status));
    }
    for text in ["1", "2"] {
        fixture.redis.resume();
        eventually("the dispatcher recovers without a restart", Duration::from_secs(10), async || {
            dispatcher.send(message("oUser", text)).await.is_ok_and(|answer| answer.outcome() == Outcome::Delivered)
        })
        .await;
        fixture.redis.kill();
        expected(unavailable(dispatcher.send(message("oUser", "meanwhile")).await.unwrap_err()));
    }
    fixture.redis.resume();
    eventually("the store is available again", Duration::from_secs(10), async || fixture.store.ping().await.is_ok())
        .await;
    assert_eq!((fixture.delivered(), fixture.left("oUser").await), (2, 1));
}

#[tokio::test]
async fn health_follows_redis() {
    let mut fixture = Fixture::on(Redis::durable()).await;
    let dispatcher = fixture.dispatcher_with(&["--redis-timeout", "2s"]).await;
    let channel = crate::fixture::connect(dispatcher.address.port()).await;
    let serving = async |wanted| crate::fixture::serving(channel.clone(), wanted).await;
    serving(true).await;
    fixture.redis.kill();
    serving(false).await;
    fixture.redis.resume();
    serving(true).await;
}

#[test]
fn all_invalid_settings_are_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("apps.toml");
    std::fs::write(&path, "[apps.wx1]\nsecret = \"very-secret\"\ncolour = \"red\"\n").unwrap();
    let flags =
        ["dispatcher", "--apps-file", path.to_str().unwrap(), "--lease", "soon", "--attempts", "0", "--listen", "here"];
    let told = Settings::read(&Args::parse_from(flags)).err().unwrap().to_string();
    for part in ["colour", "--lease", "--attempts", "--listen"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert!(!told.contains("very-secret"));
}

#[test]
fn contradictory_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("apps.toml");
    std::fs::write(&path, "[apps.wx1]\nsecret = \"s\"\ntimeout = \"40s\"\n").unwrap();
    let path = path.to_str().unwrap();
    let told = Settings::read(&Args::parse_from(["dispatcher", "--apps-file", path])).err().unwrap().to_string();
    assert!(told.contains("--lease is 30s") && told.contains("wx1"), "{told}");
    let told = Settings::read(&Args::parse_from(["dispatcher", "--apps-file", path, "--lease", "90s"]))
        .err()
        .unwrap()
        .to_string();
    assert!(told.contains("--lease-margin"), "{told}");
}

#[test]
fn help_names_every_flag_with_its_variable_and_default() {
    let help = <Args as clap::CommandFactory>::command().render_long_help().to_string();
    for part in ["--lease", "FORMID_LEASE", "[default: 30s]", "FORMID_APPS_FILE", "FORMID_REDIS_URL", "(duration)"] {
        assert!(help.contains(part), "{part}");
    }
}
