//! A real forward proxy between the dispatcher and the sandbox, which is reached over TLS.

use std::time::Duration;

use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{Outcome, SendTemplateResponse};
use testing::tls::{Authority, terminated};
use testing::{Process, Tinyproxy, eventually};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::fixture::{Fixture, any_port, connect, reason, request, serving};
use crate::token_server::Tokens;

const SOON: Duration = Duration::from_secs(60);
const PASSWORD: &str = "canary-password";

struct Setting {
    fixture: Fixture,
    /// Port of the sandbox's TLS.
    port: u16,
    authority: String,
}

impl Setting {
    async fn new() -> Self {
        let mut fixture = Fixture::patient().await;
        let authority = Authority::new("wechat");
        let sandbox = fixture.base_url.trim_start_matches("http://").parse().unwrap();
        let tls = terminated(sandbox, &authority.server()).await;
        fixture.base_url = format!("https://{tls}");
        let authority = fixture.file("authority.pem", &authority.pem);
        Self { fixture, port: tls.port(), authority }
    }

    /// Starts a dispatcher process with this proxy.
    async fn dispatcher(&mut self, proxy: &str, log: &str) -> (Process, DispatcherServiceClient<Channel>) {
        self.fixture.app_settings = format!("proxy = \"{proxy}\"\n");
        let port = any_port();
        let mut command = self.fixture.command(port, &["--log", "trace"]);
        // A proxy of the environment must not be used.
        command.env("SSL_CERT_FILE", &self.authority).env("HTTPS_PROXY", "http://127.0.0.1:1");
        let process = Process::start_printing(&mut command, log.as_ref());
        serving(connect(port).await, true).await;
        (process, DispatcherServiceClient::new(connect(port).await))
    }
}

async fn send(dispatcher: &mut DispatcherServiceClient<Channel>, id: &str) -> Result<SendTemplateResponse, Status> {
    dispatcher.send_template(request("oUser", id, id)).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_through_the_proxy_which_sees_no_token() {
    let mut setting = Setting::new().await;
    let proxy = Tinyproxy::start("formid", PASSWORD, setting.port);
    let log = setting.fixture.file("log", "");
    let (_process, mut dispatcher) =
        setting.dispatcher(&format!("http://formid:{PASSWORD}@{}", proxy.address()), &log).await;
    setting.fixture.submit("oUser", 2).await;
    for id in ["r1", "r2"] {
        let answer = send(&mut dispatcher, id).await.unwrap();
        assert_eq!((answer.outcome(), answer.attempts), (Outcome::Delivered, 1));
    }
    let seen = proxy.log();
    assert!(seen.contains(&format!("CONNECT 127.0.0.1:{} HTTP/1.1", setting.port)), "{seen}");
    assert!(!seen.contains("cgi-bin") && !seen.contains("access_token"), "{seen}");
    assert!(!std::fs::read_to_string(log).unwrap().contains(PASSWORD));
    setting.fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_while_the_proxy_refuses_or_is_away() {
    let mut setting = Setting::new().await;
    // The app has a token, so that a message gets as far as the proxy.
    let server = Tokens::start(r#"{"access_token":"canary-token"}"#).await;
    setting.fixture.token_source = format!("token_url = \"{}\"", server.url);
    setting.fixture.submit("oUser", 1).await;
    let proxy = Tinyproxy::start("formid", PASSWORD, setting.port);
    let elsewhere = Tinyproxy::start("formid", PASSWORD, 9);
    let mut away = Tinyproxy::start("formid", PASSWORD, setting.port);
    away.kill();
    for (number, (user, proxy, told)) in [
        (format!("formid:{PASSWORD}-wrong"), &proxy, "the proxy opens no tunnel to WeChat (CONNECT)"),
        (format!("formid:{PASSWORD}"), &elsewhere, "the proxy opens no tunnel to WeChat (CONNECT)"),
        (format!("formid:{PASSWORD}"), &away, "no connection to the proxy"),
    ]
    .into_iter()
    .enumerate()
    {
        let log = setting.fixture.file(&format!("log-{number}"), "");
        let url = format!("http://{user}@{}", proxy.address());
        let (mut process, mut dispatcher) = setting.dispatcher(&url, &log).await;
        let status = send(&mut dispatcher, "r1").await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "WECHAT_UNREACHABLE"));
        assert_eq!(setting.fixture.left("oUser").await, 1);
        process.signal("TERM");
        assert_eq!(process.wait(SOON).await, Some(0));
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains(told), "{told} in {log}");
        assert!(!log.contains(PASSWORD) && !log.contains("canary-token"), "{log}");
    }
    assert_eq!(setting.fixture.sandbox.books(None).unwrap().calls, 0);
    setting.fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_is_delivered_once_when_the_proxy_is_back() {
    let mut setting = Setting::new().await;
    let mut proxy = Tinyproxy::start("formid", PASSWORD, setting.port);
    proxy.kill();
    setting.fixture.submit("oUser", 1).await;
    let log = setting.fixture.file("log", "");
    let url = format!("http://formid:{PASSWORD}@{}", proxy.address());
    let (_process, mut dispatcher) = setting.dispatcher(&url, &log).await;
    // The token is fetched through the proxy too.
    let status = send(&mut dispatcher, "r1").await.unwrap_err();
    assert_eq!(reason(&status), "TOKEN_UNAVAILABLE");
    assert!(status.message().contains("no connection to the proxy"), "{}", status.message());
    proxy.resume();
    eventually("the message is delivered", SOON, async || {
        send(&mut dispatcher, "r1").await.is_ok_and(|answer| answer.outcome() == Outcome::Delivered)
    })
    .await;
    assert_eq!(setting.fixture.delivered(), 1);
    setting.fixture.assert_settled(0).await;
}
