//! What reached whom, and what every call came to.

use std::collections::{BTreeMap, HashSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::answer::code;
use crate::message::{Keyword, Message};
use crate::rights::{Counts, Kind};
use crate::{Refused, Settings, clock};

/// One message on a user's phone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Counts up from 1 within the app, without gaps.
    pub number: u64,
    /// The app whose token it came with.
    pub app_id: String,
    /// The user.
    pub openid: String,
    /// The form id or prepay id spent on it.
    pub form_id: String,
    /// Which of the two.
    pub kind: Kind,
    /// The template.
    pub template_id: String,
    /// The page it opens, if any.
    pub page: Option<String>,
    /// The keywords.
    pub data: BTreeMap<String, Keyword>,
    /// The keyword shown large, as `<key>.DATA`, if any.
    pub emphasis_keyword: Option<String>,
    /// Unix seconds on the sandbox's clock.
    pub at: u64,
}

/// Which deliveries to read.
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
    /// How many deliveries one reading brings unless it says otherwise.
    pub const LIMIT: usize = 1000;
}

/// The sums, of one app or of all. `calls = unprocessed + the sum of answers`, and `delivered = answers["0"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// The app; none when these are the sums of all apps and of calls that named none.
    pub app_id: Option<String>,
    /// Sends that came in and came to something.
    pub calls: u64,
    /// Those that a fault ended before WeChat looked at them: nothing was decided, nothing spent.
    pub unprocessed: u64,
    /// What the others were decided to be, by errcode, even where a fault then kept the answer from the caller.
    pub answers: BTreeMap<i32, u64>,
    /// Messages that reached users.
    pub delivered: u64,
    /// Of these, the ones that the same user had been sent before: same template, page and data.
    pub delivered_twice: u64,
    /// Distinct messages among the delivered.
    pub messages: u64,
    /// False once there were more messages than [`Settings::keep_messages`]: `delivered_twice` may then be too low
    /// (and `messages` too high).
    pub messages_exact: bool,
    /// Faults that happened, by the name of their rule, at any endpoint.
    pub faults: BTreeMap<String, u64>,
    /// Calls at the two token endpoints, whatever came of them.
    pub token_fetches: u64,
    /// As `unprocessed`, for token fetches.
    pub token_unprocessed: u64,
    /// As `answers`, for token fetches.
    pub token_answers: BTreeMap<i32, u64>,
    /// Calls that asked how much of the quota is used, whatever came of them. They are no sends.
    pub quota_queries: u64,
    /// Form ids and prepay ids. Spent is one that has no use left.
    pub ids: Counts,
    /// The messages these ids are good for.
    pub uses: Counts,
}

impl Books {
    pub(crate) fn add(&mut self, other: Self) {
        fn sum<K: Ord>(mine: &mut BTreeMap<K, u64>, others: BTreeMap<K, u64>) {
            for (key, n) in others {
                *mine.entry(key).or_default() += n;
            }
        }
        self.calls += other.calls;
        self.unprocessed += other.unprocessed;
        sum(&mut self.answers, other.answers);
        self.delivered += other.delivered;
        self.delivered_twice += other.delivered_twice;
        self.messages += other.messages;
        self.messages_exact &= other.messages_exact;
        sum(&mut self.faults, other.faults);
        self.token_fetches += other.token_fetches;
        self.token_unprocessed += other.token_unprocessed;
        sum(&mut self.token_answers, other.token_answers);
        self.quota_queries += other.quota_queries;
        self.ids.add(other.ids);
        self.uses.add(other.uses);
    }
}

/// The books of one app, as they are kept.
pub(crate) struct Book {
    sums: Books,
    seen: HashSet<u128>,
    kept: VecDeque<Delivery>,
}

impl Book {
    pub(crate) fn new(app_id: Option<String>) -> Self {
        let sums = Books { app_id, messages_exact: true, ..Books::default() };
        Self { sums, seen: HashSet::new(), kept: VecDeque::new() }
    }

