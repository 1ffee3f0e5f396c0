//! The totals that the control API answers: of one app, or of all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counts of ids or uses. `issued = spent + left`; expired and blocked ones count as left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub issued: u64,
    /// Number spent by delivered messages. An id is spent when all its uses are.
    pub spent: u64,
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

/// Grants, counted in messages. `accepted = spent + voided + left`. Long-term grants are counted separately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantCounts {
    /// Number of accepts. Each allows one message.
    pub accepted: u64,
    /// Number spent by accepted messages.
    pub spent: u64,
    /// Number that ended unused because the user rejected or withdrew.
    pub voided: u64,
    pub left: u64,
    /// Number of current long-term grants.
    pub long_term: u64,
    /// Number of messages sent with long-term grants.
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

/// Counts of events by their result. Events counted only in `made` are still queued, or no callback was set when they
/// were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCounts {
    pub made: u64,
    /// Number that the callback accepted with a 2xx.
    pub pushed: u64,
    /// Number that the callback did not accept in any attempt.
    pub given_up: u64,
    /// Number that were never posted, because their queue was full.
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

/// Totals of one app, or of all. `calls = unprocessed + the sum of answers`, and
/// `answers["0"] = delivered + undelivered = uses.spent + grants.spent + grants.long_term_spent`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// The app. `None` for the totals of all apps, which include calls whose app is unknown.
    pub app_id: Option<String>,
    /// Number of finished send calls, at both endpoints.
    pub calls: u64,
    /// Number of send calls that a fault ended before they were processed: nothing was decided, nothing spent.
    pub unprocessed: u64,
    /// Number of processed send calls, by the errcode of the decision. A fault may have kept the answer from the
    /// caller.
    pub answers: BTreeMap<i32, u64>,
    /// The part of `calls` at `subscribe/send`.
    pub subscribe_calls: u64,
    /// The part of `unprocessed` at `subscribe/send`.
    pub subscribe_unprocessed: u64,
    /// The part of `answers` at `subscribe/send`.
    pub subscribe_answers: BTreeMap<i32, u64>,
    /// Number of `subscribe/send` calls that arrived while another for the same user was in progress. None of them was
    /// accepted. A sender that makes one call at a time for a user causes none.
    pub overlaps: u64,
    pub delivered: u64,
    /// Number of messages that were accepted and spent a grant, but were not delivered:
    /// [`crate::Settings::sent_failures`].
    pub undelivered: u64,
    /// Number of delivered messages that repeat an earlier one: same user, template, page and data.
    pub delivered_twice: u64,
    /// Number of distinct messages among the delivered ones.
    pub messages: u64,
    /// False once there were more distinct messages than [`crate::Settings::keep_messages`]. Then `delivered_twice` may
    /// be too low and `messages` too high.
    pub messages_exact: bool,
    /// Number of injected faults, by the name of their rule, at all endpoints.
    pub faults: BTreeMap<String, u64>,
    /// Number of calls at the two token endpoints, with any result.
    pub token_fetches: u64,
    /// Same as `unprocessed`, for token calls.
    pub token_unprocessed: u64,
    /// Same as `answers`, for token calls.
    pub token_answers: BTreeMap<i32, u64>,
    /// Number of `openapi/quota/get` calls, with any result. They are not sends.
    pub quota_queries: u64,
    /// Counts of form ids and prepay ids. An id is spent when no use is left.
    pub ids: Counts,
    /// Counts of the messages that these ids allow.
    pub uses: Counts,
    pub grants: GrantCounts,
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
