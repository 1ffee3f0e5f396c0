//! Failures at the entry of the services: callers without permission, invalid certificates, and files that become
//! invalid.

use std::net::SocketAddr;

use server::proto::collector_service_client::CollectorServiceClient;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{CollectRequest, GetStockRequest, ReportEventsRequest};
use testing::tls::{Authority, Pair, channel};
use testing::{CallersFile, Redis, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::broadcasts::{list, recipient, to_all};
use crate::failures::refused;
use crate::faulty_calls::{form, message};
use crate::fixture::{APP, EVERYTHING, Fixture, Metadata, NOWHERE, SOON, port};
use crate::secrets::{BEARER, OPENID};

pub async fn all(fixture: &Fixture) {
    let ours = Authority::new("ours");
    let pair = ours.server();
    fixture.keep_key(&pair.key);
    bad_files(fixture, &ours, &pair).await;

    let (redis, callers) = (Redis::alone(), callers());
    fixture.keep_hashes(&callers);
    let [front, back] = [port(), port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let (cert, key) = (fixture.file("door-cert", &pair.cert), fixture.file("door-key", &pair.key));
    let (ca, apps, url) = (fixture.file("door-ca", &ours.pem), fixture.apps_file(), redis.url());
    let [flag, file] = callers.flags();
    let edge = ["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca, &flag, &file, "--redis-url", &url];
    let listen = [front, back].map(|address| address.to_string());
    let apps_here = format!("{APP},{NOWHERE}");
    let processes = [
        fixture.collector(&[&edge[..], &["--apps", &apps_here, "--listen", &listen[0]]].concat()),
        fixture.dispatcher(&[&edge[..], &["--apps-file", &apps, "--listen", &listen[1]]].concat()),
    ];
    let known = ours.client("spiffe://test/canary");
    fixture.keep_key(&known.key);
    for address in [front, back] {
        eventually("the service is healthy over TLS", SOON, async || {
            let channel = channel(address, &ours.pem, Some(&known));
            let status = tonic_health::pb::health_client::HealthClient::new(channel).check(health()).await;
            status.is_ok_and(|answer| answer.into_inner().status == 1)
        })
        .await;
    }
    let connect = |pair: Option<&Pair>| [front, back].map(|address| channel(address, &ours.pem, pair));

    // Calls over a valid connection with each kind of token. Only the last token is accepted for every call.
    for (shown, expected) in [
        (nothing as Metadata, Some(Code::Unauthenticated)),
        (no_bearer, Some(Code::Unauthenticated)),
        (of_nobody, Some(Code::Unauthenticated)),
        (twice, Some(Code::Unauthenticated)),
        (narrow, None),
        (everything, None),
    ] {
        let codes = calls(fixture, connect(Some(&known)), shown).await;
        if let Some(expected) = expected {
            assert_eq!(codes, [Some(expected); 5]);
        }
    }
    // Connections with a missing, foreign or expired client certificate.
    let stranger = Authority::new("theirs").client(&format!("spiffe://test/{BEARER}"));
    fixture.keep_key(&stranger.key);
    for pair in [None, Some(&stranger), Some(&ours.expired("spiffe://test/canary"))] {
        calls(fixture, connect(pair), everything).await;
    }
    for address in [front, back] {
        in_plain_text(address).await;
    }

    // The files become invalid: the last valid content stays in use.
    let hash = std::fs::read_to_string(callers.path()).unwrap();
    callers.write_text(&format!("{hash}\n[callers.{BEARER}]\ntoken_sha256 = ['{BEARER}']\n{BEARER} = '{BEARER}"));
    fixture.file("door-key", &pair.key.replace("PRIVATE KEY", BEARER));
    tokio::time::sleep(server::reload::INTERVAL * 3).await;
    callers.write_text(&format!("{hash}\n[callers.{BEARER}]\ntoken_sha256 = ['{BEARER}']\n{BEARER} = '{BEARER}'"));
    fixture.file("door-key", &format!("{}{}", pair.cert, pair.key.replace("END", BEARER)));
    tokio::time::sleep(server::reload::INTERVAL * 3).await;
    calls(fixture, connect(Some(&known)), everything).await;

    fixture.read_pages().await;
    for mut process in processes {
        process.signal("TERM");
        assert_eq!(process.wait(SOON).await, Some(0));
    }
}

/// One caller with every permission, and one with few permissions and a low call rate.
fn callers() -> CallersFile {
    CallersFile::new(&[
        ("everything", &format!("token_sha256 = ['TOKEN({BEARER})']\n{EVERYTHING}")),
        (
            "narrow",
            &format!(
                "token_sha256 = ['TOKEN({BEARER}-narrow)']\napps = ['{NOWHERE}']\npermissions = ['read', 'send']\n\
                 calls_per_second = 1"
            ),
        ),
    ])
}

/// Files with which the services refuse to start.
async fn bad_files(fixture: &Fixture, ours: &Authority, pair: &Pair) {
    let (cert, key) = (fixture.file("good-cert", &pair.cert), fixture.file("good-key", &pair.key));
    let garbled = fixture.file("garbled-key", &pair.key.replace("END", BEARER));
    let ca = fixture.file("good-ca", &ours.pem);
    let apps = fixture.apps_file();
    for flags in [
        ["--tls-cert", &key, "--tls-key", &cert],
        ["--tls-cert", &key, "--tls-key", &key],
        ["--tls-cert", &cert, "--tls-key", &garbled],
        ["--tls-cert", &ca, "--tls-key", &key],
        ["--tls-key", &key, "--tls-client-ca", &key],
    ] {
        refused(fixture.collector(&[&flags[..], &["--apps", APP]].concat())).await;
        refused(fixture.dispatcher(&[&flags[..], &["--apps-file", &apps]].concat())).await;
    }
    // A key file is given in place of each other file.
    refused(fixture.collector(&["--apps", APP, "--callers-file", &key])).await;
    refused(fixture.collector(&["--apps", APP, "--callback-tokens", &key])).await;
    refused(fixture.dispatcher(&["--apps-file", &key])).await;
    for (number, text) in [
        "[callers.a]\ntoken_sha256 = ['S'",
        "[callers.a]\ntoken_sha256 = ['S']",
        "[callers.a]\ntoken_sha256 = 'S'\napps = 'S'\npermissions = 'S'",
        "[callers.a]\ntoken = 'S'",
        "[callers.a]\nS = 'S'",
        "[callers.a]\ntoken_sha256 = ['S', 'S']\ncalls_per_second = 'S'",
        "[callers.a]\ncertificate_names = ['S S', '']\napps = ['S']\npermissions = ['S']",
        "[callers]\na = 'S'",
        "[callers.S]\ntoken_sha256 = ['S']",
        "[S]\na = 'S'",
        "callers = 'S'",
        "S",
    ]
    .into_iter()
    .enumerate()
    {
        let callers = fixture.file(&format!("callers-{number}.toml"), &text.replace('S', BEARER));
        refused(fixture.collector(&["--apps", APP, "--callers-file", &callers])).await;
    }
}

/// Makes calls to both services that carry all kinds of secrets. Returns the code that each call ended with.
async fn calls(fixture: &Fixture, [front, back]: [Channel; 2], shown: Metadata) -> [Option<Code>; 5] {
    let mut collector = CollectorServiceClient::with_interceptor(front, shown);
    let mut dispatcher = DispatcherServiceClient::with_interceptor(back, shown);
    let collect = CollectRequest { app_id: APP.into(), credentials: vec![form(1, 9700)] };
    let (app_id, body) = (NOWHERE.to_owned(), format!("{{\"FromUserName\": \"{OPENID}\"}}").into_bytes());
    let events = ReportEventsRequest { app_id, body, ..ReportEventsRequest::default() };
    let order = server::proto::BroadcastRequest { audience: list([recipient(1)]), ..to_all() };
    let what = |call: &str| format!("{call} with other credentials");
    [
        ended(fixture.note(&what("Collect"), collector.collect(collect).await)),
        ended(fixture.note(&what("GetStock"), collector.get_stock(GetStockRequest { app_id: NOWHERE.into() }).await)),
        ended(fixture.note(&what("ReportEvents"), collector.report_events(events).await)),
        ended(fixture.note(&what("SendTemplate"), dispatcher.send_template(message(1)).await)),
        ended(fixture.note(&what("Broadcast"), dispatcher.broadcast(order).await)),
    ]
}

fn ended<T>(answer: Result<T, Status>) -> Option<Code> {
    answer.err().map(|status| status.code())
}

fn health() -> tonic_health::pb::HealthCheckRequest {
    tonic_health::pb::HealthCheckRequest::default()
}

/// A client that does not use TLS on a TLS port.
async fn in_plain_text(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /{OPENID} HTTP/1.1\r\nauthorization: Bearer {BEARER}\r\n\r\n");
    let _ = stream.write_all(request.as_bytes()).await;
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut Vec::new())).await;
}

fn showing(mut request: Request<()>, values: &[&str]) -> Request<()> {
    for value in values {
        request.metadata_mut().append("authorization", value.parse().unwrap());
    }
    request
}

fn nothing(request: Request<()>) -> Result<Request<()>, Status> {
    Ok(request)
}

fn no_bearer(request: Request<()>) -> Result<Request<()>, Status> {
    Ok(showing(request, &[&format!("Basic {BEARER}")]))
}

fn of_nobody(request: Request<()>) -> Result<Request<()>, Status> {
    Ok(showing(request, &[&format!("Bearer {BEARER}-of-nobody")]))
}

fn twice(request: Request<()>) -> Result<Request<()>, Status> {
    Ok(showing(request, &[&format!("Bearer {BEARER}"), &format!("Bearer {BEARER}-narrow")]))
}

fn narrow(request: Request<()>) -> Result<Request<()>, Status> {
    Ok(showing(request, &[&format!("Bearer {BEARER}-narrow")]))
}

fn everything(request: Request<()>) -> Result<Request<()>, Status> {
    Ok(showing(request, &[&format!("Bearer {BEARER}")]))
}
