//! The tally of a broadcast. Each bucket counts in the same step in which a message ends. The buckets are added up on
//! request.

use std::collections::{BTreeMap, HashMap};

use deadpool_redis::redis;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::records::{Record, State};
use crate::keys::{BroadcastKeys, Bucket, BucketKeys};
use crate::{Error, Store};
use domain::AppId;

/// Number of buckets that are read concurrently.
const ASKED_AT_ONCE: usize = 64;

/// The ending of a delivered message.
pub const DELIVERED: &str = "delivered";

/// The ending of a user who was erased.
pub const ERASED: &str = "erased";

/// The progress of an audience. `audience` is the sum of all endings and of `left`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub audience: u64,
    /// Whether the audience is an estimate: a bucket that the broadcast has not reached counts with its number of
    /// stored users.
    pub estimated: bool,
    /// Number of users by ending: [`DELIVERED`], [`ERASED`], or a reason with an optional errcode.
    pub endings: BTreeMap<String, u64>,
    /// Number of users whose message is in flight or has an unknown outcome. They are among those left.
    pub in_flight: u64,
}

impl Tally {
    pub fn ended(&self, ending: &str) -> u64 {
        self.endings.get(ending).copied().unwrap_or_default()
    }

    /// Number of users without an ending.
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undelivered {
    pub openid: String,
    /// The reason, with an optional errcode.
    pub ending: String,
}

/// A cursor in the list of undelivered users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub bucket: Bucket,
    /// The last member read in this bucket; empty for its beginning.
    pub after: String,
}

impl Store {
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
            // It may have changed between the two reads.
            tally.in_flight = tally.in_flight.min(tally.left());
        }
        Ok(tally)
    }

    /// Up to `count` undelivered users after a cursor. Also returns the cursor of the next page, if there are more.
    pub async fn undelivered(
        &self,
        app: &AppId,
        record: &Record,
        from: Option<Cursor>,
        count: usize,
    ) -> Result<(Vec<Undelivered>, Option<Cursor>), Error> {
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
            // One more than needed, to find out whether there are more.
            command.arg(key).arg(min).arg("+").arg("LIMIT").arg(0).arg(count - found.len() + 1);
            let members: Vec<String> = self.redis()?.run(&command).await?;
            for member in members {
                if found.len() == count {
                    return Ok((found, last));
                }
                if let Some((openid, ending)) = member.split_once(' ') {
                    found.push(Undelivered { openid: openid.to_owned(), ending: ending.to_owned() });
                }
                last = Some(Cursor { bucket, after: member });
            }
        }
        Ok((found, None))
    }

    /// The buckets with a part of a broadcast: all, or those of its recipient list.
    async fn buckets_of(&self, app: &AppId, record: &Record) -> Result<Vec<Bucket>, Error> {
        if record.everyone {
            return Ok(self.buckets().collect());
        }
        let key = BroadcastKeys::new(app).parts(&record.id);
        let buckets: Vec<u16> = self.redis()?.run(redis::cmd("SMEMBERS").arg(key)).await?;
        Ok(buckets.into_iter().map(Bucket).collect())
    }
}
