//! Manual calls with grpcurl and buf curl, without proto files.

use std::net::SocketAddr;
use std::process::{Command, Output};

use testing::{Process, Redis, buf_curl, complained, eventually, free_port, grpcurl, printed};

use crate::fixture::{APP, SOON, is_serving};

const SERVICE: &str = "formid.v1.CollectorService";

/// The collector program and its address.
struct Collector {
    _process: Process,
    address: String,
}

impl Collector {
    async fn start(redis: &Redis) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
        command.env_clear().args(["--apps", APP, "--redis-url", &redis.url(), "--listen", &address.to_string()]);
        let process = Process::start(&mut command);
        eventually("it serves", SOON, async || is_serving(address).await).await;
        Self { _process: process, address: address.to_string() }
    }

    /// Calls a method with these fields after the app id.
    async fn call(&self, method: &str, fields: &str) -> Output {
        let body = format!(r#"{{"app_id": "{APP}", {fields}}}"#);
        grpcurl(&["-d", &body, &self.address, &format!("{SERVICE}/{method}")]).await
    }
}

/// Asserts that a text contains these parts in this order.
fn assert_parts(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let found = rest.find(part).unwrap_or_else(|| panic!("{part}, in its place, in {text}"));
        rest = &rest[found + part.len()..];
    }
}

#[tokio::test]
async fn grpcurl_lists_describes_and_collects() {
    let redis = Redis::start();
    let collector = Collector::start(&redis).await;
    let list = printed(grpcurl(&[&collector.address, "list"]).await);
    assert_parts(&list, &[SERVICE, "grpc.health.v1.Health"]);
    assert!(!list.contains("DispatcherService"), "a service of another program is listed: {list}");
    let service = printed(grpcurl(&[&collector.address, "describe", SERVICE]).await);
    for method in ["Collect", "CollectStream", "GetInventory", "GetStock", "EraseUser"] {
        assert!(service.contains(&format!("rpc {method} (")), "{method} in {service}");
    }
    let message = printed(grpcurl(&[&collector.address, "describe", "formid.v1.Credential"]).await);
    assert!(message.contains("form_id") && message.contains("prepay_id"), "{message}");

    let credentials = r#""credentials": [
        {"openid": "oUser", "form_id": "f69f0fb73e41b5690f586141531460f1"},
        {"openid": "oUser", "form_id": "the formId is a mock one"},
        {"openid": "oUser", "prepay_id": "wx201410272009395522657a690389285100"},
        {"openid": "o User", "form_id": "3b7ebc19a5d1a92ba1596260e11ae967"},
        {"openid": "oUser", "form_id": "3b7ebc19a5d1a92ba1596260e11ae967", "obtained_at": "2015-01-05T12:30:00+08:00"},
        {"openid": "oUser", "form_id": "f69f0fb73e41b5690f586141531460f1"}]"#;
    let collected = printed(collector.call("Collect", credentials).await);
    assert_parts(
        &collected,
        &[
            "COLLECT_STATUS_STORED",
            "COLLECT_STATUS_REFUSED",
            "REFUSAL_REASON_MOCK_FORM_ID",
            "a mock form id: WeChat's developer tools give no real ones",
            "COLLECT_STATUS_STORED",
            "COLLECT_STATUS_REFUSED",
            "REFUSAL_REASON_BAD_OPENID",
            "openid must consist of visible ASCII characters, without spaces",
            "COLLECT_STATUS_REFUSED",
            "REFUSAL_REASON_TOO_OLD",
            "obtained_at is so long ago",
            "COLLECT_STATUS_DUPLICATE",
        ],
    );
    let inventory = printed(collector.call("GetInventory", r#""openid": "oUser""#).await);
    assert_parts(
        &inventory,
        &[
            "CREDENTIAL_KIND_FORM_ID",
            r#""messages": 1"#,
            r#""soonestExpiry": "20"#,
            "CREDENTIAL_KIND_PREPAY_ID",
            r#""messages": 3"#,
            r#""latestExpiry": "20"#,
            r#""messages": 4"#,
        ],
    );
    assert!(!inventory.contains("wx2014") && !inventory.contains("f69f"), "a credential is shown: {inventory}");
    let stock = printed(grpcurl(&["-d", &body_of_the_app(), &collector.address, &format!("{SERVICE}/GetStock")]).await);
    assert_parts(
        &stock,
        &[
            r#""reachableUsers": "1""#,
            r#""day": "20"#,
            "countedAt",
            "ledger",
            r#""collected": "4""#,
            r#""available": "4""#,
        ],
    );
}

#[tokio::test]
async fn grpcurl_streams_batches() {
    let redis = Redis::start();
    let collector = Collector::start(&redis).await;
    let batches = format!(
        r#"{{"sequence": 1, "app_id": "{APP}", "credentials": [{{"openid": "oUser", "form_id": "f1"}}]}}
           {{"sequence": 2, "app_id": "{APP}", "credentials": [{{"openid": "oUser", "form_id": "f2"}}, {{"openid": "oUser"}}]}}"#
    );
    let method = format!("{SERVICE}/CollectStream");
    let acknowledged = printed(grpcurl(&["-d", &batches, &collector.address, &method]).await);
    for part in [r#""sequence": "1""#, r#""sequence": "2""#, r#""index": 1"#, "REFUSAL_REASON_EMPTY_ID"] {
        assert!(acknowledged.contains(part), "{part} in {acknowledged}");
    }
}

#[tokio::test]
async fn grpcurl_shows_readable_errors() {
    let redis = Redis::start();
    let collector = Collector::start(&redis).await;
    let fails = async |arguments: &[&str]| {
        let output = grpcurl(arguments).await;
        assert!(!output.status.success());
        complained(&output)
    };
    let collect = format!("{SERVICE}/Collect");
    let stranger = r#"{"app_id": "wxfeedfeedfeedfeed", "credentials": [{"openid": "oUser", "form_id": "f1"}]}"#;
    let stranger = fails(&["-d", stranger, &collector.address, &collect]).await;
    assert_parts(&stranger, &["NotFound", "app_id is not an app that this service is configured for"]);

    let credentials = vec![r#"{"openid": "oUser", "form_id": "f1"}"#; 1001].join(",");
    let many = format!(r#"{{"app_id": "{APP}", "credentials": [{credentials}]}}"#);
    let many = fails(&["-d", &many, &collector.address, &collect]).await;
    assert_parts(&many, &["InvalidArgument", "credentials must be at most 1000, but are 1001"]);

    let nothing = fails(&[&collector.address, &collect]).await;
    assert_parts(&nothing, &["InvalidArgument", "credentials must not be empty", "app_id must not be empty"]);
}

#[tokio::test]
async fn buf_curl_collects() {
    let redis = Redis::start();
    let collector = Collector::start(&redis).await;
    let body = format!(
        r#"{{"app_id": "{APP}", "credentials": [{{"openid": "oUser", "form_id": "f1"}}, {{"openid": "oUser", "form_id": ""}}]}}"#
    );
    let url = |method: &str| format!("http://{}/{SERVICE}/{method}", collector.address);
    let collected = printed(buf_curl(&["--data", &body, &url("Collect")]).await);
    assert_parts(&collected, &["COLLECT_STATUS_STORED", "COLLECT_STATUS_REFUSED", "REFUSAL_REASON_EMPTY_ID"]);
    let stock = printed(buf_curl(&["--data", &body_of_the_app(), &url("GetStock")]).await);
    assert_parts(&stock, &["reachableUsers", r#""1""#]);
}

fn body_of_the_app() -> String {
    format!(r#"{{"app_id": "{APP}"}}"#)
}
