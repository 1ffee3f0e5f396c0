//! Ids and other small values that the names of keys consist of.

use std::fmt;

use serde::{Deserialize, Serialize};

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

    pub fn parse(text: &str) -> Option<Self> {
        let sound = text.len() == ID_LENGTH
            && text
                .bytes()
                .enumerate()
                .all(|(at, byte)| if at == 11 { byte == b'-' } else { matches!(byte, b'0'..=b'9' | b'a'..=b'f') });
        sound.then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BroadcastId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Dedup key of an event that must count once, however often it is reported. See [`Packed::grant`] and [`Store::void`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnceKey(pub [u8; 16]);

/// WeChat's id of a subscription message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MsgId(pub u64);

/// WeChat's API that sends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `template/send`.
    Template,
    /// `subscribe/send`.
    Subscribe,
}

impl Api {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::Subscribe => "subscribe",
        }
    }
}

/// The counter for messages: WeChat has a quota for each API and day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub api: Api,
    /// WeChat's day, in days since 1970 in UTC+8.
    pub day: u64,
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
