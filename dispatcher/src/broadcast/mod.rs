//! Broadcasts: one message to each user of an audience, even if replicas crash or Redis fails meanwhile.
//!
//! Calls arrive at [`api`], which stores the broadcast ([`spec`]). From then on the scheduler ([`scheduler`]) of each
//! replica takes tasks, each for one bucket of users. A worker ([`worker`]; `fetch` holds its Redis calls) processes a
//! task: it takes users and leases page by page, sends, and settles. All workers of a broadcast on a replica share
//! [`active`]. It holds the adaptive limit of messages in flight ([`limiter`]), the rules that pause a broadcast
//! ([`stop_rules`]), and the broadcast's state. [`completion`] maps the result of a message to what happens to it next.
//! [`quota`] keeps the app's daily count in line with WeChat's.
//!
//! All state that matters is in Redis. One script removes a user from the audience and leases a credential. The user
//! then stays in flight until one script settles the credential and records the outcome. If the outcome is unknown
//! after a takeover, the message is sent again with the same credential. Permits to send are stored with the bucket
//! too, see [`permits`](store::broadcast::permits).

pub mod active;
pub mod api;
pub mod completion;
pub mod limiter;
mod lookup;
pub mod quota;
pub mod reason;
pub mod scheduler;
pub mod spec;
pub mod stop_rules;
pub mod worker;
mod worker_io;

use std::sync::Arc;

use store::Store;
use store::broadcast::audience::Choice;
use store::eligibility::Kinds;
use store::leases::LeaseTerms;

use self::spec::Spec;
use crate::app::App;
use crate::clock::Clock;
use crate::metrics::BroadcastMetrics;
use crate::send::Sender;
use crate::wechat::client::Client;
use crate::wechat::message::Delivery;
use crate::wechat::token::Tokens;

/// Limits of the broadcasts of a replica.
#[derive(Debug, Clone)]
pub struct BroadcastLimits {
    /// Maximum number of messages of one broadcast in flight at once.
    pub in_flight: usize,
    /// Number of buckets of one broadcast processed at once.
    pub tasks: usize,
    /// Ratio of the last 1000 messages that may fail before a broadcast pauses.
    pub failure_ratio: f64,
}

/// What all broadcasts of one app share.
pub struct AppContext {
    /// The app.
    pub app: Arc<App>,
    /// Redis.
    pub store: Store,
    /// Sends single messages; broadcasts use its attempts.
    pub sender: Arc<Sender>,
    /// Calls WeChat for the quota.
    pub client: Client,
    /// Access tokens for the quota.
    pub tokens: Tokens,
    /// Wall clock.
    pub clock: Clock,
    /// Duration, margin and retention of leases.
    pub terms: LeaseTerms,
    /// Maximum number of credentials tried for one message.
    pub credentials: u32,
    /// Limits of broadcasts.
    pub limits: BroadcastLimits,
    /// Metrics of broadcasts.
    pub metrics: BroadcastMetrics,
}

impl AppContext {
    /// How users are selected for a broadcast.
    pub fn choice(&self, spec: &Spec) -> Choice {
        let kinds = match spec.message.delivery {
            Delivery::FormId => self.app.broadcast_kinds,
            Delivery::Subscription => Kinds::GRANTS,
        };
        Choice { wanted: spec.message.wanted(kinds), min_interval: spec.min_interval.as_secs() as u32 }
    }
}
