//! The Prometheus metrics of a collector.

use std::net::SocketAddr;

use server::proto::credential::Right;
use server::proto::{CollectRequest, Credential, GetStockRequest, Grant, ReportEventsRequest};
use testing::readme::text;
use testing::{Redis, Scrape, eventually, http};
use tokio_stream::iter;
use tonic::Code;

use crate::fixture::*;

/// A collector, a client of it, and the address of its metrics.
async fn measured(redis: &Redis, extra: &[&str]) -> (Collector, Client, SocketAddr) {
    let (collector, client) = collector(redis, extra).await;
    let metrics = collector.metrics;
    (collector, client, metrics)
}

fn grant(openid: &str, count: u32, key: &str) -> Credential {
    let grant = Grant { template_id: "order-ready".into(), count, unlimited: false, grant_key: key.into() };
    Credential { openid: openid.into(), right: Some(Right::Grant(grant)), obtained_at: None }
}

#[tokio::test]
async fn counters_match_the_answers_to_callers() {
    let redis = Redis::start();
    let (_collector, mut client, metrics) = measured(&redis, &[]).await;
    let forms = (0..50).map(|n| form(&format!("o{n}"), &format!("f{n}")));
    let mock = form("o1", "the formId is a mock one");
    let rest = [prepay("o1", "wx1"), form("o0", "f0"), prepay("o1", "wx1"), mock.clone(), form("", "f")];
    collect(&mut client, forms.chain(rest).collect()).await.unwrap();
    collect(&mut client, vec![grant("o1", 3, "k"), grant("o1", 3, "k")]).await.unwrap();
    let batches = vec![batch(1, vec![form("o9", "s1"), form("o9", "s1"), mock]), batch(2, vec![form("o9", "f9")])];
    let mut acknowledged = client.collect_stream(iter(batches)).await.unwrap().into_inner();
    while acknowledged.message().await.unwrap().is_some() {}
    let body = popup(testing::now(), &[("order-ready", "accept")]);
    for _ in 0..2 {
        let event =
            ReportEventsRequest { app_id: APP.into(), body: body.clone().into(), ..ReportEventsRequest::default() };
        client.report_events(event).await.unwrap();
    }

    let scrape = Scrape::of(metrics).await;
    let expected = |counts: &[(&str, u64)]| counts.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
    let collected = scrape.by("formid_credentials_collected_total", "kind");
    assert_eq!(collected, expected(&[("form_id", 51), ("prepay_id", 1), ("grant", 2)]));
    let duplicate = scrape.by("formid_credentials_duplicate_total", "kind");
    assert_eq!(duplicate, expected(&[("form_id", 3), ("prepay_id", 1), ("grant", 2)]));
    let refused = scrape.by("formid_credentials_refused_total", "reason");
    assert_eq!(refused, expected(&[("mock_form_id", 2), ("bad_openid", 1)]));
    // The ledger counts messages: the prepay id permits three, and the first grant three too.
    let ledger = redis.store().await.ledger(&app()).await.unwrap();
    assert_eq!(ledger.collected, 51 + 3 + 3 + 1);

    let calls = |method| scrape.sum("grpc_server_handled_total", &[("grpc_method", method), ("grpc_code", "OK")]);
    assert_eq!((calls("Collect"), calls("CollectStream"), calls("ReportEvents")), (2, 1, 2));
    assert_eq!(scrape.sum("grpc_server_started_total", &[("grpc_type", "bidi_stream")]), 1);
    assert!(scrape.sum("formid_redis_seconds_count", &[("command", "collect.lua")]) > 0);
    assert_eq!(scrape.sum("formid_redis_seconds_count", &[("command", "other")]), 0);
}

