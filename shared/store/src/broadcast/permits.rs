//! Permits: the pace of an app and of a broadcast, the canary, and the daily quota, shared by all replicas.
//!
//! `permit.lua` grants a permit to a bucket, in the app's slot. From then on the permit is kept in the bucket's slot
//! until a message takes it. If a replica dies, no permit is lost: the next replica that works on the bucket finds
//! them.

use std::time::Duration;

use deadpool_redis::redis::{self, Value};

use super::Part;
use super::records::State;
pub use crate::ids::{Api, Budget};
use crate::keys::BroadcastKeys;
use crate::retention::{KEEP_DAY, KEEP_OPEN};
use crate::{Error, Reply, Store, scripts, unexpected};
use domain::AppId;

/// Limits on the sending of an app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Messages per second of the app over all replicas; 0 for no limit.
    pub app_rate: u32,
    /// The part of `app_rate` that broadcasts may use.
    pub broadcast_rate: u32,
    /// Messages per day of the app, used until WeChat reports its own limit.
    pub daily_quota: u64,
    /// The part of the daily quota that broadcasts may use, in thousandths.
    pub broadcast_share: u32,
}

/// The permits of a bucket as a caller last read them. All numbers are totals since the beginning, except `left`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Permits {
    /// Granted to the bucket.
    pub granted: u64,
    /// Of the granted: received by the bucket.
    pub received: u64,
    /// Of the received: returned unused.
    pub returned: u64,
    /// Of the received: used by messages that have ended.
    pub ended: u64,
    /// Of the received: not used yet.
    pub left: u64,
}

impl Permits {
    /// Number of messages that may be taken now, including permits that the bucket has not received yet.
    pub fn usable(&self) -> u64 {
        self.left + self.granted.saturating_sub(self.received)
    }
}

/// What may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    /// Total number of messages permitted to the bucket since the beginning.
    pub granted: u64,
    /// The reason, if fewer messages than wanted are permitted.
    pub why: Option<Held>,
}

/// Why a broadcast may not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The pace is exceeded: ask again after this time.
    Pace(Duration),
    /// The canary's limit is reached: all its messages have ended.
    Canary,
    /// The part of the day's quota that broadcasts may use is used up, and all those messages have ended.
    Quota {
        /// WeChat reported its number while messages were in flight, so some may be counted twice.
        unsure: bool,
    },
    /// The canary or the quota is used up, but some messages have not ended: their permits may be returned.
    Open {
        /// True for the canary, false for the quota.
        canary: bool,
        /// Number of permits that are neither returned nor used by a message that has ended.
        permits: u64,
    },
    /// The broadcast is not running. `None` if it no longer exists.
    State(Option<State>),
}

impl Part<'_> {
    /// Grants permits for up to `wanted` messages of a bucket of a broadcast, in addition to the permits that are left
    /// there. `rate` is the broadcast's own limit of messages per second (0 for no limit).
    pub async fn permit(
        &self,
        permits: &Permits,
        wanted: usize,
        rate: u32,
        bounds: &Bounds,
        budget: Budget,
    ) -> Result<Permit, Error> {
        let (keys, id) = (BroadcastKeys::new(self.app), self.id);
        let reply: Vec<Value> = self
            .store
            .redis()?
            .invoke(&scripts::BROADCAST_PERMIT, |command| {
                command.arg(5).arg(keys.record(id)).arg(keys.pace()).arg(keys.own_pace(id)).arg(keys.quota(budget));
                command.arg(keys.permits(id));
                command.arg(self.bucket.0).arg(wanted).arg(permits.received).arg(permits.returned).arg(permits.ended);
                command.arg(budget.day).arg(bounds.app_rate).arg(bounds.broadcast_rate).arg(rate);
                command.arg(bounds.daily_quota).arg(bounds.broadcast_share).arg(KEEP_DAY.as_secs());
            })
            .await?;
        let mut reply = Reply::new(reply);
        let granted = reply.next()?;
        let why = match reply.next::<String>()?.as_str() {
            "" => None,
            "pace" => Some(Held::Pace(Duration::from_millis(reply.next()?))),
            "canary" => Some(Held::Canary),
            "quota" => Some(Held::Quota { unsure: reply.next()? }),
            "open" => Some(Held::Open { canary: reply.next::<String>()? == "canary", permits: reply.next()? }),
            "state" => {
                let state: String = reply.next()?;
                let state = if state.is_empty() { None } else { Some(State::parse(&state)?) };
                Some(Held::State(state))
            }
            other => return Err(unexpected(other)),
        };
        Ok(Permit { granted, why })
    }

    /// Reads the permits of a bucket. `granted` is the total that was granted to it. If `give_back` is set, returns the
    /// unused ones.
    pub async fn permits(&self, granted: u64, give_back: bool) -> Result<Permits, Error> {
        let (_, part) = self.keys();
        let reply: Vec<u64> = self
            .store
            .redis()?
            .invoke(&scripts::BROADCAST_ACCOUNT, |command| {
                command.arg(2).arg(part.permits()).arg(part.flight());
                command.arg(granted).arg(u8::from(give_back)).arg(KEEP_OPEN.as_secs());
            })
            .await?;
        read_permits(granted, &reply)
    }
}

