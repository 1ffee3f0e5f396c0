//! A model of broadcasts in plain Rust: the state of each user, and how each message ends.

use std::collections::{BTreeMap, BTreeSet};

use domain::Kind;
use store::broadcast::pages::Next;
use store::broadcast::tallies::DELIVERED;
use store::eligibility::{Eligibility, Kinds};
use store::leases::{Lease, LeaseEnd, LeaseId, LeaseTerms};
use store::retention::{KEEP_FAILED, KEEP_OPEN};

use super::leases::Found;
use super::{Model, Name};

/// The fingerprint of every message of a broadcast. It marks the lease as one with a request. Messages are never
/// distinguished by it.
const FINGERPRINT: Option<[u8; 16]> = Some([0; 16]);

/// The ending of a message with a delivery failure, as the tests report it.
pub const FAILED_LATER: &str = "FAILED_LATER 43101";

/// The state of a broadcast.
#[derive(Debug)]
pub struct Broadcast {
    pub number: usize,
    pub wanted: Eligibility,
    pub audience: u64,
    pub todo: BTreeSet<usize>,
    pub flight: BTreeSet<usize>,
    /// How many messages took a permit and did not return it.
    pub taken: u64,
    /// The ending of each user whose message has ended, as long as it is known.
    pub ended: BTreeMap<usize, String>,
    pub tally: BTreeMap<String, u64>,
    pub excluded: BTreeSet<usize>,
    pub data: BTreeMap<usize, Vec<u8>>,
    /// Msgids of messages that were delivered recently.
    pub sent: BTreeSet<u64>,
}

/// The settlement of a message, which is identified by its user and the owner of its lease.
#[derive(Debug, Clone)]
pub struct Message {
    pub user: usize,
    pub owner: LeaseId,
    pub verdict: LeaseEnd,
    pub next: Next,
    pub msgid: Option<u64>,
}

/// The result of a user's turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The message is to be sent.
    Lease(Lease),
    /// The message has to wait for so many seconds.
    Wait(i64),
    /// The user is locked and waits in the audience.
    Busy,
    /// There is nothing to do.
    None,
}

impl Broadcast {
    pub fn new(number: usize, wanted: Eligibility) -> Self {
        Self {
            number,
            wanted,
            audience: 0,
            todo: BTreeSet::new(),
            flight: BTreeSet::new(),
            taken: 0,
            ended: BTreeMap::new(),
            tally: BTreeMap::new(),
            excluded: BTreeSet::new(),
            data: BTreeMap::new(),
            sent: BTreeSet::new(),
        }
    }

    /// Excludes users, then adds users. Returns how many it added and how many it left out.
    pub fn add(&mut self, users: &[(usize, Vec<u8>)], excluded: &[usize]) -> (u32, u32) {
        for user in excluded {
            self.excluded.insert(*user);
            self.audience -= u64::from(self.todo.remove(user));
        }
        let (mut added, mut left_out) = (0, 0);
        for (user, data) in users {
            if self.excluded.contains(user) {
                left_out += 1;
                continue;
            }
            if self.todo.insert(*user) {
                added += 1;
                self.audience += 1;
            }
            if !data.is_empty() {
                self.data.insert(*user, data.clone());
            }
        }
        (added, left_out)
    }

    /// Forgets everything about an erased user, except that the user was in the audience.
    pub fn forget(&mut self, user: usize) {
        if self.todo.remove(&user) | self.flight.remove(&user) {
            *self.tally.entry("erased".to_owned()).or_default() += 1;
        }
        self.ended.remove(&user);
        self.excluded.remove(&user);
        self.data.remove(&user);
    }

    fn end(&mut self, user: usize, ending: &str) {
        let ending = if ending.is_empty() { "UNKNOWN" } else { ending };
        assert!(self.ended.insert(user, ending.to_owned()).is_none(), "a message ends once");
        *self.tally.entry(ending.to_owned()).or_default() += 1;
    }
}

impl Model {
    /// Adds those of the users who can be reached to the audience.
    pub fn snapshot(&self, broadcast: &mut Broadcast, users: impl Iterator<Item = usize>, terms: &LeaseTerms) {
        for user in users {
            if self.can_reach(user, terms, &broadcast.wanted) && !broadcast.excluded.contains(&user) {
                broadcast.audience += u64::from(broadcast.todo.insert(user));
            }
        }
    }

    /// Whether the user can be reached now or later: a leased long-term subscription will be returned.
    fn can_reach(&self, user: usize, terms: &LeaseTerms, wanted: &Eligibility) -> bool {
        let grants = wanted.kinds.iter().any(|kind| kind == Kind::Grant);
        let template = wanted.template.as_ref().filter(|_| grants);
        let granted = template.is_some_and(|template| self.granted(user, template.as_str()));
        let ids: Kinds = wanted.kinds.iter().filter(|kind| *kind != Kind::Grant).collect();
        let ids = Eligibility::ids(ids);
        granted || matches!(self.find(user, terms, &ids, LeaseId([0; 16])), Found::At(_))
    }

