//! How fast, and how many: the pace of an app and of a broadcast, the canary, and the daily quota, shared by all replicas.
//!
//! A permit is granted to a bucket by `permit.lua`, in the app's slot, and from then on is kept in the bucket's slot until a
//! message takes it. A replica that dies loses none: they are found by the next replica that works on the bucket.

use std::time::Duration;

use deadpool_redis::redis::{self, Value};

use super::records::State;
use super::{BroadcastId, KEEP_OPEN};
use crate::credential::AppId;
use crate::store::keys::{BroadcastKeys, Bucket, BucketKeys};
use crate::store::{Error, Reply, Store, scripts, unexpected};

/// How long the numbers of a day are kept.
const KEEP_DAY: Duration = Duration::from_secs(2 * 24 * 3600);

/// Which of WeChat's APIs messages are sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `template/send`.
    Template,
    /// `subscribe/send`.
    Subscribe,
}

impl Api {
    pub(in crate::store) fn name(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::Subscribe => "subscribe",
        }
    }
}

/// What messages are counted for: WeChat has a quota for each API and day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Of which API.
    pub api: Api,
    /// Of which of WeChat's days, in days since 1970 in UTC+8.
    pub day: u64,
}

/// What bounds the sending of an app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Messages a second of the app, over all replicas; 0 for any number.
    pub app_rate: u32,
    /// Those of them that broadcasts may use.
    pub broadcast_rate: u32,
    /// Messages a day of the app, where WeChat did not tell.
    pub daily_quota: u64,
    /// The part of them that broadcasts may use, in thousandths.
    pub broadcast_share: u32,
}

/// The permits of a bucket as a caller last read them. All are totals since its beginning, but for `left`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Permits {
    /// Granted to the bucket.
    pub granted: u64,
    /// Of these, those that came into the bucket.
    pub received: u64,
    /// Of these, given back unused.
    pub returned: u64,
    /// Of these, used by messages that have ended.
    pub ended: u64,
    /// Of these, to be used.
    pub left: u64,
}

impl Permits {
    /// How many messages may be taken now, with those on their way into the bucket.
    pub fn usable(&self) -> u64 {
        self.left + self.granted.saturating_sub(self.received)
    }
}

/// What is permitted to be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    /// How many messages of the bucket, in all since its beginning.
    pub granted: u64,
    /// Why no more, where fewer than wanted are permitted.
    pub why: Option<Held>,
}

/// What holds a broadcast back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The pace: ask again after this time.
    Pace(Duration),
    /// The canary's number is reached: so many messages have ended.
    Canary,
    /// The part of the day's quota that broadcasts may use is used up: so many messages have ended.
    Quota {
        /// WeChat reported its number while messages were in flight, and some may be counted twice.
        unsure: bool,
    },
    /// The canary or the quota is used up, but not all messages have ended: permits may come back.
    Open {
        /// Whether it is the canary.
        canary: bool,
        /// How many permits are neither returned nor used by a message that has ended.
        permits: u64,
    },
    /// It is not running; nothing when it is gone.
    State(Option<State>),
}

impl Store {
    /// Permits up to `wanted` messages of a bucket of a broadcast, beside those that are left there. `rate` is the
    /// broadcast's own messages a second (0 for any number).
    #[allow(clippy::too_many_arguments)]
    pub async fn permit(
        &self,
        app: &AppId,
        id: &BroadcastId,
        bucket: Bucket,
        permits: &Permits,
        wanted: usize,
        rate: u32,
        bounds: &Bounds,
        budget: Budget,
    ) -> Result<Permit, Error> {
        let keys = BroadcastKeys::new(app);
        let reply: Vec<Value> = self
            .redis()?
            .invoke(&scripts::BROADCAST_PERMIT, |command| {
                command.arg(5).arg(keys.record(id)).arg(keys.pace()).arg(keys.own_pace(id)).arg(keys.quota(budget));
                command.arg(keys.permits(id));
                command.arg(bucket.0).arg(wanted).arg(permits.received).arg(permits.returned).arg(permits.ended);
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

    /// Reads the permits of a bucket, of which so many were `granted`; gives back those that are left, if asked.
    pub async fn bucket_permits(
        &self,
        app: &AppId,
        id: &BroadcastId,
        bucket: Bucket,
        granted: u64,
        give_back: bool,
    ) -> Result<Permits, Error> {
        let part = BucketKeys::new(app, bucket).broadcast(id);
        let reply: Vec<u64> = self
            .redis()?
            .invoke(&scripts::BROADCAST_ACCOUNT, |command| {
                command.arg(2).arg(part.permits()).arg(part.flight());
                command.arg(granted).arg(u8::from(give_back)).arg(KEEP_OPEN.as_secs());
            })
            .await?;
        read_permits(granted, &reply)
    }

    /// Counts messages that were sent without a permit: single ones go first, and broadcasts make room for them.
    pub async fn count_messages(&self, app: &AppId, budget: Budget, messages: u64) -> Result<(), Error> {
        let keys = BroadcastKeys::new(app);
        self.redis()?
            .invoke::<u64>(&scripts::BROADCAST_COUNT, |command| {
                command.arg(2).arg(keys.pace()).arg(keys.quota(budget)).arg(messages).arg(KEEP_DAY.as_secs());
            })
            .await
            .map(drop)
    }

    /// How many messages of a day have ended: any number that WeChat reports from now on includes them.
    pub async fn ended_messages(&self, app: &AppId, budget: Budget) -> Result<u64, Error> {
        let key = BroadcastKeys::new(app).quota(budget);
        let (used, open): (Option<u64>, Option<u64>) =
            self.redis()?.run(redis::cmd("HMGET").arg(key).arg("used").arg("open")).await?;
        Ok(used.unwrap_or_default().saturating_sub(open.unwrap_or_default()))
    }

    /// Sets the numbers of a day to what WeChat reported, and adds the messages that its number may not include: all but
    /// those that had `ended` before it was asked. The limit is that of the next day too, until WeChat reports another.
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

    /// The numbers of a day as all replicas know them: how many messages the app may send, if WeChat told, and how many it
    /// has sent.
    pub async fn quota(&self, app: &AppId, budget: Budget) -> Result<(Option<u64>, u64), Error> {
        let key = BroadcastKeys::new(app).quota(budget);
        let (limit, used): (Option<u64>, Option<u64>) =
            self.redis()?.run(redis::cmd("HMGET").arg(key).arg("limit").arg("used")).await?;
        Ok((limit, used.unwrap_or_default()))
    }

    /// The right, among all replicas, to ask WeChat for the quota; given again after `pause`.
    pub async fn may_ask_quota(&self, app: &AppId, api: Api, pause: Duration) -> Result<bool, Error> {
        self.take_turn(&BroadcastKeys::new(app).quota_asked(api), pause).await
    }

    /// The same right to ask once more, where it matters that the number is exact.
    pub async fn may_recount_quota(&self, app: &AppId, api: Api, pause: Duration) -> Result<bool, Error> {
        self.take_turn(&BroadcastKeys::new(app).quota_recounted(api), pause).await
    }
}

/// Reads the permits of a bucket from a script's reply: see permits_reply in head/permits.lua.
pub(super) fn read_permits(granted: u64, reply: &[u64]) -> Result<Permits, Error> {
    match *reply {
        [received, returned, ended, left] => Ok(Permits { granted, received, returned, ended, left }),
        _ => Err(unexpected("not four numbers of permits")),
    }
}
