//! Replays of recorded WeChat events.

use server::proto::{EventAction, ReportEventsRequest};
use testing::Redis;
use tonic::Code;

use crate::fixture::*;

const HOUR: i64 = 3600;

fn event(body: String) -> ReportEventsRequest {
    ReportEventsRequest { app_id: APP.into(), body: body.into(), ..ReportEventsRequest::default() }
}

async fn granted(client: &mut Client, request: ReportEventsRequest) -> EventAction {
    client.report_events(request).await.unwrap().into_inner().results[0].action()
}

/// The remaining lifetimes of all keys of this kind, in seconds.
fn kept(redis: &Redis, kind: &str) -> Vec<i64> {
    let list = redis.servers()[0].ask(&[&format!("KEYS formid:*:{kind}:*")]);
    let keys = list.lines().filter(|line| line.starts_with("formid:"));
    keys.map(|key| redis.servers()[0].ask(&[&format!("TTL {key}")]).trim_matches([':', '\r', '\n']).parse().unwrap())
        .collect()
}

#[tokio::test]
async fn old_event_grants_nothing() {
    let redis = Redis::alone();
    let (_collector, mut client) = collector(&redis, &[]).await;
    for created in [testing::now() - 25 * HOUR, 1, testing::now() + HOUR] {
        let body = popup(created, &[("t1", "accept"), ("t2", "reject")]);
        let status = client.report_events(event(body)).await.unwrap_err();
        assert_eq!((reason(&status).as_str(), bad_fields(&status)), ("INVALID_FIELDS", vec!["body.CreateTime".into()]));
    }
    assert!(kept(&redis, "once").is_empty());
    let recent = event(popup(testing::now() - 23 * HOUR, &[("t1", "accept")]));
    assert_eq!(granted(&mut client, recent).await, EventAction::Granted);
}

#[tokio::test]
async fn dedup_key_of_an_event_outlives_its_acceptance() {
    let redis = Redis::alone();
    let (_collector, mut client) = collector(&redis, &["--callback-max-age", "72h"]).await;
    let first = event(popup(testing::now() - 71 * HOUR, &[("t1", "accept"), ("t2", "reject")]));
    for action in [EventAction::Granted, EventAction::Duplicate] {
        assert_eq!(granted(&mut client, first.clone()).await, action);
    }
    let sent = popup(testing::now(), &[("t1", "x\",\"MsgID\":\"5\",\"ErrorCode\":\"43101")]);
    let sent = event(sent.replace("popup_event", "sent_event"));
    assert_eq!(granted(&mut client, sent).await, EventAction::FailureRecorded);
    for (kind, count) in [("once", 2), ("failed", 1)] {
        let kept = kept(&redis, kind);
        assert!(kept.len() == count && kept.iter().all(|seconds| *seconds > 72 * HOUR), "{kind}: {kept:?}");
    }
}

#[tokio::test]
async fn old_signature_is_refused() {
    let (redis, folder) = (Redis::start(), tempfile::tempdir().unwrap());
    let tokens = folder.path().join("tokens.toml");
    std::fs::write(&tokens, format!("[callback_tokens]\n{APP} = 'AAAAA'")).unwrap();
    let (_collector, mut client) = collector(&redis, &["--callback-tokens", tokens.to_str().unwrap()]).await;
    let now = testing::now();
    let signed = |timestamp: String| {
        let (nonce, body) = ("7".to_owned(), popup(now, &[("t1", "accept")]).into());
        let signature = signature("AAAAA", &timestamp, &nonce);
        ReportEventsRequest { app_id: APP.into(), body, timestamp, nonce, signature }
    };
    for timestamp in [(now - 25 * HOUR).to_string(), (now + HOUR).to_string(), String::new(), "soon".into()] {
        let status = client.report_events(signed(timestamp)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "BAD_SIGNATURE"));
    }
    assert_eq!(granted(&mut client, signed(now.to_string())).await, EventAction::Granted);
}
