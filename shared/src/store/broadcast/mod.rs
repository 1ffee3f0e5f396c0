//! Broadcasts: one message to each user of an audience, whatever breaks meanwhile.
//!
//! What a broadcast is and where it stands lies in one slot for all of the app ([`records`]), and so do its tasks, one for
//! each bucket of users ([`tasks`]), the pace and the quota ([`permits`]). Its part in a bucket lies beside the users of
//! that bucket: who is in the audience ([`audience`]), whose message is in flight ([`pages`]), and how the others ended
//! ([`tallies`]). A user is always in exactly one of these places, and moves between them in one step with the
//! credential, so that a crash at any moment leaves nobody twice and nobody out.

pub mod audience;
pub mod pages;
pub mod permits;
pub mod records;
pub mod tallies;
pub mod tasks;

use std::fmt;
use std::time::Duration;

/// How long a broadcast that has not ended is kept: by far longer than any credential lives.
pub const KEEP_OPEN: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a broadcast is kept after its end, and who was not reached.
pub const KEEP_ENDED: Duration = Duration::from_secs(7 * 24 * 3600);

/// All replicas, as consumers of the tasks.
const GROUP: &str = "dispatchers";

/// The bytes of a [`BroadcastId`]: 11 digits of time, a dash, 8 digits of chance.
const ID_LENGTH: usize = 20;

/// The name of a broadcast. Ids sort by the time of their creation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BroadcastId(Box<str>);

impl BroadcastId {
    /// A fresh one; `now_ms` is in milliseconds since 1970.
    pub fn new(now_ms: u64) -> Self {
        Self(format!("{now_ms:011x}-{:08x}", rand::random::<u32>()).into())
    }

    /// One that was given out; nothing if it can be none.
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
