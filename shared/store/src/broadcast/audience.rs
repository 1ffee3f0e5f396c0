//! The audience of a broadcast, bucket by bucket.

use std::collections::HashSet;
use std::time::Duration;

use deadpool_redis::redis;
use futures_util::stream::TryStreamExt as _;

use super::Part;
use crate::eligibility::Eligibility;
use crate::ids::BroadcastId;
use crate::keys::{BroadcastKeys, Bucket, BucketKeys};
use crate::leases::{LeaseTerms, eligible};
use crate::retention::{KEEP_ENDED, KEEP_OPEN};
use crate::{Error, Store, scripts};
use domain::{AppId, OpenId};

/// Approximate number of users that one call of a script processes.
const PAGE: usize = 100;

/// How users of an audience are chosen.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The credentials that the broadcast may spend.
    pub wanted: Eligibility,
    /// Users who got a message within this number of seconds, or may have, are skipped; 0 skips none.
    pub min_interval: u32,
}

#[derive(Debug, Clone)]
pub struct Recipient {
    pub openid: OpenId,
    /// The user's own data for the message, in the dispatcher's format; empty if there is none.
    pub data: Vec<u8>,
}

/// Result of adding users to a recipient list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    pub added: u32,
    pub excluded: u32,
    /// The broadcast was started before: some or all of the users were not processed.
    pub late: bool,
}

/// How a broadcast would treat some users.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preview {
    pub reached: u64,
    pub no_credential: u64,
    pub recently_messaged: u64,
}

impl Part<'_> {
    /// Adds users of one bucket to the recipient list of a broadcast that was not started, and to its excluded users.
    /// Repeating the call changes nothing, however late it is.
    pub async fn add_recipients(&self, recipients: &[Recipient], excluded: &[OpenId]) -> Result<Added, Error> {
        // Recorded in the app's slot first: an unrecorded part would never be sent or expire.
        if !recipients.is_empty() && !self.open().await? {
            return Ok(Added { late: true, ..Added::default() });
        }
        self.list().await?;
        let (_, part) = self.keys();
        let mut sum = Added::default();
        // Each call of the script is bounded. The excluded users go with the first call, so that they are known to all.
        let mut pages: Vec<&[Recipient]> = recipients.chunks(PAGE).collect();
        if pages.is_empty() {
            pages.push(&[]);
        }
        for (number, page) in pages.into_iter().enumerate() {
            let excluded = if number == 0 { excluded } else { &[] };
            let (added, left_out): (i64, u32) = self
                .store
                .redis()?
                .invoke(&scripts::BROADCAST_RECIPIENTS, |command| {
                    command.arg(4).arg(part.todo()).arg(part.tally()).arg(part.data()).arg(part.excluded());
                    command.arg(KEEP_OPEN.as_secs()).arg(excluded.len());
                    for openid in excluded {
                        command.arg(openid.as_str());
                    }
                    for recipient in page {
                        command.arg(recipient.openid.as_str()).arg(&recipient.data);
                    }
                })
                .await?;
            sum.add(Added { added: added.max(0) as u32, excluded: left_out, late: added < 0 });
        }
        Ok(sum)
    }

    /// Records that a bucket holds a part of the recipient list. Returns false if the broadcast was started already.
    async fn open(&self) -> Result<bool, Error> {
        let (keys, id) = (BroadcastKeys::new(self.app), self.id);
        self.store
            .redis()?
            .invoke(&scripts::BROADCAST_PART, |command| {
                command.arg(3).arg(keys.record(id)).arg(keys.open(id)).arg(keys.parts(id));
                command.arg(self.bucket.0).arg(KEEP_OPEN.as_secs());
            })
            .await
    }

    /// Records that a broadcast has a part in a bucket, for [`Store::forget_in_broadcasts`].
    async fn list(&self) -> Result<(), Error> {
        let key = BucketKeys::new(self.app, self.bucket).broadcasts();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let ends = now + KEEP_OPEN + KEEP_ENDED;
        let redis = self.store.redis()?;
        redis.run::<u32>(redis::cmd("ZADD").arg(&key).arg(ends.as_secs()).arg(self.id.as_str())).await?;
        redis.run::<u32>(redis::cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(now.as_secs())).await?;
        redis.run::<u32>(redis::cmd("EXPIRE").arg(&key).arg((KEEP_OPEN + KEEP_ENDED).as_secs())).await?;
        Ok(())
    }

    /// Adds the next reachable users of a bucket to the audience. Returns true once the whole bucket was read. No page
    /// may be taken before that.
    pub async fn snapshot(&self, choice: &Choice, terms: &LeaseTerms) -> Result<bool, Error> {
        let (keys, part) = self.keys();
        self.list().await?;
        self.store
            .redis()?
            .invoke(&scripts::BROADCAST_SNAPSHOT, |command| {
                command.arg(4).arg(keys.users()).arg(part.todo()).arg(part.tally()).arg(part.excluded());
                command.arg(PAGE);
                eligible(command, terms, &choice.wanted);
                command.arg(KEEP_OPEN.as_secs());
            })
            .await
    }

    /// Deletes the keys of a bucket that only sending needs, and keeps the rest until the whole broadcast has ended.
    /// Returns false, and changes nothing, while users are left. For a `cancelled` broadcast, only users in flight
    /// count as left.
    pub async fn close(&self, cancelled: bool) -> Result<bool, Error> {
        let (_, part) = self.keys();
        self.store
            .redis()?
            .invoke(&scripts::BROADCAST_CLOSE, |command| {
                command.arg(7).arg(part.todo()).arg(part.flight()).arg(part.tally()).arg(part.data());
                command.arg(part.undelivered()).arg(part.excluded()).arg(part.permits());
                command.arg(KEEP_OPEN.as_secs()).arg(u8::from(cancelled));
            })
            .await
    }
}

