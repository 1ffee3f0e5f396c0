//! The gRPC layer that both services share: authentication, TLS, limits, and the end of connections. It is tested here
//! with a collector.

mod ages;
mod callers;
mod changes;
mod limits;
mod logs;
mod overload;
mod probes;
mod readme;
mod tls;

use std::net::SocketAddr;

use server::proto::GetStockRequest;
use testing::{CallersFile, Scrape, bearer, eventually, reason};
use tonic::transport::Channel;

use crate::fixture::*;

/// A second app of the collectors of these tests.
const OTHER_APP: &str = "wxfedcba9876543210";

/// A caller with all permissions for all apps; its token is `all`.
const ALL: (&str, &str) =
    ("all", "token_sha256 = ['TOKEN(all)']\napps = ['*']\npermissions = ['collect', 'read', 'erase']");

/// Starts a collector for both apps with a callers file.
async fn guarded(
    redis: &testing::Redis,
    callers: &[(&str, &str)],
    flags: &[&str],
) -> (Collector, Channel, CallersFile) {
    let file = CallersFile::new(callers);
    let apps = format!("{APP},{OTHER_APP}");
    let given = file.flags();
    let mut all = vec!["--apps", &apps, &given[0], &given[1]];
    all.extend(flags);
    let (collector, _) = collector(redis, &all).await;
    let channel = connect(collector.address()).await;
    (collector, channel, file)
}

/// Waits until the metrics say whether the current content of a reloaded file is in use.
async fn until_in_use(metrics: SocketAddr, file: &str, in_use: bool) {
    eventually("the file was read", SOON, async || {
        Scrape::of(metrics).await.value("formid_reload_successful", &[("file", file)]) == u64::from(in_use)
    })
    .await;
}

/// Calls GetStock with a token; returns OK or the reason of the error.
async fn stock(channel: &Channel, token: &str) -> String {
    let mut client = Client::new(channel.clone());
    match client.get_stock(bearer(token, GetStockRequest { app_id: APP.into() })).await {
        Ok(_) => "OK".into(),
        Err(status) => reason(&status),
    }
}
