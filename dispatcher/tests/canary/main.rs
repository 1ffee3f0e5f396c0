//! No secret leaks: no log line at any level, no status, no trace and no metric contains one, in any failure.
//!
//! Each kind of secret is a unique string that occurs nowhere else (`secrets`). Both services run as processes that log
//! at `trace` and export a trace of every call. They use a WeChat that echoes each request (`lying_upstream`), and meet the
//! failures that can occur (`faulty_calls`, `broadcasts`, `failures`, `endpoints`). Then the test searches every byte that they
//! printed, answered, exported and showed on their metrics pages.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]

mod broadcasts;
mod endpoints;
mod failures;
mod faulty_calls;
mod fixture;
mod lying_upstream;
mod secrets;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use fixture::Fixture;
use lying_upstream::LyingUpstream;
use server::listen::Listeners;

/// Texts that the services must have logged on the way. If one is missing, its failure did not occur and the test
/// proves nothing about it.
const MET: [&str; 31] = [
    "no connection to WeChat",
    "no answer from WeChat in time",
    "the connection to WeChat broke off",
    "the HTTP status 500",
    "a redirect (HTTP status 302)",
    "not the JSON that was expected",
    "the source of the app's access tokens gives no usable token",
    "the answer has the HTTP status 500",
    "the proxy wants another user or password",
    "no connection to the proxy",
    "WeChat refuses an access token: nothing is sent for this app",
    "forcing a new one",
    "WeChat answered with an unknown errcode",
    "WeChat refused",
    "commands to Redis fail",
    "Redis rejected a command",
    "invalid data in Redis",
    "unknown command",
    "Password authentication failed",
    "not serving: waiting for Redis",
    "broadcast paused",
    "--redis-url",
    "--otlp-endpoint",
    "[apps.wx1]",
    "the callback tokens file",
    "traces are lost",
    "the callers file",
    "--tls-key",
    "the TLS certificate",
    "audit",
    "no permissions to run",
];

/// Spans that must have been exported.
const SPANS: [&str; 12] = [
    "formid.v1.CollectorService/ReportEvents",
    "send",
    "lease",
    "settle",
    "token",
    "template/send",
    "subscribe/send",
    "stable_token",
    "token_url",
    "store",
    "page",
    "broadcast",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_reaches_a_log_line_a_status_a_trace_or_a_metric_whatever_goes_wrong() {
    // In parallel, since most of the time is spent waiting.
    tokio::join!(nothing_leaks("human"), nothing_leaks("json"));
}

async fn nothing_leaks(log_format: &'static str) {
    let wechat = LyingUpstream::default();
    let fixture = Fixture::new(log_format, wechat.start().await).await;
    faulty_calls::all(&fixture, &wechat).await;
    failures::all(&fixture).await;
    endpoints::all(&fixture).await;

    let leaks = fixture.leaks();
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n\n"));
    let printed = fixture.printed();
    let missed: Vec<_> = MET.iter().filter(|phrase| !printed.contains(**phrase)).collect();
    assert!(missed.is_empty(), "never logged: {missed:?}");
    assert!(!printed.contains("panicked"), "{printed}");
    assert!(fixture.failures() > 100 && wechat.asked() > 50, "{} {}", fixture.failures(), wechat.asked());
    for family in ["formid_wechat_", "formid_redis_", "formid_requests_"] {
        assert!(fixture.pages().contains(family), "no metrics page with {family}");
    }
    for name in SPANS {
        assert!(!fixture.traces.named(name).is_empty(), "no span {name}");
    }
}

/// The collector as a process: it does what the `main` of the collector does. It is in this test binary because the
/// tests of this crate cannot rely on a built collector binary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the other test as a process"]
async fn collector_process() {
    let Ok(flags) = std::env::var("CANARY_COLLECTOR") else { return };
    let flags = collector::settings::Args::parse_from(std::iter::once("collector").chain(flags.split('\n')));
    let settings = match collector::settings::Settings::read(&flags) {
        Ok(settings) => settings,
        Err(problems) => {
            let _: ExitCode = server::telemetry::refuse(&problems, flags.common.log_json());
            std::process::exit(2);
        }
    };
    let telemetry = server::telemetry::start("formid-collector", &settings.common.log, &settings.common.traces);
    let shutdown = server::serve::signals().unwrap();
    let listeners = Listeners::open(settings.common.listen, settings.common.metrics_listen).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(300), collector::run(listeners, settings, shutdown)).await;
    telemetry.stop().await;
    ended.unwrap().unwrap();
}
