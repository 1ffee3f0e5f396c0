//! How a broadcast goes: counted bucket by bucket in one step with what is counted, and summed up when asked.

use std::collections::{BTreeMap, HashMap};

use deadpool_redis::redis;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::records::{Record, State};
use crate::credential::AppId;
use crate::store::keys::{BroadcastKeys, Bucket, BucketKeys};
use crate::store::{Error, Store};

/// How many buckets are asked at once.
const ASKED_AT_ONCE: usize = 64;

/// The ending of a delivered message.
pub const DELIVERED: &str = "delivered";

/// The ending of a user who was erased.
pub const ERASED: &str = "erased";

/// What became of an audience. `audience` is the sum of all endings and of `left`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Everyone the broadcast is for.
    pub audience: u64,
    /// Buckets that it has not come to are counted by who is in stock there.
    pub estimated: bool,
    /// How many ended how: [`DELIVERED`], [`ERASED`], or a reason and perhaps an errcode.
    pub endings: BTreeMap<String, u64>,
    /// Of those who did not end: being sent to, or in doubt.
    pub in_flight: u64,
}

impl Tally {
    /// How many ended in this way.
    pub fn ended(&self, ending: &str) -> u64 {
        self.endings.get(ending).copied().unwrap_or_default()
    }

    /// How many did not end.
    pub fn left(&self) -> u64 {
        self.audience.saturating_sub(self.endings.values().sum())
    }

    fn add(&mut self, other: Self) {
        self.audience += other.audience;
        self.estimated |= other.estimated;
        self.in_flight += other.in_flight;
        for (ending, count) in other.endings {
            *self.endings.entry(ending).or_default() += count;
        }
    }
}

/// A user who was not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undelivered {
    /// Who.
    pub openid: String,
    /// Why: a reason and perhaps an errcode.
    pub ending: String,
}

/// A place in the list of those who were not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which bucket.
    pub bucket: Bucket,
    /// After this member of its list; empty for its beginning.
    pub after: String,
}

impl Store {
    /// The tally of a broadcast.
    pub async fn tally(&self, app: &AppId, record: &Record) -> Result<Tally, Error> {
        let buckets = self.buckets_of(app, record).await?;
        stream::iter(buckets)
            .map(|bucket| self.tally_of(app, record, bucket))
            .buffer_unordered(ASKED_AT_ONCE)
            .try_fold(Tally::default(), async |mut sum, part| {
                sum.add(part);
                Ok(sum)
            })
            .await
    }

    async fn tally_of(&self, app: &AppId, record: &Record, bucket: Bucket) -> Result<Tally, Error> {
        let keys = BucketKeys::new(app, bucket);
        let part = keys.broadcast(&record.id);
        let redis = self.redis()?;
        let fields: HashMap<String, String> = redis.run(redis::cmd("HGETALL").arg(part.tally())).await?;
        let mut tally = Tally::default();
        let unseen = record.everyone && !fields.contains_key("seen");
        for (name, value) in fields {
            match name.as_str() {
                "seen" | "cursor" | "begun" => {}
                "audience" => tally.audience = value.parse().unwrap_or_default(),
                _ => drop(tally.endings.insert(name, value.parse().unwrap_or_default())),
            }
        }
        if unseen && record.state != State::Cancelled {
            let users: u64 = redis.run(redis::cmd("HLEN").arg(keys.users())).await?;
            tally.estimated = users > 0;
            tally.audience = tally.audience.max(users);
        }
        if tally.left() > 0 && record.started_ms.is_some() {
            tally.in_flight = redis.run(redis::cmd("SCARD").arg(part.flight())).await?;
            // It may have moved on between the two questions.
            tally.in_flight = tally.in_flight.min(tally.left());
        }
        Ok(tally)
    }

    /// Up to `count` users who were not reached, from a place on; and the place to go on from, if there is more.
    pub async fn undelivered(
        &self,
        app: &AppId,
        record: &Record,
        from: Option<Place>,
        count: usize,
    ) -> Result<(Vec<Undelivered>, Option<Place>), Error> {
        let mut buckets = self.buckets_of(app, record).await?;
        buckets.sort_unstable();
        let mut found = Vec::new();
        let mut last = from.clone();
        let start = from.as_ref().map_or(Bucket(0), |place| place.bucket);
        for bucket in buckets.into_iter().filter(|bucket| *bucket >= start) {
            let key = BucketKeys::new(app, bucket).broadcast(&record.id).undelivered();
            let min = match &from {
                Some(place) if place.bucket == bucket && !place.after.is_empty() => format!("({}", place.after),
                _ => "-".to_owned(),
            };
            let mut command = redis::cmd("ZRANGEBYLEX");
            // One more, which tells whether there is more.
            command.arg(key).arg(min).arg("+").arg("LIMIT").arg(0).arg(count - found.len() + 1);
            let members: Vec<String> = self.redis()?.run(&command).await?;
            for member in members {
                if found.len() == count {
                    return Ok((found, last));
                }
                if let Some((openid, ending)) = member.split_once(' ') {
                    found.push(Undelivered { openid: openid.to_owned(), ending: ending.to_owned() });
                }
                last = Some(Place { bucket, after: member });
            }
        }
        Ok((found, None))
    }

    /// The buckets with a part of a broadcast: all, or those of its list.
    async fn buckets_of(&self, app: &AppId, record: &Record) -> Result<Vec<Bucket>, Error> {
        if record.everyone {
            return Ok(self.buckets().collect());
        }
        let key = BroadcastKeys::new(app).parts(&record.id);
        let buckets: Vec<u16> = self.redis()?.run(redis::cmd("SMEMBERS").arg(key)).await?;
        Ok(buckets.into_iter().map(Bucket).collect())
    }
}
