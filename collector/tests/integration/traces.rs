//! Traces, as an OTLP endpoint receives them from a collector that runs as a separate process.

use std::net::SocketAddr;
use std::process::Command;

use server::proto::GetStockRequest;
use server::proto::collector_service_client::CollectorServiceClient;
use testing::{CallersFile, Process, Redis, TraceCollector, attribute, bearer, eventually, free_port};
use tonic::{Code, Request};

use crate::fixture::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(flavor = "multi_thread")]
async fn collect_continues_the_callers_trace_and_a_stream_is_one_span() {
    let (redis, traces, port) = (Redis::start(), TraceCollector::start().await, free_port());
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
    command.args(["--apps", APP, "--redis-url", &redis.url(), "--listen", &address.to_string(), "--drain-wait", "0s"]);
    command.args(["--otlp-endpoint", &traces.url()]);
    let mut process = Process::start(&mut command);
    eventually("it serves", SOON, async || is_serving(address).await).await;
    let mut client = CollectorServiceClient::new(connect(address).await);
    let mut asked = Request::new(request(vec![form("oUser", "f1"), form("oUser", "f2")]));
    asked.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
    client.collect(asked).await.unwrap();
    let batches = (0..5).map(|number| batch(number, vec![form("oUser", &format!("s{number}"))]));
    let mut answers = client.collect_stream(tokio_stream::iter(batches)).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    process.signal("TERM");
    assert_eq!(process.wait(SOON).await, Some(0));

    let call = traces.named("formid.v1.CollectorService/Collect").remove(0);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(PARENT, format!("00-{}-{}-01", hex(&call.trace_id), hex(&call.parent_span_id)));
    let stored = traces.named("store");
    assert_eq!((stored.len(), &stored[0].parent_span_id), (1, &call.span_id));
    for (key, value) in [
        ("formid.credentials", "2"),
        ("formid.app", APP),
        ("db.system.name", "redis"),
        ("db.operation.name", "EVALSHA"),
        ("db.stored_procedure.name", "collect.lua"),
    ] {
        assert_eq!(attribute(&stored[0], key).as_deref(), Some(value), "{key} {:?}", stored[0]);
    }
    assert_eq!(attribute(&call, "formid.app").as_deref(), Some(APP), "{call:?}");
    let stream = traces.named("formid.v1.CollectorService/CollectStream").remove(0);
    assert_eq!(attribute(&stream, "rpc.response.status_code").as_deref(), Some("OK"), "{stream:?}");
    assert!(traces.resource("service.name").iter().all(|name| name == "formid-collector"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unauthorized_call_leaves_no_trace() {
    let (redis, traces, port) = (Redis::start(), TraceCollector::start().await, free_port());
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let callers = CallersFile::new(&[("ours", "token_sha256 = ['TOKEN(ours)']\napps = ['*']\npermissions = ['read']")]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
    command.args(["--apps", APP, "--redis-url", &redis.url(), "--listen", &address.to_string(), "--drain-wait", "0s"]);
    command.args(["--otlp-endpoint", &traces.url()]).args(callers.flags());
    let mut process = Process::start(&mut command);
    eventually("it serves", SOON, async || is_serving(address).await).await;
    let mut client = CollectorServiceClient::new(connect(address).await);
    let stock = || GetStockRequest { app_id: APP.into() };
    let mut stranger = bearer("wrong", stock());
    stranger.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
    client.get_stock(stranger).await.unwrap_err();
    client.get_stock(bearer("ours", stock())).await.unwrap();
    client.collect(bearer("ours", request(vec![]))).await.unwrap_err();
    process.signal("TERM");
    assert_eq!(process.wait(SOON).await, Some(0));
    let names: Vec<_> = traces.spans().into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["formid.v1.CollectorService/GetStock"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_has_the_callers_status_for_unread_messages_too() {
    let (redis, traces, port) = (Redis::start(), TraceCollector::start().await, free_port());
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
    command.args(["--apps", APP, "--redis-url", &redis.url(), "--listen", &address.to_string(), "--drain-wait", "0s"]);
    command.args(["--otlp-endpoint", &traces.url(), "--max-message-bytes", "1024"]);
    let mut process = Process::start(&mut command);
    eventually("it serves", SOON, async || is_serving(address).await).await;
    let mut client = CollectorServiceClient::new(connect(address).await);
    let refused = client.collect(request(vec![form("oUser", &"f".repeat(2000))])).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    process.signal("TERM");
    assert_eq!(process.wait(SOON).await, Some(0));
    let call = traces.named("formid.v1.CollectorService/Collect").remove(0);
    assert_eq!(attribute(&call, "rpc.response.status_code").as_deref(), Some("RESOURCE_EXHAUSTED"));
}
