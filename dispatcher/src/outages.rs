//! The operations that the dispatcher repeats until they succeed, and what is logged while one fails: see
//! [`server::telemetry::outage`].

use domain::AppId;
use server::telemetry::outage::{Outage, Outages};

/// Repeated operations that concern all apps.
#[derive(Debug, Clone)]
pub struct Loops {
    pub reaps: Outage,
    pub stops: Outage,
    pub stop_shares: Outage,
    pub gauges: Outage,
    /// Reports of the number of sent messages to the other replicas.
    pub counts: Outage,
    /// Settling of single messages and of those of broadcasts.
    pub settles: Outage,
    /// All operations of broadcasts except settling.
    pub broadcasts: Outage,
}

impl Loops {
    pub fn new(outages: &Outages) -> Self {
        Self {
            reaps: outages.outage("reap", "expired leases cannot be settled", "expired leases are settled again"),
            stops: outages.outage("stops", "stops of other replicas cannot be read", "stops are read again"),
            stop_shares: outages.outage("stop_share", "stops cannot be shared", "stops are shared again"),
            gauges: outages.outage("gauges", "metrics of quota and pauses cannot be read", "metrics are read again"),
            counts: outages.outage("counts", "sends cannot be counted yet", "sends are counted again"),
            settles: outages.outage("settle", "messages cannot be settled yet", "messages are settled again"),
            broadcasts: outages.outage("broadcasts", "broadcasts wait for Redis", "broadcasts continue"),
        }
    }
}

/// Repeated operations of one app that depend on WeChat, or on Redis for its access token.
#[derive(Debug, Clone)]
pub struct WechatOutages {
    pub sends: Outage,
    pub tokens: Outage,
    pub sharing: Outage,
}

impl WechatOutages {
    pub fn new(app: &AppId, outages: &Outages) -> Self {
        let outage = |operation, begins, ends| outages.outage_of(app, operation, begins, ends);
        Self {
            sends: outage("wechat", "WeChat cannot be reached or does not answer", "WeChat answers again"),
            tokens: outage("token", "there is no access token", "there is an access token again"),
            sharing: outage(
                "token_share",
                "access tokens cannot be shared through Redis",
                "access tokens are shared again",
            ),
        }
    }
}
