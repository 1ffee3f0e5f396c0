//! The commands that make a caller, and a call over TLS, as the README for operators shows them.

use testing::readme::Steps;
use testing::{Redis, free_port};

use super::tls::Secured;

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_make_a_token_that_the_readme_shows_works() {
    let redis = Redis::start();
    let folder = tempfile::tempdir().unwrap();
    let (port, url) = (free_port().to_string(), redis.url());
    let places = [
        ("./target/debug/collector", env!("CARGO_BIN_EXE_collector")),
        ("redis://127.0.0.1:7000", &url),
        ("7011", &port),
    ];
    let ran = Steps::of("deploy/README.md", "callers").run(folder.path(), &places).await;
    for ran in ran {
        ran.assert_as_shown();
        assert!(ran.output.contains("countedAt"), "{}", ran.output);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_call_over_tls_that_the_readme_shows_works() {
    let redis = Redis::start();
    let secured = Secured::start(&redis, true).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), &secured.authority.pem).unwrap();
    let client = secured.authority.client("spiffe://test/orders");
    client.write(&folder.path().join("orders.pem"), &folder.path().join("orders.key"));
    let address = secured.address.to_string();
    let steps = Steps::of("deploy/README.md", "tls").after("token=all");
    for ran in steps.run(folder.path(), &[("collector.internal:7001", &address)]).await {
        ran.assert_as_shown();
        assert!(ran.output.contains("countedAt"), "{}", ran.output);
    }
}