    /// Handles a user's turn. A user who got a message within `interval` seconds, or may have, is skipped.
    pub fn turn(
        &mut self,
        broadcast: &mut Broadcast,
        user: usize,
        owner: LeaseId,
        interval: u32,
        terms: &LeaseTerms,
    ) -> Step {
        let recently = interval > 0 && self.sent_at(user).is_some_and(|at| at > self.now - i64::from(interval));
        let found = self.find(user, terms, &broadcast.wanted, owner);
        if matches!(found, Found::Busy(_)) && !recently {
            return Step::Busy;
        }
        assert!(broadcast.todo.remove(&user));
        self.drop_expired(user);
        if matches!(found, Found::Nothing | Found::Resting(_)) {
            broadcast.end(user, "NO_CREDENTIAL");
            return Step::None;
        }
        if recently {
            broadcast.end(user, "RECENTLY_MESSAGED");
            return Step::None;
        }
        let name = Name::Broadcast(user, broadcast.number);
        assert!(!self.leases.contains_key(&name), "a message has one lease");
        assert!(self.take(user, name.clone(), (owner, &broadcast.wanted), terms, FINGERPRINT));
        broadcast.flight.insert(user);
        broadcast.taken += 1;
        Step::Lease(self.message(&name))
    }

    /// When the last message was sent to a user, or may have been. A lease counts as a message until it ends.
    fn sent_at(&self, user: usize) -> Option<i64> {
        let theirs = self.leases.values().filter(|lease| lease.user == user && !lease.erased);
        theirs.map(|lease| lease.deadline.min(self.now)).chain(self.touched(user)).max()
    }

    /// Another owner takes over the message to a user.
    pub fn take_over(&mut self, broadcast: &mut Broadcast, user: usize, owner: LeaseId, terms: &LeaseTerms) -> Step {
        if !broadcast.flight.contains(&user) {
            return Step::None;
        }
        let name = Name::Broadcast(user, broadcast.number);
        let Some(lease) = self.leases.get(&name) else {
            broadcast.flight.remove(&user);
            broadcast.end(user, "UNKNOWN");
            return Step::None;
        };
        if lease.deadline > self.now {
            return Step::Wait(lease.deadline - self.now);
        }
        if lease.held.kind == Kind::Grant
            && let Some(wait) = self.busy_for(user, &[lease.owner, owner])
        {
            return Step::Wait(wait);
        }
        self.take_lease_over(&name, owner, terms);
        Step::Lease(self.message(&name))
    }

    /// The owner of the lease of a message.
    pub fn owner(&self, broadcast: &Broadcast, user: usize) -> Option<LeaseId> {
        self.leases.get(&Name::Broadcast(user, broadcast.number)).map(|lease| lease.owner)
    }

    /// Settles one message. Returns the next lease.
    pub fn settle_message(
        &mut self,
        broadcast: &mut Broadcast,
        message: &Message,
        terms: &LeaseTerms,
    ) -> Option<Lease> {
        let Message { user, owner, verdict, next, msgid } = message;
        let (user, name) = (*user, Name::Broadcast(*user, broadcast.number));
        let holder = self.owner(broadcast, user);
        if let Next::Credential(next, _) = next
            && holder == Some(*next)
        {
            return Some(self.message(&name));
        }
        if holder.is_some_and(|holder| holder != *owner) {
            return None;
        }
        self.drop_expired(user);
        if let (Some(lease), Next::Hold) = (self.leases.get_mut(&name), next) {
            (lease.deadline, lease.turn) = (self.now, self.now + KEEP_OPEN.as_secs() as i64);
            lease.pinned = true;
            let held = lease.held.clone();
            self.unmark(user, &held, *owner);
            return None;
        }
        if let Some(lease) = self.leases.remove(&name) {
            self.apply(&lease, *verdict, self.now);
            if let Next::Credential(next, _) = next
                && self.take(user, name.clone(), (*next, &broadcast.wanted), terms, FINGERPRINT)
            {
                return Some(self.message(&name));
            }
        }
        if broadcast.flight.remove(&user) {
            match next {
                Next::Again if holder.is_some() => {
                    assert!(broadcast.todo.insert(user));
                    broadcast.taken -= 1;
                }
                Next::Again | Next::Hold => broadcast.end(user, "UNKNOWN"),
                Next::End(ending)
                    if ending == DELIVERED && msgid.is_some_and(|msgid| self.failed.contains_key(&msgid)) =>
                {
                    broadcast.end(user, FAILED_LATER);
                }
                Next::End(ending) if ending == DELIVERED => {
                    broadcast.sent.extend(*msgid);
                    broadcast.end(user, ending);
                }
                Next::End(ending) | Next::Credential(_, ending) => broadcast.end(user, ending),
            }
        }
        None
    }

    /// Records a delivery failure that WeChat reports. Returns whether it is new.
    pub fn fail_late(&mut self, broadcasts: &mut [Broadcast], user: usize, msgid: u64) -> bool {
        for broadcast in broadcasts {
            if broadcast.sent.remove(&msgid) {
                *broadcast.tally.get_mut(DELIVERED).unwrap() -= 1;
                *broadcast.tally.entry(FAILED_LATER.to_owned()).or_default() += 1;
                // A user who was erased since is not listed.
                if self.touched(user).is_some() {
                    broadcast.ended.insert(user, FAILED_LATER.to_owned());
                }
            }
        }
        let known = self.failed.contains_key(&msgid);
        self.failed.entry(msgid).or_insert(self.now + KEEP_FAILED.as_secs() as i64);
        !known
    }

    /// Whether a delivery failure of this message is known.
    pub fn failed(&self, msgid: u64) -> bool {
        self.failed.contains_key(&msgid)
    }

    /// A lease as broadcasts get it: without the number of messages that are left for the user.
    fn message(&self, name: &Name) -> Lease {
        Lease { messages_left: 0, ..self.reply(name) }
    }
}
