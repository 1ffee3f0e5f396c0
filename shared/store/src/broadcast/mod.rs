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

use crate::Store;
pub use crate::ids::BroadcastId;
use crate::keys::{Bucket, BucketKeys, PartKeys};
use domain::AppId;

/// The consumer group of the tasks. Its consumers are the replicas.
const GROUP: &str = "dispatchers";

/// A broadcast's part in one bucket: what happens there to its audience, messages and permits.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    store: &'a Store,
    app: &'a AppId,
    id: &'a BroadcastId,
    bucket: Bucket,
}

impl Store {
    pub fn part<'a>(&'a self, app: &'a AppId, id: &'a BroadcastId, bucket: Bucket) -> Part<'a> {
        Part { store: self, app, id, bucket }
    }
}

impl Part<'_> {
    fn keys(&self) -> (BucketKeys, PartKeys) {
        let keys = BucketKeys::new(self.app, self.bucket);
        let part = keys.broadcast(self.id);
        (keys, part)
    }
}
