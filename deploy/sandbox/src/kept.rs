//! Numbered lists of which the newest entries are kept, and how they are read in parts.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::Refused;

/// Which entries to read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// Of this user only.
    #[serde(default)]
    pub openid: Option<String>,
    /// From the number after this one.
    #[serde(default)]
    pub after: u64,
    /// At most this many; absent, [`Reading::LIMIT`].
    #[serde(default)]
    pub limit: Option<usize>,
}

impl Reading {
    /// How many entries one reading brings unless it says otherwise.
    pub const LIMIT: usize = 1000;
}

/// What is kept: it knows its number, and which user it is about.
pub(crate) trait Entry: Clone {
    fn number(&self) -> u64;
    fn openid(&self) -> &str;
}

/// Entries numbered from 1 without gaps. The oldest go first; numbers do not depend on it.
pub(crate) struct Kept<T> {
    last: u64,
    entries: VecDeque<T>,
}

impl<T: Entry> Kept<T> {
    pub(crate) fn new() -> Self {
        Self { last: 0, entries: VecDeque::new() }
    }

    /// The number that the next entry has to have.
    pub(crate) fn next(&self) -> u64 {
        self.last + 1
    }

    /// Appends the next entry, and lets go of all but the newest `keep`.
    pub(crate) fn push(&mut self, entry: T, keep: usize) {
        self.last = entry.number();
        self.entries.push_back(entry);
        while self.entries.len() > keep {
            self.entries.pop_front();
        }
    }

    pub(crate) fn read(&self, reading: &Reading) -> Result<Vec<T>, Refused> {
        let limit = match reading.limit {
            Some(0) => return Err(Refused::invalid("limit must be at least 1")),
            limit => limit.unwrap_or(Reading::LIMIT),
        };
        // Numbers have no gaps, so the first one kept tells where any other stands.
        let first = self.entries.front().map_or(0, T::number);
        let skip = usize::try_from(reading.after.saturating_add(1).saturating_sub(first)).unwrap_or(usize::MAX);
        let wanted = |entry: &&T| reading.openid.as_ref().is_none_or(|openid| openid == entry.openid());
        Ok(self.entries.iter().skip(skip).filter(wanted).take(limit).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Numbered(u64);

    impl Entry for Numbered {
        fn number(&self) -> u64 {
            self.0
        }

        fn openid(&self) -> &str {
            if self.0 % 2 == 1 { "odd" } else { "even" }
        }
    }

    fn numbers(kept: &Kept<Numbered>, reading: &Reading) -> Vec<u64> {
        kept.read(reading).unwrap().iter().map(Numbered::number).collect()
    }

    #[test]
    fn the_newest_are_kept_and_read_in_parts() {
        let mut kept = Kept::new();
        for _ in 0..10 {
            kept.push(Numbered(kept.next()), 3);
        }
        assert_eq!(numbers(&kept, &Reading::default()), [8, 9, 10]);
        assert_eq!(numbers(&kept, &Reading { after: 8, ..Reading::default() }), [9, 10]);
        assert_eq!(numbers(&kept, &Reading { after: 8, limit: Some(1), ..Reading::default() }), [9]);
        assert_eq!(numbers(&kept, &Reading { after: 10, ..Reading::default() }), [0; 0]);
        assert_eq!(numbers(&kept, &Reading { openid: Some("even".into()), ..Reading::default() }), [8, 10]);
        assert!(kept.read(&Reading { limit: Some(0), ..Reading::default() }).is_err());
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_to_be_kept() {
        let mut kept = Kept::new();
        kept.push(Numbered(kept.next()), 0);
        assert_eq!(numbers(&kept, &Reading::default()), [0; 0]);
        kept.push(Numbered(kept.next()), 1);
        assert_eq!(numbers(&kept, &Reading::default()), [2]);
    }
}
