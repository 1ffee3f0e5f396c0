//! Traces, as a collector of traces gets them from a dispatcher that is a process of its own.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sandbox::FaultKind;
use shared::proto::dispatcher_service_client::DispatcherServiceClient;
use shared::proto::{BroadcastRequest, BroadcastState, SendTemplateRequest, SendTemplateResponse};
use testing::{Process, Span, TraceCollector, attribute, eventually};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::broadcast::{look, to_all};
use crate::rig::{Rig, any_port, connect, message, request, serving};

const SOON: Duration = Duration::from_secs(20);
const METHOD: &str = "formid.v1.DispatcherService/SendTemplate";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A dispatcher that exports traces, unless told otherwise.
struct Traced {
    process: Process,
    client: DispatcherServiceClient<Channel>,
    log: PathBuf,
}

impl Traced {
    async fn start(rig: &Rig, endpoint: &str, extra: &[&str]) -> Self {
        let port = any_port();
        let log = PathBuf::from(rig.file("log", ""));
        let mut flags = vec!["--otlp-endpoint", endpoint];
        flags.extend(extra);
        let process = Process::start_printing(&mut rig.command(port, &flags), &log);
        let channel = connect(port).await;
        serving(channel.clone(), true).await;
        Self { process, client: DispatcherServiceClient::new(channel), log }
    }

    async fn send(&self, message: SendTemplateRequest, parent: &str) -> Result<SendTemplateResponse, Status> {
        let mut request = Request::new(message);
        if !parent.is_empty() {
            request.metadata_mut().insert("traceparent", parent.parse().unwrap());
            request.metadata_mut().insert("tracestate", "team=one".parse().unwrap());
        }
        self.client.clone().send_template(request).await.map(tonic::Response::into_inner)
    }

    /// Stops it; answers what it printed.
    async fn stop(mut self) -> String {
        self.process.signal("TERM");
        assert_eq!(self.process.wait(SOON).await, Some(0));
        std::fs::read_to_string(&self.log).unwrap()
    }
}

fn sampled() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans right below one.
fn below(spans: &[Span], parent: &Span) -> Vec<Span> {
    spans.iter().filter(|span| span.parent_span_id == parent.span_id).cloned().collect()
}

fn names(spans: &[Span]) -> Vec<&str> {
    let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    names
}