impl Store {
    /// Counts messages that were sent without a permit. Single messages are sent immediately, and broadcasts slow down
    /// in return.
    pub async fn count_messages(&self, app: &AppId, budget: Budget, messages: u64) -> Result<(), Error> {
        let keys = BroadcastKeys::new(app);
        self.redis()?
            .invoke::<u64>(&scripts::BROADCAST_COUNT, |command| {
                command.arg(2).arg(keys.pace()).arg(keys.quota(budget)).arg(messages).arg(KEEP_DAY.as_secs());
            })
            .await
            .map(drop)
    }

    /// Number of messages of a day that have ended. Any number that WeChat reports from now on includes them.
    pub async fn ended_messages(&self, app: &AppId, budget: Budget) -> Result<u64, Error> {
        let key = BroadcastKeys::new(app).quota(budget);
        let (used, open): (Option<u64>, Option<u64>) =
            self.redis()?.run(redis::cmd("HMGET").arg(key).arg("used").arg("open")).await?;
        Ok(used.unwrap_or_default().saturating_sub(open.unwrap_or_default()))
    }

    /// Sets the numbers of a day to what WeChat reported, and adds the messages that its number may not include: all
    /// except those that had `ended` before the query. The limit applies to the next day too, until WeChat reports
    /// another.
    pub async fn set_quota(&self, app: &AppId, budget: Budget, limit: u64, used: u64, ended: u64) -> Result<(), Error> {
        let (keys, tomorrow) = (BroadcastKeys::new(app), Budget { day: budget.day + 1, ..budget });
        let answer = format!("{:016x}", rand::random::<u64>());
        self.redis()?
            .invoke::<u64>(&scripts::BROADCAST_QUOTA, |command| {
                command.arg(2).arg(keys.quota(budget)).arg(keys.quota(tomorrow));
                command.arg(limit).arg(used).arg(ended).arg(&answer).arg(KEEP_DAY.as_secs());
            })
            .await
            .map(drop)
    }

    /// The numbers of a day, shared by all replicas: the limit of the app if WeChat reported one, and the number of
    /// messages sent.
    pub async fn quota(&self, app: &AppId, budget: Budget) -> Result<(Option<u64>, u64), Error> {
        let key = BroadcastKeys::new(app).quota(budget);
        let (limit, used): (Option<u64>, Option<u64>) =
            self.redis()?.run(redis::cmd("HMGET").arg(key).arg("limit").arg("used")).await?;
        Ok((limit, used.unwrap_or_default()))
    }

    /// Takes the permission to ask WeChat for the quota, which one of all replicas gets per `pause`.
    pub async fn may_ask_quota(&self, app: &AppId, api: Api, pause: Duration) -> Result<bool, Error> {
        self.take_turn(&BroadcastKeys::new(app).quota_asked(api), pause).await
    }

    /// Takes the same permission for one more query, for cases where the number must be exact.
    pub async fn may_recount_quota(&self, app: &AppId, api: Api, pause: Duration) -> Result<bool, Error> {
        self.take_turn(&BroadcastKeys::new(app).quota_recounted(api), pause).await
    }

    /// Takes the same permission while the app is stopped because its quota is used up, to find out whether there is
    /// some again.
    pub async fn may_await_quota(&self, app: &AppId, api: Api, pause: Duration) -> Result<bool, Error> {
        self.take_turn(&BroadcastKeys::new(app).quota_awaited(api), pause).await
    }
}

/// Parses the permits of a bucket from a script's reply: see `permits_reply` in head/permits.lua.
pub(super) fn read_permits(granted: u64, reply: &[u64]) -> Result<Permits, Error> {
    match *reply {
        [received, returned, ended, left] => Ok(Permits { granted, received, returned, ended, left }),
        _ => Err(unexpected("permits without four numbers")),
    }
}
