//! The sweep: removes expired credentials and counts the stock, bucket by bucket, a few users per call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use super::keys::{Bucket, BucketKeys};
use super::retention::KEEP_STOCK;
use super::scans::Scan;
use super::{Error, Store, scripts};
use domain::{AppId, Kind, TemplateId};

/// WeChat's day begins at midnight in UTC+8.
pub const DAY_OFFSET: i64 = 8 * 3600;

pub const DAY: i64 = 24 * 3600;

/// Approximate number of users that one call of the sweep processes.
const PAGE: u32 = 64;

/// Number of buckets that are read concurrently when all are read.
const ASKED_AT_ONCE: usize = 32;

/// Number of credentials and of the messages they permit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub credentials: u64,
    pub messages: u64,
}

/// Grants of one template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Number of users to whom a message can be sent.
    pub users: u64,
    /// Number of messages that can be sent to them. A long-term subscription counts as one.
    pub messages: u64,
    /// Number of users with a long-term subscription.
    pub long_term: u64,
    /// Number of users whose grants rest. They are not in the numbers above. Absent in counts of earlier releases.
    #[serde(default)]
    pub resting_users: u64,
    /// Number of messages that those grants permit after their rest.
    #[serde(default)]
    pub resting: u64,
}

/// The stock of a bucket or of a whole app.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stock {
    /// Number of users to whom at least one message can be sent.
    pub reachable: u64,
    /// Form ids and prepay ids, by day of expiry (days since 1970 in UTC+8) and kind.
    pub days: BTreeMap<(i64, Kind), Count>,
    pub templates: BTreeMap<TemplateId, Granted>,
    /// When the oldest part was counted, in seconds since 1970.
    pub counted_at: i64,
}

impl Stock {
    pub fn add(&mut self, other: &Self) {
        self.reachable += other.reachable;
        for (day, count) in &other.days {
            let sum = self.days.entry(*day).or_default();
            sum.credentials += count.credentials;
            sum.messages += count.messages;
        }
        for (template, granted) in &other.templates {
            let sum = self.templates.entry(template.clone()).or_default();
            sum.users += granted.users;
            sum.messages += granted.messages;
            sum.long_term += granted.long_term;
            sum.resting_users += granted.resting_users;
            sum.resting += granted.resting;
        }
    }
}

/// The current state of all uses that were ever collected (one use permits one message).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    pub collected: u64,
    /// Uses held by messages in flight or with unknown outcome.
    pub leased: u64,
    pub consumed: u64,
    /// Uses deleted because WeChat rejected the credential or the user refused the template.
    pub discarded: u64,
    pub expired: u64,
    /// Uses dropped by the cap on records per user.
    pub dropped: u64,
    /// Uses deleted when their user was erased.
    pub erased: u64,
    /// The part of `consumed` that was spent on messages with unknown outcome.
    pub unknown: u64,
}

impl Ledger {
    /// Uses in stock that are not leased, resting ones included: the collected uses minus all others.
    pub fn available(&self) -> u64 {
        let gone = self.leased + self.consumed + self.discarded + self.expired + self.dropped + self.erased;
        self.collected.saturating_sub(gone)
    }
}

/// The JSON format of a bucket's count in Redis.
#[derive(Serialize, Deserialize)]
struct Stored {
    reachable: u64,
    days: Vec<(i64, u8, Count)>,
    /// Absent in counts of earlier releases, which had no grants.
    #[serde(default)]
    templates: Vec<(String, Granted)>,
    counted_at: i64,
}

