//! How fast, and how many: the pace of an app and of a broadcast, the canary, and the daily quota, shared by all replicas.

use std::time::Duration;

use deadpool_redis::redis::{self, Value};

use super::BroadcastId;
use super::records::State;
use crate::credential::AppId;
use crate::store::keys::BroadcastKeys;
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

/// What is permitted to be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    /// How many messages.
    pub messages: usize,
    /// Why no more, where fewer than wanted are permitted.
    pub why: Option<Held>,
}

/// What holds a broadcast back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The pace: ask again after this time.
    Pace(Duration),
    /// The canary's number is reached.
    Canary,
    /// The part of the day's quota that broadcasts may use is used up.
    Quota,
    /// It is not running; nothing when it is gone.
    State(Option<State>),
}

impl Store {
    /// Permits up to `wanted` messages of a broadcast. `unused` are those permitted before that were not sent. `rate`
    /// is the broadcast's own messages a second (0 for any number).
    #[allow(clippy::too_many_arguments)]
    pub async fn permit(
        &self,
        app: &AppId,
        id: &BroadcastId,
        wanted: usize,
        unused: usize,
        rate: u32,
        bounds: &Bounds,
        budget: Budget,
    ) -> Result<Permit, Error> {
        let keys = BroadcastKeys::new(app);
        let reply: Vec<Value> = self
            .redis()?
            .invoke(&scripts::BROADCAST_PERMIT, |command| {
                command.arg(4).arg(keys.record(id)).arg(keys.pace()).arg(keys.own_pace(id)).arg(keys.quota(budget));
                command.arg(wanted).arg(unused).arg(bounds.app_rate).arg(bounds.broadcast_rate).arg(rate);
                command.arg(bounds.daily_quota).arg(bounds.broadcast_share);
            })
            .await?;
        let mut reply = Reply::new(reply);
        let messages = reply.next()?;
        let why = match reply.next::<String>()?.as_str() {
            "" => None,
            "pace" => Some(Held::Pace(Duration::from_millis(reply.next()?))),
            "canary" => Some(Held::Canary),
            "quota" => Some(Held::Quota),
            "state" => {
                let state: String = reply.next()?;
                let state = if state.is_empty() { None } else { Some(State::parse(&state)?) };
                Some(Held::State(state))
            }
            other => return Err(unexpected(other)),
        };
        Ok(Permit { messages, why })
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

    /// Sets the numbers of a day to what WeChat told. The limit is that of the next day too, until WeChat tells another.
    pub async fn set_quota(&self, app: &AppId, budget: Budget, limit: u64, used: u64) -> Result<(), Error> {
        let tomorrow = Budget { day: budget.day + 1, ..budget };
        let (key, next) = (BroadcastKeys::new(app).quota(budget), BroadcastKeys::new(app).quota(tomorrow));
        let redis = self.redis()?;
        redis.run::<u32>(redis::cmd("HSET").arg(&key).arg("limit").arg(limit).arg("used").arg(used)).await?;
        redis.run::<u32>(redis::cmd("HSET").arg(&next).arg("limit").arg(limit)).await?;
        for key in [key, next] {
            redis.run::<u32>(redis::cmd("EXPIRE").arg(&key).arg(KEEP_DAY.as_secs())).await?;
        }
        Ok(())
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
}
