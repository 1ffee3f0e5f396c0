//! Broadcasts in plain Rust: who is where, and what becomes of the messages.

use std::collections::{BTreeMap, BTreeSet};

use shared::credential::Kind;
use shared::store::broadcast::KEEP_OPEN;
use shared::store::broadcast::pages::Next;
use shared::store::leases::{Lease, LeaseId, LeaseTerms, Verdict};

use super::{Model, Name};

/// The fingerprint of every message of a broadcast: it has a request, and no two of them are taken for each other.
const FINGERPRINT: Option<[u8; 16]> = Some([0; 16]);

/// Where everyone is.
#[derive(Debug, Default)]
pub struct Broadcast {
    pub number: usize,
    pub kinds: Vec<Kind>,
    pub audience: u64,
    pub todo: BTreeSet<usize>,
    pub flight: BTreeSet<usize>,
    /// How those ended who were dealt with, as long as they are known.
    pub ended: BTreeMap<usize, String>,
    pub tally: BTreeMap<String, u64>,
    pub excluded: BTreeSet<usize>,
    pub data: BTreeMap<usize, Vec<u8>>,
}

/// A message, by its user and the owner of its lease.
#[derive(Debug, Clone)]
pub struct Message {
    pub user: usize,
    pub owner: LeaseId,
    pub verdict: Verdict,
    pub next: Next,
}

/// What comes of a user's turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The message is to be sent.
    Lease(Lease),
    /// It has to wait for so many seconds.
    Wait(i64),
    /// Nothing.
    None,
}

impl Broadcast {
    /// One that may use any kind of credential.
    pub fn new(number: usize) -> Self {
        Self { number, kinds: Kind::ALL.into(), ..Self::default() }
    }

    /// Excludes first; answers whom it added and how many it left out.
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

    /// Everything of a user who is erased goes, but that it was in the audience.
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
        assert!(self.ended.insert(user, ending.to_owned()).is_none(), "a user is dealt with once");
        *self.tally.entry(ending.to_owned()).or_default() += 1;
    }
}

impl Model {
    /// The next users who can be reached come into the audience.
    pub fn snapshot(&self, broadcast: &mut Broadcast, users: impl Iterator<Item = usize>, terms: &LeaseTerms) {
        for user in users {
            if self.usable(user, terms, &broadcast.kinds).is_some() && !broadcast.excluded.contains(&user) {
                broadcast.audience += u64::from(broadcast.todo.insert(user));
            }
        }
    }

    /// A user's turn comes. Users who got a message within `interval` seconds are skipped.
    pub fn turn(
        &mut self,
        broadcast: &mut Broadcast,
        user: usize,
        owner: LeaseId,
        interval: u32,
        terms: &LeaseTerms,
    ) -> Step {
        assert!(broadcast.todo.remove(&user));
        self.drop_expired(user);
        let recently = self.touched(user).is_some_and(|at| at > self.now - i64::from(interval));
        if self.usable(user, terms, &broadcast.kinds).is_none() {
            broadcast.end(user, "NO_CREDENTIAL");
            return Step::None;
        }
        if recently {
            broadcast.end(user, "RECENTLY_MESSAGED");
            return Step::None;
        }
        let name = Name::Broadcast(user, broadcast.number);
        assert!(!self.leases.contains_key(&name), "one lease for each message");
        assert!(self.take(user, name.clone(), owner, terms, &broadcast.kinds, FINGERPRINT));
        broadcast.flight.insert(user);
        Step::Lease(self.message(&name))
    }

    /// Somebody goes on with a user.
    pub fn take_over(&mut self, broadcast: &mut Broadcast, user: usize, owner: LeaseId, terms: &LeaseTerms) -> Step {
        if !broadcast.flight.contains(&user) {
            return Step::None;
        }
        let name = Name::Broadcast(user, broadcast.number);
        let now = self.now;
        let Some(lease) = self.leases.get_mut(&name) else {
            broadcast.flight.remove(&user);
            broadcast.end(user, "UNKNOWN");
            return Step::None;
        };
        if lease.deadline > now {
            return Step::Wait(lease.deadline - now);
        }
        (lease.owner, lease.deadline) = (owner, now + terms.duration.as_secs() as i64);
        (lease.turn, lease.pinned, lease.taken_over) = (lease.deadline, false, true);
        Step::Lease(self.message(&name))
    }

    /// Who has the lease of a message.
    pub fn owner(&self, broadcast: &Broadcast, user: usize) -> Option<LeaseId> {
        self.leases.get(&Name::Broadcast(user, broadcast.number)).map(|lease| lease.owner)
    }

    /// Settles one message; answers the next lease.
    pub fn settle_message(
        &mut self,
        broadcast: &mut Broadcast,
        message: &Message,
        terms: &LeaseTerms,
    ) -> Option<Lease> {
        let Message { user, owner, verdict, next } = message;
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
            return None;
        }
        if let Some(lease) = self.leases.remove(&name) {
            self.apply(&lease, *verdict);
            if let Next::Credential(next, _) = next
                && self.take(user, name.clone(), *next, terms, &broadcast.kinds, FINGERPRINT)
            {
                return Some(self.message(&name));
            }
        }
        if broadcast.flight.remove(&user) {
            match next {
                Next::Again if holder.is_some() => assert!(broadcast.todo.insert(user)),
                Next::Again | Next::Hold => broadcast.end(user, "UNKNOWN"),
                Next::End(ending) | Next::Credential(_, ending) => broadcast.end(user, ending),
            }
        }
        None
    }

    /// A lease as broadcasts have it: they do not ask what is left for the user.
    fn message(&self, name: &Name) -> Lease {
        Lease { messages_left: 0, ..self.reply(name) }
    }
}
