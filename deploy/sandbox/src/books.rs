//! The sums that anybody may read: of one app, or of all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Plain sums. `issued = spent + left`, whether or not what is left has expired or is blocked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All that were ever issued.
    pub issued: u64,
    /// Those that brought their message (of ids: all of their messages).
    pub spent: u64,
    /// The rest.
    pub left: u64,
}

impl Counts {
    pub(crate) fn issue(&mut self, n: u64) {
        self.issued += n;
        self.left += n;
    }

    pub(crate) fn spend(&mut self) {
        self.spent += 1;
        self.left -= 1;
    }

    fn add(&mut self, other: Self) {
        self.issued += other.issued;
        self.spent += other.spent;
        self.left += other.left;
    }
}

/// What users accepted, in messages. `accepted = spent + voided + left`; long-term grants are counted apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantCounts {
    /// Accepts, each good for one message.
    pub accepted: u64,
    /// Those that a message was sent with.
    pub spent: u64,
    /// Those that ended unused because the user rejected or withdrew.
    pub voided: u64,
    /// The rest.
    pub left: u64,
    /// Long-term grants in force now.
    pub long_term: u64,
    /// Messages sent with them.
    pub long_term_spent: u64,
}

impl GrantCounts {
    fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.spent += other.spent;
        self.voided += other.voided;
        self.left += other.left;
        self.long_term += other.long_term;
        self.long_term_spent += other.long_term_spent;
    }
}

/// What became of the events. Those that are neither pushed, given up nor dropped wait, or came while no callback was set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCounts {
    /// Events that there were something to tell of.
    pub made: u64,
    /// Those that the callback took, with a 2xx.
    pub pushed: u64,
    /// Those that it did not take, however often it was tried.
    pub given_up: u64,
    /// Those that were never tried, because too many waited before them.
    pub dropped: u64,
}

impl EventCounts {
    fn add(&mut self, other: Self) {
        self.made += other.made;
        self.pushed += other.pushed;
        self.given_up += other.given_up;
        self.dropped += other.dropped;
    }
}

/// The sums, of one app or of all. `calls = unprocessed + the sum of answers`, and
/// `answers["0"] = delivered + undelivered = uses.spent + grants.spent + grants.long_term_spent`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// The app; none when these are the sums of all apps and of calls that named none.
    pub app_id: Option<String>,
    /// Sends, at both endpoints, that came in and came to something.
    pub calls: u64,
    /// Those that a fault ended before WeChat looked at them: nothing was decided, nothing spent.
    pub unprocessed: u64,
    /// What the others were decided to be, by errcode, even where a fault then kept the answer from the caller.
    pub answers: BTreeMap<i32, u64>,
    /// How many of `calls` came to `subscribe/send`.
    pub subscribe_calls: u64,
    /// How many of `unprocessed` came to `subscribe/send`.
    pub subscribe_unprocessed: u64,
    /// How many of `answers` came from `subscribe/send`.
    pub subscribe_answers: BTreeMap<i32, u64>,
    /// Calls of `subscribe/send` that came while another for the same user was being processed. None of them was
    /// accepted; a sender that makes one call at a time for a user has none.
    pub overlaps: u64,
    /// Messages that reached users.
    pub delivered: u64,
    /// Messages that were accepted, spent a grant, and did not reach the user: [`crate::Settings::sent_failures`].
    pub undelivered: u64,
    /// Of `delivered`, the ones that the same user had been sent before: same template, page and data.
    pub delivered_twice: u64,
    /// Distinct messages among the delivered.
    pub messages: u64,
    /// False once there were more messages than [`crate::Settings::keep_messages`]: `delivered_twice` may then be too
    /// low (and `messages` too high).
    pub messages_exact: bool,
    /// Faults that happened, by the name of their rule, at any endpoint.
    pub faults: BTreeMap<String, u64>,
    /// Calls at the two token endpoints, whatever came of them.
    pub token_fetches: u64,
    /// As `unprocessed`, for token fetches.
    pub token_unprocessed: u64,
    /// As `answers`, for token fetches.
    pub token_answers: BTreeMap<i32, u64>,
    /// Calls that asked how much of a quota is used, whatever came of them. They are no sends.
    pub quota_queries: u64,
    /// Form ids and prepay ids. Spent is one that has no use left.
    pub ids: Counts,
    /// The messages these ids are good for.
    pub uses: Counts,
    /// The messages that users accepted.
    pub grants: GrantCounts,
    /// What was told to the callback.
    pub events: EventCounts,
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
        self.subscribe_calls += other.subscribe_calls;
        self.subscribe_unprocessed += other.subscribe_unprocessed;
        sum(&mut self.subscribe_answers, other.subscribe_answers);
        self.overlaps += other.overlaps;
        self.delivered += other.delivered;
        self.undelivered += other.undelivered;
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
        self.grants.add(other.grants);
        self.events.add(other.events);
    }
}
