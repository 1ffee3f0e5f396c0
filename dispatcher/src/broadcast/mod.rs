//! Broadcasts: one message to each user of an audience, whatever breaks meanwhile.
//!
//! A call is answered by the [`office`], which stores what is wanted ([`spec`]). From then on the [`crew`] of each replica
//! takes tasks, a bucket of users each, and carries them out ([`bucket`], and `fetch` for Redis): takes users and leases page by page, sends, and
//! settles. What all tasks of a broadcast on a replica share is in [`running`]: how many messages are in flight ([`flow`]),
//! when to stop by itself ([`rules`]), and whether it is still wanted. [`ending`] says what becomes of each message, and
//! [`quota`] keeps the app's daily number true.
//!
//! Nothing that matters is only in memory. A user leaves the audience in one step with the lease of a credential, and
//! goes on being in flight until in one step with the credential it is settled how the message ended. Whoever goes on
//! with a bucket asks again with the same credential where nobody knows. Permits to send are kept with the
//! bucket too: see [`permits`](shared::store::broadcast::permits).

pub mod bucket;
pub mod crew;
pub mod ending;
mod fetch;
pub mod flow;
mod lookup;
pub mod office;
pub mod pauses;
pub mod quota;
pub mod rules;
pub mod running;
pub mod spec;

use std::sync::Arc;

use shared::store::Store;
use shared::store::broadcast::audience::Choice;
use shared::store::leases::LeaseTerms;
use shared::store::wanted::Kinds;

use self::spec::Spec;
use crate::apps::App;
use crate::clock::Clock;
use crate::metrics::BroadcastMetrics;
use crate::send::Sender;
use crate::wechat::client::Client;
use crate::wechat::message::Delivery;
use crate::wechat::token::Tokens;

/// What bounds the broadcasts of a replica.
#[derive(Debug, Clone)]
pub struct BroadcastLimits {
    /// The most messages of one broadcast in flight at once.
    pub in_flight: usize,
    /// How many buckets of an app are worked on at once.
    pub tasks: usize,
    /// The part of the last 1000 messages that may fail before a broadcast stops.
    pub failure_ratio: f64,
}

/// What the broadcasts of one app stand on.
pub struct Ground {
    /// The app.
    pub app: Arc<App>,
    /// Redis.
    pub store: Store,
    /// Sends single messages; broadcasts use its attempts.
    pub sender: Arc<Sender>,
    /// WeChat, for the quota.
    pub client: Client,
    /// Access tokens, for the quota.
    pub tokens: Tokens,
    /// The time of day.
    pub clock: Clock,
    /// How leases are made.
    pub terms: LeaseTerms,
    /// The most credentials tried for one message.
    pub credentials: u32,
    /// What bounds them.
    pub limits: BroadcastLimits,
    /// What is counted of them.
    pub metrics: BroadcastMetrics,
}

impl Ground {
    /// How users are chosen for a broadcast.
    pub fn choice(&self, spec: &Spec) -> Choice {
        let kinds = match spec.message.delivery {
            Delivery::FormId => self.app.broadcast_kinds,
            Delivery::Subscription => Kinds::GRANTS,
        };
        Choice { wanted: spec.message.wanted(kinds), min_interval: spec.min_interval.as_secs() as u32 }
    }
}
