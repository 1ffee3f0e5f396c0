//! Numbered lists that keep their newest entries, and how they are read page by page.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::Refused;

/// Selects entries of a list.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// Only entries of this user.
    #[serde(default)]
    pub openid: Option<String>,
    /// Only entries with a number greater than this one.
    #[serde(default)]
    pub after: u64,
    /// At most this many entries. Default: [`Reading::LIMIT`].
    #[serde(default)]
    pub limit: Option<usize>,
}

impl Reading {
    pub const LIMIT: usize = 1000;
}

/// An entry of a list. It has a number and is about one user.
pub(crate) trait Entry: Clone {
    fn number(&self) -> u64;
    fn openid(&self) -> &str;
}

/// Entries numbered from 1 without gaps. The oldest are dropped first, which does not change the numbers of the others.
pub(crate) struct Kept<T> {
    last: u64,
    entries: VecDeque<T>,
}

impl<T: Entry> Kept<T> {
    pub(crate) fn new() -> Self {
        Self { last: 0, entries: VecDeque::new() }
    }

    /// The number of the next entry.
    pub(crate) fn next(&self) -> u64 {
        self.last + 1
    }

    /// Appends the next entry, and drops all but the newest `keep`.
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
        // Numbers have no gaps, so the number of the first kept entry gives the position of every other.
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
    fn newest_entries_are_kept_and_read_page_by_page() {
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
    fn keep_of_zero_keeps_no_entry() {
        let mut kept = Kept::new();
        kept.push(Numbered(kept.next()), 0);
        assert_eq!(numbers(&kept, &Reading::default()), [0; 0]);
        kept.push(Numbered(kept.next()), 1);
        assert_eq!(numbers(&kept, &Reading::default()), [2]);
    }
}
