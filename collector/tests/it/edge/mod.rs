//! The edge that both services have: who may call, over what, how much at once, and how connections end. It is tested
//! here on a collector.

mod ages;
mod callers;
mod changes;
mod limits;
mod logs;
mod overload;
mod probes;
mod readme;
mod tls;

use shared::proto::GetStockRequest;
use testing::{CallersFile, bearer, reason};
use tonic::transport::Channel;

use crate::support::*;

/// An app that the collectors of these tests are set up for besides.
const OTHER_APP: &str = "wxfedcba9876543210";

/// A caller that may do everything with everything, by the token `all`.
const ALL: (&str, &str) =
    ("all", "token_sha256 = ['TOKEN(all)']\napps = ['*']\npermissions = ['collect', 'read', 'erase']");

/// A collector for both apps with a callers file.
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

/// Asks for the stock with a token: what came of it, in a word.
async fn stock(channel: &Channel, token: &str) -> String {
    let mut client = Client::new(channel.clone());
    match client.get_stock(bearer(token, GetStockRequest { app_id: APP.into() })).await {
        Ok(_) => "OK".into(),
        Err(status) => reason(&status),
    }
}
