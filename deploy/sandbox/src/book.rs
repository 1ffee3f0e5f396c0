//! The record of deliveries, and of the result of every call.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::answer::code;
use crate::api::Api;
use crate::books::EventCounts;
use crate::kept::{Entry, Kept};
use crate::message::{Keyword, Message, More};
use crate::rights::Kind;
use crate::{Books, Reading, Refused, Settings, clock};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Number of the delivery within the app. Starts at 1, without gaps.
    pub number: u64,
    /// The app whose token it was sent with.
    pub app_id: String,
    pub openid: String,
    /// The form id or prepay id that it spent. Empty if it spent a grant, which has no id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub form_id: String,
    pub kind: Kind,
    pub template_id: String,
    pub page: Option<String>,
    pub data: BTreeMap<String, Keyword>,
    /// The emphasized keyword, as `<key>.DATA`, if any.
    pub emphasis_keyword: Option<String>,
    /// The message id in `subscribe_msg_sent_event`. Only of subscription messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msgid: Option<u64>,
    /// The version of the mini program that it opens: `developer`, `trial` or `formal`. Only of subscription messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub miniprogram_state: Option<String>,
    /// The language of the text around it. Only of subscription messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lang: Option<String>,
    /// Time of the delivery, in unix seconds on the sandbox's clock.
    pub at: u64,
}

impl Entry for Delivery {
    fn number(&self) -> u64 {
        self.number
    }

    fn openid(&self) -> &str {
        &self.openid
    }
}

/// An accepted message, and what it spent.
pub(crate) struct Sent {
    pub(crate) message: Message,
    pub(crate) fingerprint: u128,
    pub(crate) kind: Kind,
    /// Only of subscription messages.
    pub(crate) msgid: Option<u64>,
}

/// The record of one app. The totals of form ids, prepay ids and grants are kept with those.
pub(crate) struct Book {
    sums: Books,
    seen: HashSet<u128>,
    kept: Kept<Delivery>,
}

impl Book {
    pub(crate) fn new(app_id: Option<String>) -> Self {
        let sums = Books { app_id, messages_exact: true, ..Books::default() };
        Self { sums, seen: HashSet::new(), kept: Kept::new() }
    }

    pub(crate) fn deliver(&mut self, app_id: &str, sent: Sent, now_ms: u64, settings: &Settings) {
        let Sent { message, fingerprint, kind, msgid } = sent;
        self.answered(message.more.api(), code::OK);
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
        let Message { openid, template_id, page, data, more } = message;
        let (form_id, emphasis_keyword, miniprogram_state, lang) = match more {
            More::Template { form_id, emphasis_keyword } => (form_id, emphasis_keyword, None, None),
            More::Subscribe { miniprogram_state, lang } => (String::new(), None, Some(miniprogram_state), Some(lang)),
        };
        let delivery = Delivery {
            number: self.kept.next(),
            app_id: app_id.to_owned(),
            openid,
            form_id,
            kind,
            template_id,
            page,
            data,
            emphasis_keyword,
            msgid,
            miniprogram_state,
            lang,
            at: now_ms / clock::SECOND,
        };
        self.kept.push(delivery, settings.keep_deliveries);
    }

    /// Records a subscription message that was accepted, but whose delivery fails.
    pub(crate) fn undelivered(&mut self) {
        self.answered(Api::Subscribe, code::OK);
        self.sums.undelivered += 1;
    }

    pub(crate) fn answered(&mut self, api: Api, code: i32) {
        self.sums.calls += 1;
        *self.sums.answers.entry(code).or_default() += 1;
        if api == Api::Subscribe {
            self.sums.subscribe_calls += 1;
            *self.sums.subscribe_answers.entry(code).or_default() += 1;
        }
    }

    pub(crate) fn unprocessed(&mut self, api: Api) {
        self.sums.calls += 1;
        self.sums.unprocessed += 1;
        if api == Api::Subscribe {
            self.sums.subscribe_calls += 1;
            self.sums.subscribe_unprocessed += 1;
        }
    }

    pub(crate) fn overlap(&mut self) {
        self.sums.overlaps += 1;
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

    pub(crate) fn events(&mut self) -> &mut EventCounts {
        &mut self.sums.events
    }

    pub(crate) fn sums(&self) -> Books {
        self.sums.clone()
    }

    pub(crate) fn read(&self, reading: &Reading) -> Result<Vec<Delivery>, Refused> {
        self.kept.read(reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deliver(book: &mut Book, fingerprint: u128, settings: &Settings) {
        let message = Message {
            openid: "u".into(),
            template_id: "t".into(),
            page: None,
            data: BTreeMap::new(),
            more: More::Template { form_id: "f".into(), emphasis_keyword: None },
        };
        book.deliver("app", Sent { message, fingerprint, kind: Kind::Form, msgid: None }, 0, settings);
    }

    #[test]
    fn counts_stay_when_deliveries_are_dropped() {
        let settings = Settings { keep_deliveries: 3, ..Settings::default() };
        let mut book = Book::new(None);
        (0..10).for_each(|n| deliver(&mut book, n, &settings));
        assert_eq!(book.read(&Reading::default()).unwrap().len(), 3);
        let sums = book.sums();
        assert_eq!((sums.delivered, sums.messages, sums.delivered_twice), (10, 10, 0));
    }

    #[test]
    fn repeats_are_counted_exactly_until_keep_messages_is_reached() {
        let settings = Settings { keep_messages: 2, ..Settings::default() };
        let mut book = Book::new(None);
        for fingerprint in [1, 2, 1, 1] {
            deliver(&mut book, fingerprint, &settings);
        }
        let sums = book.sums();
        assert_eq!((sums.messages, sums.delivered_twice, sums.messages_exact), (2, 2, true));
        deliver(&mut book, 3, &settings);
        assert!(!book.sums().messages_exact);
    }
}
