//! The kinds of work that the dispatcher repeats until it succeeds, and what is logged when one fails for a while: see
//! [`shared::outage`].

use shared::credential::AppId;
use shared::outage::{Outage, Outages};

/// Work for all apps that is repeated until it succeeds.
#[derive(Debug, Clone)]
pub struct Loops {
    pub(crate) reaps: Outage,
    pub(crate) stops: Outage,
    pub(crate) stop_shares: Outage,
    /// Numbers that are read for metrics only.
    pub(crate) gauges: Outage,
    /// Reports of what was sent to the other replicas.
    pub(crate) counts: Outage,
    /// Messages that ended, single ones and those of broadcasts.
    pub(crate) settles: Outage,
    pub(crate) broadcasts: Outage,
}

impl Loops {
    pub(crate) fn new(outages: &Outages) -> Self {
        Self {
            reaps: outages.outage("reap", "expired leases cannot be settled", "expired leases are settled again"),
            stops: outages.outage("stops", "stops of other replicas cannot be read", "stops are read again"),
            stop_shares: outages.outage("stop_share", "stops cannot be shared", "stops are shared again"),
            gauges: outages.outage("gauges", "metrics of quota and pauses cannot be read", "metrics are read again"),
            counts: outages.outage("counts", "sends cannot be counted yet", "sends are counted again"),
            settles: outages.outage("settle", "messages cannot be settled yet", "messages are settled again"),
            broadcasts: outages.outage("broadcasts", "broadcasts wait for Redis", "broadcasts go on"),
        }
    }
}

/// What is repeated for one app while WeChat, or Redis behind its access token, is away.
#[derive(Debug, Clone)]
pub struct WechatOutages {
    /// Messages.
    pub(crate) sends: Outage,
    /// The way to an access token.
    pub(crate) tokens: Outage,
    /// Tokens that are fetched while Redis is away.
    pub(crate) sharing: Outage,
}

impl WechatOutages {
    pub(crate) fn new(app: &AppId, outages: &Outages) -> Self {
        let outage = |operation, begins, ends| outages.outage_of(app, operation, begins, ends);
        Self {
            sends: outage("wechat", "WeChat cannot be reached or does not answer", "WeChat answers again"),
            tokens: outage("token", "there is no access token", "there is an access token again"),
            sharing: outage(
                "token_share",
                "access tokens are not shared by way of Redis",
                "access tokens are shared again",
            ),
        }
    }
}