    pub(crate) fn deliver(
        &mut self,
        app_id: &str,
        message: Message,
        fingerprint: u128,
        kind: Kind,
        now_ms: u64,
        settings: &Settings,
    ) {
        self.answered(code::OK);
        self.sums.delivered += 1;
        if self.seen.contains(&fingerprint) {
            self.sums.delivered_twice += 1;
        } else {
            self.sums.messages += 1;
            if self.seen.len() < settings.keep_messages {
                self.seen.insert(fingerprint);
            } else {
                self.sums.messages_exact = false;
            }
        }
        self.kept.push_back(Delivery {
            number: self.sums.delivered,
            app_id: app_id.to_owned(),
            openid: message.openid,
            form_id: message.form_id,
            kind,
            template_id: message.template_id,
            page: message.page,
            data: message.data,
            emphasis_keyword: message.emphasis_keyword,
            at: now_ms / clock::SECOND,
        });
        while self.kept.len() > settings.keep_deliveries {
            self.kept.pop_front();
        }
    }

    pub(crate) fn answered(&mut self, code: i32) {
        self.sums.calls += 1;
        *self.sums.answers.entry(code).or_default() += 1;
    }

    pub(crate) fn unprocessed(&mut self) {
        self.sums.calls += 1;
        self.sums.unprocessed += 1;
    }

    pub(crate) fn token_answered(&mut self, code: i32) {
        self.sums.token_fetches += 1;
        *self.sums.token_answers.entry(code).or_default() += 1;
    }

    pub(crate) fn token_unprocessed(&mut self) {
        self.sums.token_fetches += 1;
        self.sums.token_unprocessed += 1;
    }

    pub(crate) fn quota_query(&mut self) {
        self.sums.quota_queries += 1;
    }

    pub(crate) fn fault(&mut self, name: &str) {
        match self.sums.faults.get_mut(name) {
            Some(n) => *n += 1,
            None => _ = self.sums.faults.insert(name.to_owned(), 1),
        }
    }

    pub(crate) fn sums(&self) -> Books {
        self.sums.clone()
    }

    pub(crate) fn read(&self, reading: &Reading) -> Result<Vec<Delivery>, Refused> {
        let limit = match reading.limit {
            Some(0) => return Err(Refused::invalid("limit must be at least 1")),
            limit => limit.unwrap_or(Reading::LIMIT),
        };
        // Numbers have no gaps, so the first one kept tells where any other stands.
        let first = self.kept.front().map_or(0, |delivery| delivery.number);
        let skip = usize::try_from(reading.after.saturating_add(1).saturating_sub(first)).unwrap_or(usize::MAX);
        let wanted = |delivery: &&Delivery| reading.openid.as_ref().is_none_or(|openid| *openid == delivery.openid);
        Ok(self.kept.iter().skip(skip).filter(wanted).take(limit).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deliver(book: &mut Book, openid: &str, fingerprint: u128, settings: &Settings) {
        let message = Message {
            openid: openid.into(),
            template_id: "t".into(),
            form_id: "f".into(),
            page: None,
            data: BTreeMap::new(),
            emphasis_keyword: None,
        };
        book.deliver("app", message, fingerprint, Kind::Form, 0, settings);
    }

    fn numbers(book: &Book, reading: &Reading) -> Vec<u64> {
        book.read(reading).unwrap().iter().map(|delivery| delivery.number).collect()
    }

    #[test]
    fn the_oldest_deliveries_go_first_and_the_counts_stay() {
        let settings = Settings { keep_deliveries: 3, ..Settings::default() };
        let mut book = Book::new(None);
        for n in 0..10 {
            deliver(&mut book, if n % 2 == 0 { "even" } else { "odd" }, n, &settings);
        }
        assert_eq!(numbers(&book, &Reading::default()), [8, 9, 10]);
        assert_eq!(numbers(&book, &Reading { after: 8, ..Reading::default() }), [9, 10]);
        assert_eq!(numbers(&book, &Reading { after: 8, limit: Some(1), ..Reading::default() }), [9]);
        assert_eq!(numbers(&book, &Reading { after: 10, ..Reading::default() }), [0; 0]);
        assert_eq!(numbers(&book, &Reading { openid: Some("odd".into()), ..Reading::default() }), [8, 10]);
        let sums = book.sums();
        assert_eq!((sums.delivered, sums.messages, sums.delivered_twice), (10, 10, 0));
    }

    #[test]
    fn repeats_are_counted_exactly_until_the_memory_for_them_is_full() {
        let settings = Settings { keep_messages: 2, ..Settings::default() };
        let mut book = Book::new(None);
        for fingerprint in [1, 2, 1, 1] {
            deliver(&mut book, "u", fingerprint, &settings);
        }
        let sums = book.sums();
        assert_eq!((sums.messages, sums.delivered_twice, sums.messages_exact), (2, 2, true));
        deliver(&mut book, "u", 3, &settings);
        assert!(!book.sums().messages_exact);
    }
}
