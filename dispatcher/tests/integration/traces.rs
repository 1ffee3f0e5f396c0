//! Traces as a trace collector receives them from a dispatcher process.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use sandbox::{FaultKind, Rule};
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{BroadcastRequest, BroadcastState, SendTemplateRequest, SendTemplateResponse};
use testing::{Process, Redis, Span, SpanKind, StatusCode, TraceCollector, attribute, eventually};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::broadcast::{look, to_all};
use crate::fixture::{APP, Fixture, any_port, connect, message, request, serving};

const SOON: Duration = Duration::from_secs(20);
const METHOD: &str = "formid.v1.DispatcherService/SendTemplate";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A dispatcher process that exports traces to `endpoint`.
struct Traced {
    process: Process,
    client: DispatcherServiceClient<Channel>,
    port: u16,
    log: PathBuf,
}

impl Traced {
    async fn start(fixture: &Fixture, endpoint: &str, extra: &[&str]) -> Self {
        let port = any_port();
        let log = PathBuf::from(fixture.file(&format!("log-{port}"), ""));
        let mut flags = vec!["--otlp-endpoint", endpoint];
        flags.extend(extra);
        let process = Process::start_printing(&mut fixture.command(port, &flags), &log);
        let channel = connect(port).await;
        serving(channel.clone(), true).await;
        Self { process, client: DispatcherServiceClient::new(channel), port, log }
    }

    async fn send(&self, message: SendTemplateRequest, parent: &str) -> Result<SendTemplateResponse, Status> {
        let mut request = Request::new(message);
        if !parent.is_empty() {
            request.metadata_mut().insert("traceparent", parent.parse().unwrap());
            request.metadata_mut().insert("tracestate", "team=one".parse().unwrap());
        }
        self.client.clone().send_template(request).await.map(tonic::Response::into_inner)
    }