#[tokio::test]
async fn gauges_match_get_stock() {
    let redis = Redis::start();
    for small in ["20000", "0"] {
        let (_collector, mut client, metrics) =
            measured(&redis, &["--sweep-period", "1s", "--small-app-users", small]).await;
        let of = |n: u32| {
            [form(&format!("o{n}"), &format!("{small}f{n}")), prepay(&format!("o{n}"), &format!("{small}w{n}"))]
        };
        collect(&mut client, (0..40).flat_map(of).collect()).await.unwrap();
        collect(&mut client, vec![grant("o1", 4, small)]).await.unwrap();
        eventually("the gauges follow", SOON, async || {
            let stock = client.get_stock(GetStockRequest { app_id: APP.into() }).await.unwrap().into_inner();
            let ledger = stock.ledger.unwrap();
            let scrape = Scrape::of(metrics).await;
            let states = scrape.by("formid_ledger_messages", "state");
            let ids = stock.days.iter().map(|day| day.messages).sum::<u64>();
            scrape.sum("formid_stock_messages", &[]) == ledger.available
                && scrape.sum("formid_stock_expiring_messages", &[]) == ids
                && scrape.sum("formid_stock_messages", &[("kind", "grant")]) == stock.templates[0].messages
                && scrape.sum("formid_reachable_users", &[("app", APP)]) == stock.reachable_users
                && states.get("collected") == Some(&ledger.collected)
                && states.get("available") == Some(&ledger.available)
        })
        .await;
    }
}

#[tokio::test]
async fn metrics_page_has_all_families_and_stops_with_the_service() {
    let redis = Redis::start();
    let (collector, _client, metrics) = measured(&redis, &[]).await;
    let scrape = Scrape::of(metrics).await;
    let expected = [
        "formid_build_info",
        "formid_credentials_collected_total",
        "formid_credentials_duplicate_total",
        "formid_credentials_refused_total",
        "formid_redis_errors_total",
        "formid_redis_seconds",
        "formid_redis_up",
        "formid_requests_in_flight",
        "formid_requests_shed_total",
        "formid_retries_total",
        "grpc_server_handled_total",
        "grpc_server_handling_seconds",
        "grpc_server_started_total",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ];
    let gauges = [
        "formid_ledger_messages",
        "formid_reachable_users",
        "formid_stock_expiring_messages",
        "formid_stock_messages",
        "formid_stock_resting_messages",
    ];
    let families: Vec<_> = scrape.families().into_iter().filter(|name| !gauges.contains(name)).collect();
    assert_eq!(families, expected);
    for name in scrape.families() {
        assert!(text("deploy/README.md").contains(&format!("`{name}`")), "{name} is not in deploy/README.md");
    }
    assert_eq!(scrape.value("formid_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1);
    assert_eq!(scrape.value("formid_redis_up", &[]), 1);
    for path in ["/", "/metrics/", "/metrics/x", "/health"] {
        assert!(http(metrics, "GET", path).await.unwrap().0.starts_with("http/1.1 404 "), "{path}");
    }
    assert!(http(metrics, "POST", "/metrics").await.unwrap().0.starts_with("http/1.1 405 "));
    collector.stop().await.unwrap().unwrap();
    eventually("the metrics port is closed", SOON, async || http(metrics, "GET", "/metrics").await.is_err()).await;
}

#[tokio::test]
async fn unknown_apps_get_no_label() {
    let redis = Redis::start();
    let (_collector, mut client, metrics) = measured(&redis, &[]).await;
    collect(&mut client, vec![form("oUser", "f1")]).await.unwrap();
    let families = |scrape: &Scrape| {
        // These appear once something was counted or a command was used, independent of calls.
        let later = ["formid_ledger", "formid_stock", "formid_reachable", "formid_redis_seconds"];
        let series = scrape.series().into_iter();
        series.filter(|(name, _)| !later.iter().any(|start| name.starts_with(start))).collect::<Vec<_>>()
    };
    let before = families(&Scrape::of(metrics).await);
    for n in 0..50 {
        let request = CollectRequest { app_id: format!("wx{n}"), credentials: vec![form("oUser", "f2")] };
        assert_eq!(client.collect(request).await.unwrap_err().code(), Code::NotFound);
    }
    let scrape = Scrape::of(metrics).await;
    assert_eq!(families(&scrape), before);
    assert_eq!(scrape.sum("grpc_server_handled_total", &[("grpc_code", "NotFound")]), 50);
    assert!(!scrape.text.contains("oUser"));
}