impl Store {
    /// How a broadcast to every user of a bucket would treat them. Changes nothing.
    pub async fn preview_all(
        &self,
        app: &AppId,
        bucket: Bucket,
        choice: &Choice,
        terms: &LeaseTerms,
    ) -> Result<Preview, Error> {
        let mut sum = Preview::default();
        let mut cursor = "0".to_owned();
        loop {
            let page = self.preview(app, bucket, choice, terms, &["all", &cursor, &PAGE.to_string()]).await?;
            cursor = page.0;
            sum.add(page.1);
            if cursor == "0" {
                return Ok(sum);
            }
        }
    }

    /// How a broadcast to these users of a bucket would treat them. Changes nothing.
    pub async fn preview_list(
        &self,
        app: &AppId,
        bucket: Bucket,
        openids: &[OpenId],
        choice: &Choice,
        terms: &LeaseTerms,
    ) -> Result<Preview, Error> {
        let mut sum = Preview::default();
        for page in openids.chunks(PAGE) {
            let mut what = vec!["list"];
            what.extend(page.iter().map(OpenId::as_str));
            sum.add(self.preview(app, bucket, choice, terms, &what).await?.1);
        }
        Ok(sum)
    }

    async fn preview(
        &self,
        app: &AppId,
        bucket: Bucket,
        choice: &Choice,
        terms: &LeaseTerms,
        what: &[&str],
    ) -> Result<(String, Preview), Error> {
        let keys = BucketKeys::new(app, bucket);
        let (cursor, reached, no_credential, recently_messaged) = self
            .redis()?
            .invoke(&scripts::BROADCAST_PREVIEW, |command| {
                command.arg(2).arg(keys.users()).arg(keys.leases());
                eligible(command, terms, &choice.wanted);
                command.arg(choice.min_interval).arg(what);
            })
            .await?;
        Ok((cursor, Preview { reached, no_credential, recently_messaged }))
    }

    pub async fn has_users(&self, app: &AppId) -> Result<bool, Error> {
        for bucket in self.buckets() {
            let users = BucketKeys::new(app, bucket).users();
            if self.redis()?.run(redis::cmd("EXISTS").arg(users)).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub async fn has_recipients(&self, app: &AppId, id: &BroadcastId) -> Result<bool, Error> {
        self.redis()?.run(redis::cmd("EXISTS").arg(BroadcastKeys::new(app).open(id))).await
    }

    /// Sets the expiry of a broadcast's tally and undelivered users in every bucket.
    pub(super) async fn keep_parts(&self, app: &AppId, id: &BroadcastId, keep: Duration) -> Result<(), Error> {
        let redis = self.redis()?;
        self.over_buckets(async |bucket| {
            let part = BucketKeys::new(app, bucket).broadcast(id);
            for key in [part.tally(), part.undelivered()] {
                redis.run::<u32>(redis::cmd("EXPIRE").arg(key).arg(keep.as_secs())).await?;
            }
            Ok(())
        })
        .try_collect()
        .await
    }

    /// Removes a user from every broadcast: from the audience, from the messages in flight, and from the undelivered
    /// users.
    pub(crate) async fn forget_in_broadcasts(&self, app: &AppId, openid: &OpenId) -> Result<(), Error> {
        let keys = self.keys(app, openid);
        let ids: HashSet<String> =
            self.redis()?.run(redis::cmd("ZRANGE").arg(keys.broadcasts()).arg(0).arg(-1)).await?;
        for id in ids.iter().filter_map(|id| BroadcastId::parse(id)) {
            let part = keys.broadcast(&id);
            self.redis()?
                .invoke::<u32>(&scripts::BROADCAST_FORGET, |command| {
                    command.arg(6).arg(part.todo()).arg(part.flight()).arg(part.tally()).arg(part.data());
                    command.arg(part.undelivered()).arg(part.excluded()).arg(openid.as_str()).arg(KEEP_ENDED.as_secs());
                })
                .await?;
        }
        Ok(())
    }
}

impl Added {
    pub fn add(&mut self, other: Self) {
        self.added += other.added;
        self.excluded += other.excluded;
        self.late |= other.late;
    }
}

impl Preview {
    pub fn add(&mut self, other: Self) {
        self.reached += other.reached;
        self.no_credential += other.no_credential;
        self.recently_messaged += other.recently_messaged;
    }
}