fn only(mut spans: Vec<Span>) -> Span {
    assert_eq!(spans.len(), 1, "{spans:?}");
    spans.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_is_a_part_of_its_callers_trace_and_shows_what_it_was_made_of() {
    let (rig, traces) = (Rig::patient().await, TraceCollector::start().await);
    let dispatcher = Traced::start(&rig, &traces.url(), &["--log", "debug"]).await;
    rig.submit("oUser", 1).await;
    dispatcher.send(request("oUser", "x", "r1"), &sampled()).await.unwrap();
    let refused = dispatcher.send(message("oNobody", "x"), "").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let log = dispatcher.stop().await;
    assert!(!log.contains("traces are lost"), "{log}");

    let spans = traces.spans();
    let calls = traces.named(METHOD);
    let call = calls.iter().find(|span| hex(&span.trace_id) == TRACE).unwrap();
    assert_eq!((hex(&call.parent_span_id).as_str(), call.trace_state.as_str()), (PARENT, "team=one"));
    for (key, value) in [
        ("rpc.system", "grpc"),
        ("rpc.service", "formid.v1.DispatcherService"),
        ("rpc.method", "SendTemplate"),
        ("rpc.grpc.status_code", "0"),
    ] {
        assert_eq!(attribute(call, key).as_deref(), Some(value), "{call:?}");
    }
    let send = only(below(&spans, call));
    assert_eq!(attribute(&send, "formid.outcome").as_deref(), Some("delivered"), "{send:?}");
    let parts = below(&spans, &send);
    assert_eq!(names(&parts), ["lease", "settle", "template/send"]);
    let wechat = parts.iter().find(|span| span.name == "template/send").unwrap();
    assert_eq!(attribute(wechat, "http.response.status_code").as_deref(), Some("200"), "{wechat:?}");
    assert_eq!(attribute(wechat, "wechat.errcode").as_deref(), Some("0"), "{wechat:?}");
    // The other call had no parent, and no credential to go on with.
    let other = calls.iter().find(|span| hex(&span.trace_id) != TRACE).unwrap();
    assert_eq!((other.parent_span_id.len(), attribute(other, "rpc.grpc.status_code").as_deref()), (0, Some("9")));
    assert_eq!(names(&below(&spans, &only(below(&spans, other)))), ["lease"]);
    // The access token was fetched for no call in particular.
    let token = only(traces.named("token"));
    assert_eq!(names(&below(&spans, &token)), ["stable_token"]);
    // Health checks are none of it.
    assert!(spans.iter().all(|span| !span.name.contains("Health")), "{:?}", names(&spans));
    assert!(traces.resource("service.name").iter().all(|name| name == "formid-dispatcher"));
    assert_eq!(traces.resource("service.version")[0], env!("CARGO_PKG_VERSION"));
    assert_eq!(traces.resource("service.instance.id")[0].len(), 32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_lines_of_a_traced_call_name_its_trace() {
    for (format, expected) in
        [("human", format!(" trace_id={TRACE}\n")), ("json", format!(",\"trace_id\":\"{TRACE}\"}}\n"))]
    {
        let (rig, traces) = (Rig::new().await, TraceCollector::start().await);
        let flags = ["--log", "debug", "--log-format", format, "--attempts", "1"];
        let dispatcher = Traced::start(&rig, &traces.url(), &flags).await;
        rig.submit("oUser", 1).await;
        rig.fault(FaultKind::Http500After, 1);
        dispatcher.send(request("oUser", "x", "r1"), &sampled()).await.unwrap_err();
        let log = dispatcher.stop().await;
        let line = log.split_inclusive('\n').find(|line| line.contains("WeChat did not answer")).unwrap();
        assert!(line.ends_with(&expected), "{line}");
        assert!(
            format == "human" || serde_json::from_str::<HashMap<String, serde_json::Value>>(line).is_ok(),
            "{line}"
        );
        let started = log.lines().find(|line| line.contains("serving: Redis is ready")).unwrap();
        assert!(!started.contains("trace_id"), "{started}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_was_given_up_shows_it_and_its_send_goes_on_to_its_end() {
    let (rig, traces) = (Rig::patient().await, TraceCollector::start().await);
    let dispatcher = Traced::start(&rig, &traces.url(), &[]).await;
    rig.submit("oUser", 1).await;
    rig.sandbox.set_settings(sandbox::Settings { latency_ms: 500, ..rig.sandbox.settings() }).unwrap();
    let mut late = Request::new(request("oUser", "x", "r1"));
    late.set_timeout(Duration::from_millis(150));
    dispatcher.client.clone().send_template(late).await.unwrap_err();
    dispatcher.stop().await;
    let (call, send) = (only(traces.named(METHOD)), only(traces.named("send")));
    // Either side may be the first to give up: CANCELLED or DEADLINE_EXCEEDED.
    assert!(matches!(attribute(&call, "rpc.grpc.status_code").as_deref(), Some("1" | "4")), "{call:?}");
    assert_eq!(attribute(&send, "formid.outcome").as_deref(), Some("delivered"), "{send:?}");
    assert_eq!(send.parent_span_id, call.span_id);
    assert!(send.end_time_unix_nano > call.end_time_unix_nano, "{call:?} {send:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_is_traced_by_bucket_and_page_and_not_by_message() {
    let (rig, traces) = (Rig::patient().await, TraceCollector::start().await);
    let dispatcher = Traced::start(&rig, &traces.url(), &[]).await;
    for user in 0..200 {
        rig.submit(&format!("oUser{user}"), 1).await;
    }
    let ordered = || BroadcastRequest { request_id: "b1".into(), ..to_all() };
    let mut order = Request::new(ordered());
    order.metadata_mut().insert("traceparent", sampled().parse().unwrap());
    let broadcast = dispatcher.client.clone().broadcast(order).await.unwrap().into_inner().broadcast.unwrap();
    eventually("it is done", SOON, async || {
        let info = look(&mut dispatcher.client.clone(), &broadcast.broadcast_id).await.unwrap();
        info.state() == BroadcastState::Done
    })
    .await;
    // With another trace it is still the same request.
    let mut again = Request::new(ordered());
    again.metadata_mut().insert("traceparent", format!("00-{PARENT}{PARENT}-{PARENT}-01").parse().unwrap());
    dispatcher.client.clone().broadcast(again).await.unwrap();
    dispatcher.stop().await;

    let buckets = traces.named("broadcast bucket");
    assert_eq!(buckets.len(), 4);
    let spans = traces.spans();
    for bucket in &buckets {
        assert_eq!(attribute(bucket, "formid.broadcast"), Some(broadcast.broadcast_id.clone()));
        assert_eq!((bucket.parent_span_id.len(), hex(&bucket.links[0].trace_id).as_str()), (0, TRACE));
        let parts = below(&spans, bucket);
        assert!(names(&parts).contains(&"page") && names(&parts).contains(&"settle"), "{parts:?}");
    }
    let sum = |name| {
        let messages = traces
            .named(name)
            .iter()
            .filter_map(|span| attribute(span, "formid.messages")?.parse::<u64>().ok())
            .sum::<u64>();
        (name, messages)
    };
    assert_eq!([sum("page"), sum("settle")], [("page", 200), ("settle", 200)]);
    assert!(traces.named("template/send").is_empty() && spans.len() < 100, "{} {:?}", spans.len(), names(&spans));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_endpoint_nothing_is_exported_whatever_the_environment_says() {
    let (rig, traces) = (Rig::patient().await, TraceCollector::start().await);
    let (port, log) = (any_port(), PathBuf::from(rig.file("log", "")));
    let mut command = rig.command(port, &["--log", "trace"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", traces.url()).env("OTEL_TRACES_SAMPLER", "always_on");
    let process = Process::start_printing(&mut command, &log);
    let channel = connect(port).await;
    serving(channel.clone(), true).await;
    let dispatcher = Traced { process, client: DispatcherServiceClient::new(channel), log };
    rig.submit("oUser", 1).await;
    dispatcher.send(message("oUser", "x"), &sampled()).await.unwrap();
    let log = dispatcher.stop().await;
    assert!(traces.exports().is_empty());
    // Nor do its spans show in the log, at any level.
    assert!(!log.contains("trace_id") && !log.contains("rpc.method") && !log.contains("formid.leased"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_caller_decides_what_is_traced_and_otherwise_the_ratio() {
    for (ratio, parent, traced) in [
        ("0", String::new(), false),
        ("0", sampled(), true),
        ("0", format!("00-{TRACE}-{PARENT}-00"), false),
        ("1", format!("00-{TRACE}-{PARENT}-00"), false),
        ("1", "00-nonsense".into(), true),
    ] {
        let (rig, traces) = (Rig::patient().await, TraceCollector::start().await);
        let dispatcher = Traced::start(&rig, &traces.url(), &["--trace-ratio", ratio]).await;
        rig.submit("oUser", 1).await;
        dispatcher.send(message("oUser", "x"), &parent).await.unwrap();
        dispatcher.stop().await;
        assert_eq!(traces.named(METHOD).len(), usize::from(traced), "{ratio} {parent}");
        assert_eq!(traces.named("lease").len(), usize::from(traced), "{ratio} {parent}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_of_traces_that_is_away_or_never_answers_hurts_nobody() {
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (closed, deaf) = (any_port(), deaf.local_addr().unwrap().port());
    for (scheme, port) in [("http", closed), ("http", deaf), ("https", closed), ("https", deaf)] {
        let rig = Rig::patient().await;
        let dispatcher = Traced::start(&rig, &format!("{scheme}://127.0.0.1:{port}"), &[]).await;
        rig.submit("oUser", 20).await;
        for _ in 0..20 {
            let asked = Instant::now();
            dispatcher.send(message("oUser", "x"), &sampled()).await.unwrap();
            assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        }
        eventually("it is told", SOON, async || {
            std::fs::read_to_string(&dispatcher.log).unwrap().contains("traces are lost")
        })
        .await;
        dispatcher.send(message("oNobody", "x"), &sampled()).await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let log = dispatcher.stop().await;
        assert_eq!(log.matches("traces are lost").count(), 1, "{log}");
    }
}
