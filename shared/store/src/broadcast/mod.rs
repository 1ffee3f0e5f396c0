//! Broadcasts: one message to each user of an audience, across crashes of replicas.
//!
//! The specification and state of a broadcast are in one slot per app ([`records`]). In the same slot are its tasks,
//! one for each bucket of users ([`tasks`]), and the pace and the quota ([`permits`]). The broadcast's part in a bucket
//! is stored beside the users of that bucket: the audience ([`audience`]), the messages in flight ([`pages`]), and the
//! endings of the others ([`tallies`]). A user is always in exactly one of these places. The user moves between them in
//! the same step in which the credential changes, so that no crash loses a user or duplicates one.

pub mod audience;
pub mod pages;
pub mod permits;
pub mod records;
pub mod tallies;
pub mod tasks;

use std::fmt;
use std::time::Duration;

use crate::Store;
use crate::keys::{Bucket, BucketKeys, PartKeys};
use domain::AppId;

/// How long a broadcast that has not ended is kept. This is far longer than any credential lives.
pub const KEEP_OPEN: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a broadcast and its undelivered users are kept after its end.
pub const KEEP_ENDED: Duration = Duration::from_secs(7 * 24 * 3600);

/// The consumer group of the tasks. Its consumers are the replicas.
const GROUP: &str = "dispatchers";

/// The length of a [`BroadcastId`] in bytes: 11 hex digits of time, a dash, 8 random hex digits.
const ID_LENGTH: usize = 20;

/// The id of a broadcast. Ids sort by the time of their creation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BroadcastId(Box<str>);

impl BroadcastId {
    /// A new id. `now_ms` is in milliseconds since 1970.
    pub fn new(now_ms: u64) -> Self {
        Self(format!("{now_ms:011x}-{:08x}", rand::random::<u32>()).into())
    }

    /// Parses an id; `None` if the text is not a valid id.
    pub fn parse(text: &str) -> Option<Self> {
        let sound = text.len() == ID_LENGTH
            && text
                .bytes()
                .enumerate()
                .all(|(at, byte)| if at == 11 { byte == b'-' } else { matches!(byte, b'0'..=b'9' | b'a'..=b'f') });
        sound.then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BroadcastId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A broadcast's part in one bucket: what happens there to its audience, messages and permits.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    store: &'a Store,
    app: &'a AppId,
    id: &'a BroadcastId,
    bucket: Bucket,
}

impl Store {
    /// The part of a broadcast in a bucket.
    pub fn part<'a>(&'a self, app: &'a AppId, id: &'a BroadcastId, bucket: Bucket) -> Part<'a> {
        Part { store: self, app, id, bucket }
    }
}

impl Part<'_> {
    /// The keys of the bucket, and those of the part.
    fn keys(&self) -> (BucketKeys, PartKeys) {
        let keys = BucketKeys::new(self.app, self.bucket);
        let part = keys.broadcast(self.id);
        (keys, part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_read_back() {
        let (first, second) = (BroadcastId::new(1_790_000_000_000), BroadcastId::new(1_790_000_000_001));
        assert!(first < second);
        assert_eq!(BroadcastId::parse(first.as_str()), Some(first));
        for bad in ["", "0192a3b4c5d-0123456", "0192a3b4c5d_01234567", "0192A3b4c5d-01234567", "{192a3b4c5d-01234567"] {
            assert_eq!(BroadcastId::parse(bad), None, "{bad}");
        }
    }
}
