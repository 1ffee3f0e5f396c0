//! No secret comes out: not in a log line at any level, not in a status, not in a trace, not in a metric, whatever goes
//! wrong.
//!
//! Each kind of secret is a string of its own that stands nowhere else (`secrets`). Both services run as processes that
//! log at `trace` and export every call, against a WeChat that quotes all it hears (`liar`), and are taken through what
//! can fail (`troubles`, `crowds`, `mishaps`, `doors`). Then every byte that they printed, answered, exported and showed
//! on their pages of metrics is searched.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]

mod crowds;
mod doors;
mod liar;
mod mishaps;
mod secrets;
mod troubles;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use liar::Liar;
use shared::listeners::Listeners;
use world::World;

/// What must have been met on the way, by what the services say of it; otherwise this proves nothing.
const MET: [&str; 28] = [
    "no connection to WeChat",
    "no answer from WeChat in time",
    "the connection to WeChat broke off",
    "the HTTP status 500",
    "a redirect (HTTP status 302)",
    "not the JSON that was expected",
    "WeChat refuses an access token: nothing is sent for this app",
    "WeChat refuses an access token with a code that is not known here",
    "forcing a new one",
    "a code that is not known here",
    "WeChat refused",
    "commands to Redis fail",
    "Redis refuses a command",
    "unusable data in Redis",
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

/// And what must have been in the traces.
const SPANS: [&str; 11] = [
    "formid.v1.CollectorService/ReportEvents",
    "send",
    "lease",
    "settle",
    "token",
    "template/send",
    "subscribe/send",
    "stable_token",
    "store",
    "page",
    "broadcast",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_reaches_a_log_line_a_status_a_trace_or_a_metric_whatever_goes_wrong() {
    // Side by side, since most of it is waiting.
    tokio::join!(nothing_leaks("human"), nothing_leaks("json"));
}

async fn nothing_leaks(log_format: &'static str) {
    let wechat = Liar::default();
    let world = World::new(log_format, wechat.start().await).await;
    troubles::all(&world, &wechat).await;
    mishaps::all(&world).await;
    doors::all(&world).await;

    let leaks = world.leaks();
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n\n"));
    let printed = world.printed();
    let missed: Vec<_> = MET.iter().filter(|phrase| !printed.contains(**phrase)).collect();
    assert!(missed.is_empty(), "never met: {missed:?}");
    assert!(!printed.contains("panicked"), "{printed}");
    assert!(world.failures() > 100 && wechat.asked() > 50, "{} {}", world.failures(), wechat.asked());
    for family in ["formid_wechat_", "formid_redis_", "formid_requests_"] {
        assert!(world.pages().contains(family), "no page with {family}");
    }
    for name in SPANS {
        assert!(!world.traces.named(name).is_empty(), "no span {name}");
    }
}

/// The collector as a process of its own: what its `main` does, in a program that the tests of this crate always have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "not a test"]
async fn collector_process() {
    let Ok(flags) = std::env::var("CANARY_COLLECTOR") else { return };
    let flags = collector::settings::Flags::parse_from(std::iter::once("collector").chain(flags.split('\n')));
    let settings = match collector::settings::Settings::read(&flags) {
        Ok(settings) => settings,
        Err(problems) => {
            let _: ExitCode = shared::telemetry::refuse(&problems, flags.common.log_json());
            std::process::exit(2);
        }
    };
    let telemetry = shared::telemetry::start("formid-collector", &settings.common.log, &settings.common.traces);
    let shutdown = shared::serve::signals().unwrap();
    let listeners = Listeners::open(&settings.common).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(300), collector::run(listeners, settings, shutdown)).await;
    telemetry.stop().await;
    ended.unwrap().unwrap();
}
