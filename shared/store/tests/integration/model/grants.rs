//! A model of grants and send locks in plain Rust.

use domain::{GrantUses, Kind};
use store::leases::LeaseId;
use store::record::MAX_USES;
use store::retention::KEEP_ONCE;

use super::{Held, Model, NEVER};

/// The slot of a long-term subscription. Other grants use `SLOTS`.
pub const LONG_TERM: u8 = 127;
const SLOTS: std::ops::RangeInclusive<u8> = 128..=247;

/// A grant to collect. Its dedup key belongs to its user.
#[derive(Debug, Clone)]
pub struct Grant {
    pub template: String,
    pub uses: GrantUses,
    pub key: Option<u8>,
}

/// A send lock: who sends to a user, and until when at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub owner: LeaseId,
    pub until: i64,
}

impl Model {
    pub(super) fn collect_grant(&mut self, user: usize, grant: &Grant) -> bool {
        if grant.key.is_some_and(|key| !self.tell(user, key)) {
            return false;
        }
        let count = match grant.uses {
            GrantUses::Count(count) => count,
            GrantUses::LongTerm => {
                let long_term = grant_of(&grant.template, LONG_TERM, 1);
                if self.users[user].iter().any(|held| held.is(&long_term)) {
                    self.end_rest(user, &grant.template);
                    return false;
                }
                let rest = self.rested(user, &grant.template);
                self.place(user, Held { rest, ..long_term });
                1
            }
        };
        self.ledger.collected += u64::from(count);
        if grant.uses != GrantUses::LongTerm {
            self.add_uses(user, &grant.template, count);
        }
        self.end_rest(user, &grant.template);
        self.drop_expired(user);
        self.enforce_cap(user);
        true
    }

    /// Records a dedup key of a user. Returns whether it is new.
    fn tell(&mut self, user: usize, key: u8) -> bool {
        let known = self.once.contains_key(&(user, key));
        if !known {
            self.once.insert((user, key), self.now + KEEP_ONCE.as_secs() as i64);
        }
        !known
    }

    /// Fills the records of the template one by one, then creates further ones.
    pub(super) fn add_uses(&mut self, user: usize, template: &str, mut count: u16) {
        let rest = self.rested(user, template);
        let records = &mut self.users[user];
        for held in records.iter_mut().filter(|held| held.is_grant_of(template) && held.slot != LONG_TERM) {
            let more = count.min(u16::from(MAX_USES - held.uses));
            held.uses += more as u8;
            count -= more;
        }
        for slot in SLOTS {
            let begun = self.users[user].iter().any(|held| held.is_grant_of(template) && held.slot == slot);
            if count > 0 && !begun {
                let more = count.min(MAX_USES.into());
                self.place(user, Held { rest, ..grant_of(template, slot, more as u8) });
                count -= more;
            }
        }
        self.ledger.dropped += u64::from(count);
    }

    /// Revokes the grants of a template. Returns how many uses were removed; `None` if the key is known.
    pub fn void(&mut self, user: usize, template: &str, key: u8) -> Option<u32> {
        if !self.tell(user, key) {
            return None;
        }
        let uses = self.remove_grants(user, template);
        self.ledger.discarded += uses;
        Some(uses as u32)
    }

    pub(super) fn remove_grants(&mut self, user: usize, template: &str) -> u64 {
        self.users[user].extract_if(.., |held| held.is_grant_of(template)).map(|held| u64::from(held.uses)).sum()
    }

    /// Returns the leased use of a long-term subscription. False if the subscription was revoked meanwhile.
    pub(super) fn restore(&mut self, user: usize, leased: &Held) -> bool {
        let gone = self.users[user].iter_mut().find(|held| held.is(leased) && held.uses == 0);
        gone.map(|held| held.uses = 1).is_some()
    }

    /// Whether a user has a grant of the template that can be used now or after the current message has ended.
    pub(super) fn granted(&self, user: usize, template: &str) -> bool {
        let granted = |held: &Held| {
            held.is_grant_of(template)
                && (held.uses > 0 || held.slot == LONG_TERM)
                && self.rest_of(user, held).is_none()
        };
        self.users[user].iter().any(granted)
    }

    /// The send lock of a user, unless it has expired.
    pub fn mark(&self, user: usize) -> Option<Mark> {
        self.marks[user].filter(|mark| mark.until > self.now)
    }

    /// For how long the user is locked by an owner other than these.
    pub(super) fn busy_for(&self, user: usize, owners: &[LeaseId]) -> Option<i64> {
        self.mark(user).filter(|mark| !owners.contains(&mark.owner)).map(|mark| mark.until - self.now)
    }

    pub(super) fn unmark(&mut self, user: usize, leased: &Held, owner: LeaseId) {
        if leased.kind == Kind::Grant && self.marks[user].is_some_and(|mark| mark.owner == owner) {
            self.marks[user] = None;
        }
    }
}

fn grant_of(template: &str, slot: u8, uses: u8) -> Held {
    Held { kind: Kind::Grant, id: template.to_owned(), slot, uses, expiry: NEVER, suspect: false, rest: None }
}