    /// Stops the dispatcher and returns its log.
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

/// The direct children of a span.
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
async fn send_is_part_of_its_callers_trace_and_shows_its_steps() {
    let (fixture, traces) = (Fixture::patient().await, TraceCollector::start().await);
    let dispatcher = Traced::start(&fixture, &traces.url(), &["--log", "debug"]).await;
    fixture.submit("oUser", 1).await;
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
        ("rpc.system.name", Some("grpc")),
        ("rpc.method", Some(METHOD)),
        ("rpc.response.status_code", Some("OK")),
        ("formid.app", Some(APP)),
        // Attribute names of earlier semantic conventions.
        ("rpc.system", None),
        ("rpc.service", None),
        ("rpc.grpc.status_code", None),
        ("error.type", None),
    ] {
        assert_eq!(attribute(call, key).as_deref(), value, "{key} {call:?}");
    }
    let send = only(below(&spans, call));
    assert_eq!(attribute(&send, "formid.outcome").as_deref(), Some("delivered"), "{send:?}");
    let parts = below(&spans, &send);
    assert_eq!(names(&parts), ["lease", "settle", "template/send"]);
    let wechat = parts.iter().find(|span| span.name == "template/send").unwrap();
    let port = fixture.base_url.rsplit(':').next().unwrap();
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("server.address", "127.0.0.1"),
        ("server.port", port),
        ("wechat.errcode", "0"),
        ("formid.app", APP),
    ] {
        assert_eq!(attribute(wechat, key).as_deref(), Some(value), "{key} {wechat:?}");
    }
    assert_eq!((wechat.kind(), attribute(wechat, "error.type")), (SpanKind::Client, None));
    for (step, script) in [("lease", "lease.lua"), ("settle", "settle.lua")] {
        let step = parts.iter().find(|span| span.name == step).unwrap();
        assert_eq!(step.kind(), SpanKind::Client);
        for (key, value) in [
            ("db.system.name", "redis"),
            ("db.operation.name", "EVALSHA"),
            ("db.stored_procedure.name", script),
            ("formid.app", APP),
        ] {
            assert_eq!(attribute(step, key).as_deref(), Some(value), "{key} {step:?}");
        }
    }
    // The other call had no parent span, and its user has no credential.
    let other = calls.iter().find(|span| hex(&span.trace_id) != TRACE).unwrap();
    let code = attribute(other, "rpc.response.status_code");
    assert_eq!((other.parent_span_id.len(), code.as_deref()), (0, Some("FAILED_PRECONDITION")));
    assert_eq!(names(&below(&spans, &only(below(&spans, other)))), ["lease"]);
    // The token fetch is a trace of its own.
    let token = only(traces.named("token"));
    assert_eq!(names(&below(&spans, &token)), ["stable_token"]);
    // Health checks are not traced.
    assert!(spans.iter().all(|span| !span.name.contains("Health")), "{:?}", names(&spans));
    assert!(traces.resource("service.name").iter().all(|name| name == "formid-dispatcher"));
    assert_eq!(traces.resource("service.version")[0], env!("CARGO_PKG_VERSION"));
    assert_eq!(traces.resource("service.instance.id")[0].len(), 32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_of_a_traced_call_contain_its_trace_id() {
    for (format, expected) in
        [("human", format!(" trace_id={TRACE}\n")), ("json", format!(",\"trace_id\":\"{TRACE}\"}}\n"))]
    {
        let (fixture, traces) = (Fixture::patient().await, TraceCollector::start().await);
        let flags = ["--log", "debug", "--log-format", format, "--attempts", "1"];
        let dispatcher = Traced::start(&fixture, &traces.url(), &flags).await;
        fixture.submit("oUser", 1).await;
        fixture.fault(FaultKind::Http500After, 1);
        dispatcher.send(request("oUser", "x", "r1"), &sampled()).await.unwrap_err();
        let log = dispatcher.stop().await;
        let line = log.split_inclusive('\n').find(|line| line.contains("does not answer")).unwrap();
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
async fn cancelled_call_shows_it_and_its_send_continues_to_the_end() {
    let (fixture, traces) = (Fixture::patient().await, TraceCollector::start().await);
    let dispatcher = Traced::start(&fixture, &traces.url(), &[]).await;
    fixture.submit("oUser", 1).await;
    fixture.sandbox.set_settings(sandbox::Settings { latency_ms: 2000, ..fixture.sandbox.settings() }).unwrap();
    let mut late = Request::new(request("oUser", "x", "r1"));
    late.set_timeout(Duration::from_millis(150));
    dispatcher.client.clone().send_template(late).await.unwrap_err();
    dispatcher.stop().await;
    let (call, send) = (only(traces.named(METHOD)), only(traces.named("send")));
    // Either side may give up first: CANCELLED or DEADLINE_EXCEEDED.
    let code = attribute(&call, "rpc.response.status_code");
    assert!(matches!(code.as_deref(), Some("CANCELLED" | "DEADLINE_EXCEEDED")), "{call:?}");
    assert_eq!(attribute(&send, "formid.outcome").as_deref(), Some("delivered"), "{send:?}");
    assert_eq!(send.parent_span_id, call.span_id);
    assert!(send.end_time_unix_nano > call.end_time_unix_nano, "{call:?} {send:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_span_says_why() {
    let (mut fixture, traces) = (Fixture::on(Redis::durable_alone()).await, TraceCollector::start().await);
    let dispatcher = Traced::start(&fixture, &traces.url(), &["--attempts", "1"]).await;
    fixture.submit("oUser", 9).await;
    let failing = async |id: &str| dispatcher.send(request("oUser", "x", id), "").await.unwrap_err();
    fixture.fault(FaultKind::Http500After, 1);
    failing("r1").await;
    let hang = Rule { times: Some(1), hang_ms: Some(700), ..Rule::new(FaultKind::HangAfter) };
    fixture.sandbox.add_faults(vec![hang]).unwrap();
    failing("r2").await;
    fixture.answer(40037, 1);
    failing("r3").await;
    fixture.answer(77777, 1);
    failing("r4").await;
    fixture.redis.kill();
    assert_eq!(failing("r5").await.code(), Code::Unavailable);
    fixture.redis.resume();
    serving(connect(dispatcher.port).await, true).await;
    dispatcher.stop().await;

    let kinds = |name| {
        let mut failed = traces.named(name);
        failed.retain(|span| span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error));
        failed.sort_by_key(|span| span.start_time_unix_nano);
        failed.iter().map(|span| attribute(span, "error.type").unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(kinds("template/send"), ["500", "timeout", "40037", "_OTHER"]);
    assert!(matches!(&*kinds("lease")[0], "no_connection" | "connection_lost"), "{:?}", kinds("lease"));
    // A refused message is a problem of the request and not an error of the service.
    assert!(kinds(METHOD).contains(&"UNAVAILABLE".into()), "{:?}", kinds(METHOD));
    assert!(!kinds(METHOD).contains(&"FAILED_PRECONDITION".into()), "{:?}", kinds(METHOD));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_is_one_trace_per_replica_with_sampled_steps() {
    let (fixture, traces) = (Fixture::patient().await, TraceCollector::start().await);
    // A broadcast is traced if the call that started it was sampled.
    let dispatcher = Traced::start(&fixture, &traces.url(), &["--trace-ratio", "0"]).await;
    fixture.submit_crowd(0..1000).await;
    let ordered = || BroadcastRequest { request_id: "b1".into(), ..to_all() };
    let mut order = Request::new(ordered());
    order.metadata_mut().insert("traceparent", sampled().parse().unwrap());
    let broadcast = dispatcher.client.clone().broadcast(order).await.unwrap().into_inner().broadcast.unwrap();
    let id = broadcast.broadcast_id;
    until_done(&dispatcher, &id).await;
    // A repeated request with another trace is still the same request.
    let mut again = Request::new(ordered());
    again.metadata_mut().insert("traceparent", format!("00-{PARENT}{PARENT}-{PARENT}-01").parse().unwrap());
    dispatcher.client.clone().broadcast(again).await.unwrap();
    dispatcher.stop().await;

    let run = only(traces.named("broadcast"));
    assert_eq!((run.parent_span_id.len(), hex(&run.links[0].trace_id).as_str()), (0, TRACE));
    assert_eq!(attribute(&run, "formid.messages").as_deref(), Some("1000"));
    let order = traces.named("formid.v1.DispatcherService/Broadcast").remove(0);
    let spans: Vec<_> = traces.spans().into_iter().filter(|span| span.trace_id == run.trace_id).collect();
    let steps = below(&spans, &run);
    for span in steps.iter().chain([&run, &order]) {
        assert_eq!(attribute(span, "formid.broadcast"), Some(id.clone()), "{span:?}");
        assert_eq!(attribute(span, "formid.app").as_deref(), Some(APP), "{span:?}");
    }
    let count = |name| names(&steps).iter().filter(|step| **step == name).count();
    // The first sixteen steps are traced, then the 32nd and so on. Four buckets are processed concurrently.
    for name in ["page", "settle", "send"] {
        assert!((1..=16 + 6 + 4).contains(&count(name)), "{name}: {:?}", names(&steps));
    }
    let page = steps.iter().find(|span| span.name == "page").unwrap();
    assert_eq!(attribute(page, "db.stored_procedure.name").as_deref(), Some("broadcast/page.lua"), "{page:?}");
    // Each traced page has one traced message, with its call to WeChat.
    for message in steps.iter().filter(|span| span.name == "send") {
        assert_eq!(attribute(message, "formid.outcome").as_deref(), Some("delivered"), "{message:?}");
        assert_eq!(names(&below(&spans, message)), ["template/send"], "{message:?}");
    }
    assert_eq!(traces.named("template/send").len(), count("send"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_broadcast_in_many_buckets_has_no_empty_spans() {
    let fixture = Fixture::with_buckets(Redis::start(), 512).await.patiently();
    let traces = TraceCollector::start().await;
    let mut dispatchers = Vec::new();
    for _ in 0..3 {
        dispatchers.push(Traced::start(&fixture, &traces.url(), &[]).await);
    }
    fixture.submit_crowd(0..60).await;
    let order = dispatchers[0].client.clone().broadcast(to_all()).await.unwrap().into_inner();
    let id = order.broadcast.unwrap().broadcast_id;
    until_done(&dispatchers[0], &id).await;
    for dispatcher in dispatchers {
        dispatcher.stop().await;
    }

    let runs = traces.named("broadcast");
    assert!((1..=3).contains(&runs.len()), "{runs:?}");
    let of_runs: HashSet<_> = runs.iter().map(|run| run.trace_id.clone()).collect();
    let number = |span: &Span| attribute(span, "formid.messages").unwrap().parse::<u64>().unwrap();
    assert_eq!(runs.iter().map(number).sum::<u64>(), 60);
    // The call that started the broadcast is the only span of it outside these traces.
    let spans: Vec<_> =
        traces.spans().into_iter().filter(|span| attribute(span, "formid.broadcast") == Some(id.clone())).collect();
    let elsewhere: Vec<_> = spans.iter().filter(|span| !of_runs.contains(&span.trace_id)).collect();
    assert_eq!(elsewhere.len(), 1, "{elsewhere:?}");
    let steps: Vec<_> = traces.named("page").into_iter().chain(traces.named("settle")).collect();
    assert!(steps.len() > runs.len() && steps.iter().all(|step| number(step) > 0), "{steps:?}");
    assert!(steps.iter().all(|step| of_runs.contains(&step.trace_id)), "{steps:?}");
}

async fn until_done(dispatcher: &Traced, id: &str) {
    eventually("the broadcast is done", SOON * 3, async || {
        look(&mut dispatcher.client.clone(), id).await.unwrap().state() == BroadcastState::Done
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_endpoint_flag_nothing_is_exported_despite_environment() {
    let (fixture, traces) = (Fixture::patient().await, TraceCollector::start().await);
    let (port, log) = (any_port(), PathBuf::from(fixture.file("log", "")));
    let mut command = fixture.command(port, &["--log", "trace"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", traces.url()).env("OTEL_TRACES_SAMPLER", "always_on");
    let process = Process::start_printing(&mut command, &log);
    let channel = connect(port).await;
    serving(channel.clone(), true).await;
    let dispatcher = Traced { process, client: DispatcherServiceClient::new(channel), port, log };
    fixture.submit("oUser", 1).await;
    dispatcher.send(message("oUser", "x"), &sampled()).await.unwrap();
    let log = dispatcher.stop().await;
    assert!(traces.exports().is_empty());
    // No span appears in the log either, at any level.
    assert!(!log.contains("trace_id") && !log.contains("rpc.method") && !log.contains("formid.leased"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_decides_what_is_traced_and_otherwise_the_ratio() {
    for (ratio, parent, traced) in [
        ("0", String::new(), false),
        ("0", sampled(), true),
        ("0", format!("00-{TRACE}-{PARENT}-00"), false),
        ("1", format!("00-{TRACE}-{PARENT}-00"), false),
        ("1", "00-nonsense".into(), true),
    ] {
        let (fixture, traces) = (Fixture::patient().await, TraceCollector::start().await);
        let dispatcher = Traced::start(&fixture, &traces.url(), &["--trace-ratio", ratio]).await;
        fixture.submit("oUser", 1).await;
        dispatcher.send(message("oUser", "x"), &parent).await.unwrap();
        dispatcher.stop().await;
        assert_eq!(traces.named(METHOD).len(), usize::from(traced), "{ratio} {parent}");
        assert_eq!(traces.named("lease").len(), usize::from(traced), "{ratio} {parent}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_or_silent_trace_collector_does_not_affect_sends() {
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (closed, deaf) = (any_port(), deaf.local_addr().unwrap().port());
    for (scheme, port) in [("http", closed), ("http", deaf), ("https", closed), ("https", deaf)] {
        let fixture = Fixture::patient().await;
        let dispatcher = Traced::start(&fixture, &format!("{scheme}://127.0.0.1:{port}"), &[]).await;
        fixture.submit("oUser", 20).await;
        for _ in 0..20 {
            dispatcher.send(message("oUser", "x"), &sampled()).await.unwrap();
        }
        eventually("the loss of traces is logged", SOON, async || {
            std::fs::read_to_string(&dispatcher.log).unwrap().contains("traces are lost")
        })
        .await;
        dispatcher.send(message("oNobody", "x"), &sampled()).await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let log = dispatcher.stop().await;
        assert_eq!(log.matches("traces are lost").count(), 1, "{log}");
    }
}
