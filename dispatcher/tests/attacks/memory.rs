//! Memory is bounded by the bytes of the calls, not by their number. No number of large calls uses more memory than the
//! Kubernetes manifests allow a dispatcher.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message as _;
use prost::bytes::Bytes;
use server::proto::broadcast_request::Audience;
use server::proto::{
    AddRecipientsRequest, BroadcastRequest, Recipient, Recipients, SendTemplateRequest, TemplateValue,
};
use testing::http2::prefixed;
use testing::{Process, call_with, eventually};
use tokio::task::JoinSet;
use tonic_types::StatusExt as _;

use crate::fixture::{APP, Fixture, any_port, connect, message, reason, serving};

/// Well below the limit of 512 MiB in the manifests.
const MOST: u64 = 320 << 20;

fn values(keys: usize, length: usize) -> HashMap<String, TemplateValue> {
    let value = || TemplateValue { value: "x".repeat(length), color: String::new() };
    (0..keys).map(|key| (format!("keyword{key}"), value())).collect()
}

/// Makes the same call many times concurrently. Each call must end with `ends` or with OVERLOADED. Returns the number
/// of calls that were not rejected as OVERLOADED.
async fn at_once(port: u16, method: &str, calls: usize, content: Vec<u8>, ends: &str) -> usize {
    let (content, path) = (Bytes::from(prefixed(&content)), format!("/formid.v1.DispatcherService/{method}"));
    let (mut tasks, mut channels) = (JoinSet::new(), Vec::new());
    for _ in 0..10 {
        channels.push(connect(port).await);
    }
    for call in 0..calls {
        let (channel, content, path) = (channels[call % channels.len()].clone(), content.clone(), path.clone());
        tasks.spawn(async move { call_with(channel, &path, content).await });
    }
    let ended = tasks.join_all().await.into_iter().map(|ended| match ended {
        Ok(()) => "OK".to_owned(),
        Err(status) => {
            let reason = reason(&status);
            let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
            assert_eq!(retry.is_some(), reason == "OVERLOADED", "{status:?}");
            reason
        }
    });
    let answered: Vec<_> = ended.filter(|reason| reason != "OVERLOADED").collect();
    assert!(answered.iter().all(|reason| reason == ends), "{answered:?}");
    answered.len()
}

async fn started(fixture: &Fixture) -> (Process, u16) {
    let port = any_port();
    let process = Process::start(&mut fixture.command(port, &["--redis-timeout", "60s"]));
    serving(connect(port).await, true).await;
    (process, port)
}

fn assert_well(process: &Process) {
    let peak = process.peak_memory();
    assert!(peak < MOST, "{} MB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_audiences_stay_within_the_memory_budget() {
    let fixture = Fixture::patient().await;
    let (process, port) = started(&fixture).await;
    let recipient = |number| Recipient { openid: format!("oUser{number:023}"), data: values(4, 30) };
    let list = (0..10_000).map(recipient).collect();
    let request = BroadcastRequest {
        app_id: APP.into(),
        template_id: "template-1".into(),
        data: values(1, 10),
        audience: Some(Audience::Recipients(Recipients { list })),
        validate_only: true,
        ..BroadcastRequest::default()
    };
    assert!(at_once(port, "Broadcast", 150, request.encode_to_vec(), "OK").await > 0);
    assert_well(&process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_counted_before_they_are_decoded() {
    let fixture = Fixture::patient().await;
    let (process, port) = started(&fixture).await;
    // Each recipient has a map with one entry: a hundred times larger in memory than on the wire.
    let content = [0x1a, 2, 0x12, 0].repeat(1 << 20);
    assert!(at_once(port, "AddRecipients", 20, content, "MESSAGE_TOO_LARGE").await > 0);
    let content = [0x1a, 2, 0x12, 0].repeat(100_000);
    assert!(at_once(port, "AddRecipients", 40, content, "INVALID_FIELDS").await > 0);
    // The largest list that is allowed.
    let recipients = (0..10_000).map(|n| Recipient { openid: format!("oUser{n:023}"), data: values(8, 20) }).collect();
    let request = AddRecipientsRequest {
        app_id: APP.into(),
        broadcast_id: "0192a3b4c5d-01234567".into(),
        recipients,
        exclude: Vec::new(),
    };
    assert!(at_once(port, "AddRecipients", 1, request.encode_to_vec(), "BROADCAST_NOT_FOUND").await == 1);
    assert_well(&process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sends_of_disconnected_callers_count_toward_the_byte_limit() {
    let fixture = Fixture::patient().await;
    let slow = sandbox::Settings { latency_ms: 4000, ..fixture.sandbox.settings() };
    fixture.sandbox.set_settings(slow).unwrap();
    let dispatcher = fixture.dispatcher_with(&["--max-bytes-in-flight", "17300000"]).await;
    let large = |user: &str| SendTemplateRequest { data: values(64, 4000), ..message(user, "") };
    let mut tasks = JoinSet::new();
    for number in 0..60 {
        let user = format!("oUser{number}");
        fixture.submit(&user, 1).await;
        let (mut client, request) = (dispatcher.client.clone(), large(&user));
        tasks.spawn(async move { client.send_template(request).await.map(drop) });
    }
    fixture.submit("oLast", 1).await;
    // Calls over the limit are rejected immediately. The others wait for WeChat, and their callers disconnect.
    for _ in 0..20 {
        assert_eq!(reason(&tasks.join_next().await.unwrap().unwrap().unwrap_err()), "OVERLOADED");
    }
    drop(tasks);
    assert_eq!(reason(&dispatcher.send(large("oLast")).await.unwrap_err()), "OVERLOADED");
    let small = dispatcher.send(message("oNobody", "")).await.unwrap_err();
    assert_eq!(reason(&small), "NO_CREDENTIAL", "a small message is still accepted");
    eventually("large messages are accepted again", Duration::from_secs(60), async || {
        dispatcher.send(large("oLast")).await.is_ok()
    })
    .await;
    assert!(fixture.delivered() > 20, "{}", fixture.delivered());
}