impl Store {
    /// Sweeps all users of one bucket and stores the count. `pause` is the time between two calls; `now` is the time of
    /// the count.
    pub async fn sweep(&self, app: &AppId, bucket: Bucket, now: i64, pause: Duration) -> Result<Stock, Error> {
        let keys = BucketKeys::new(app, bucket);
        let (users, ledger) = (keys.users(), keys.ledger());
        let mut stock = Stock { counted_at: now, ..Stock::default() };
        let mut cursor = "0".to_owned();
        loop {
            let (next, page) = self.sweep_page(&users, &ledger, &cursor).await?;
            stock.add(&page);
            cursor = next;
            if cursor == "0" {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        let kept = Stored {
            reachable: stock.reachable,
            days: stock.days.iter().map(|(&(day, kind), &count)| (day, kind as u8, count)).collect(),
            templates: stock.templates.iter().map(|(id, &granted)| (id.as_str().to_owned(), granted)).collect(),
            counted_at: now,
        };
        let text = serde_json::to_string(&kept)?;
        let mut command = redis::cmd("SET");
        command.arg(keys.stock()).arg(text).arg("EX").arg(KEEP_STOCK.as_secs());
        self.redis()?.run::<()>(&command).await?;
        Ok(stock)
    }

    async fn sweep_page(&self, users: &str, ledger: &str, cursor: &str) -> Result<(String, Stock), Error> {
        type Page = (String, u64, Vec<(u8, i64, u64, u64)>, Vec<(String, u64, u64, u64, u64, u64)>);
        let (next, reachable, days, templates): Page = self
            .redis()?
            .invoke(&scripts::SWEEP, |command| {
                command.arg(2).arg(users).arg(ledger).arg(cursor).arg(PAGE).arg(DAY).arg(DAY_OFFSET);
            })
            .await?;
        let mut stock = Stock { reachable, ..Stock::default() };
        for (number, day, credentials, messages) in days {
            stock.days.insert((day, kind(number)?), Count { credentials, messages });
        }
        for (id, users, messages, long_term, resting_users, resting) in templates {
            let granted = Granted { users, messages, long_term, resting_users, resting };
            stock.templates.insert(template(id)?, granted);
        }
        Ok((next, stock))
    }

    /// Claims the sweep of a bucket. Returns false if the bucket was swept less than `interval` ago.
    pub async fn claim_sweep(&self, app: &AppId, bucket: Bucket, interval: Duration) -> Result<bool, Error> {
        self.take_turn(&BucketKeys::new(app, bucket).swept(), interval).await
    }

    /// Number of users of an app, reachable or not.
    pub async fn users(&self, app: &AppId) -> Result<u64, Error> {
        self.over_buckets(async |bucket| {
            self.redis()?.run(redis::cmd("HLEN").arg(BucketKeys::new(app, bucket).users())).await
        })
        .try_fold(0, async |sum, users: u64| Ok(sum + users))
        .await
    }

    /// The stock of an app. It is counted directly if the app has at most `few` users, and read from the last sweep
    /// otherwise. All callers that ask before a count begins share its result.
    pub async fn stock(&self, app: &AppId, now: i64, few: u64) -> Result<Stock, Error> {
        let (store, counted) = (self.clone(), app.clone());
        let count = async move { store.count_stock(&counted, now, few).await.map(Arc::new) };
        let stock = self.inner.stocks.join((app.clone(), few), self.turn(Scan::Count, app), count).await?;
        Ok(Arc::unwrap_or_clone(stock))
    }

    async fn count_stock(&self, app: &AppId, now: i64, few: u64) -> Result<Stock, Error> {
        let on_the_spot = self.users(app).await? <= few;
        self.over_buckets(async |bucket| {
            if on_the_spot {
                self.sweep(app, bucket, now, Duration::ZERO).await
            } else {
                self.kept_stock(app, bucket, now).await
            }
        })
        .try_fold(Stock { counted_at: now, ..Stock::default() }, async |mut sum, bucket| {
            sum.add(&bucket);
            sum.counted_at = sum.counted_at.min(bucket.counted_at);
            Ok(sum)
        })
        .await
    }

    /// The stock of an app as counted by the sweeps. `None` until every bucket was swept. The time is that of the
    /// oldest count.
    pub async fn swept_stock(&self, app: &AppId) -> Result<Option<Stock>, Error> {
        let mut counts = std::pin::pin!(self.over_buckets(|bucket| self.last_count(app, bucket)));
        let mut sum = Stock { counted_at: i64::MAX, ..Stock::default() };
        while let Some(count) = counts.next().await {
            let Some(bucket) = count? else { return Ok(None) };
            sum.add(&bucket);
            sum.counted_at = sum.counted_at.min(bucket.counted_at);
        }
        Ok(Some(sum))
    }

    async fn kept_stock(&self, app: &AppId, bucket: Bucket, now: i64) -> Result<Stock, Error> {
        match self.last_count(app, bucket).await? {
            Some(stock) => Ok(stock),
            // Not counted yet: the first sweep of a new collector has not reached this bucket.
            None => self.sweep(app, bucket, now, Duration::ZERO).await,
        }
    }

    async fn last_count(&self, app: &AppId, bucket: Bucket) -> Result<Option<Stock>, Error> {
        let text: Option<String> =
            self.redis()?.run(redis::cmd("GET").arg(BucketKeys::new(app, bucket).stock())).await?;
        let Some(text) = text else { return Ok(None) };
        let kept: Stored = serde_json::from_str(&text)?;
        let mut stock = Stock { reachable: kept.reachable, counted_at: kept.counted_at, ..Stock::default() };
        for (day, number, count) in kept.days {
            stock.days.insert((day, kind(number)?), count);
        }
        for (id, granted) in kept.templates {
            stock.templates.insert(template(id)?, granted);
        }
        Ok(Some(stock))
    }

    /// The ledger of an app. All callers that ask before a read begins share its result.
    pub async fn ledger(&self, app: &AppId) -> Result<Ledger, Error> {
        let (store, read) = (self.clone(), app.clone());
        let read = async move { store.read_ledger(&read).await };
        self.inner.ledgers.join(app.clone(), self.turn(Scan::Count, app), read).await
    }

    async fn read_ledger(&self, app: &AppId) -> Result<Ledger, Error> {
        let buckets = self.over_buckets(async |bucket| {
            let keys = BucketKeys::new(app, bucket);
            let counters: BTreeMap<String, u64> = self.redis()?.run(redis::cmd("HGETALL").arg(keys.ledger())).await?;
            let leases: u64 = self.redis()?.run(redis::cmd("HLEN").arg(keys.leases())).await?;
            Ok((counters, leases))
        });
        let (counters, leases) = buckets
            .try_fold((BTreeMap::new(), 0), async |(mut sums, all), (counters, leases)| {
                for (name, count) in counters {
                    *sums.entry(name).or_insert(0) += count;
                }
                Ok((sums, all + leases))
            })
            .await?;
        let of = |name: &str| counters.get(name).copied().unwrap_or(0);
        Ok(Ledger {
            collected: of("collected"),
            // A "lost" lease holds no credential any more: see erase.lua.
            leased: leases.saturating_sub(of("lost")),
            consumed: of("consumed"),
            discarded: of("discarded"),
            expired: of("expired"),
            dropped: of("dropped"),
            erased: of("erased"),
            unknown: of("unknown"),
        })
    }

    /// Runs the same query for every bucket, a few concurrently.
    pub(super) fn over_buckets<T, F>(&self, ask: impl Fn(Bucket) -> F) -> impl stream::Stream<Item = Result<T, Error>>
    where
        F: Future<Output = Result<T, Error>>,
    {
        stream::iter(self.buckets()).map(ask).buffer_unordered(ASKED_AT_ONCE)
    }
}

fn template(id: String) -> Result<TemplateId, Error> {
    TemplateId::existing(id).map_err(|_| super::record::Corrupt::BadId.into())
}

fn kind(number: u8) -> Result<Kind, Error> {
    Kind::ALL.get(usize::from(number)).copied().ok_or_else(|| super::record::Corrupt::UnknownKind(number).into())
}
