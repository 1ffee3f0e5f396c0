//! A model of the store in plain Rust, as simple as possible: it says what every reply and every record must be.

mod broadcasts;
mod grants;
mod leases;
mod rests;

use std::collections::BTreeMap;

use domain::{Credential, CredentialId, Kind, TemplateId};
use store::leases::{LeaseId, Request};
use store::record::{self, Record};
use store::retention::{KEEP_REQUESTS, KEEP_TOUCH};
use store::stock::{Count, DAY, DAY_OFFSET, Granted, Ledger};

pub use broadcasts::{Broadcast, Message, Step};
pub use grants::{Grant, LONG_TERM, Mark};

/// The expiry of credentials that do not expire.
const NEVER: i64 = i64::MAX;

/// The expiry of the records of resting grants, after the end of the rest.
const REST_SPAN: i64 = 1 << 30;

/// A stored credential. Times are in seconds by the model's own clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub kind: Kind,
    pub id: String,
    /// The slot of a grant among the records of its template; 0 for other credentials.
    pub slot: u8,
    pub uses: u8,
    pub expiry: i64,
    pub suspect: bool,
    /// When the rest of a grant ends. It is kept after the rest, until it is decided.
    pub rest: Option<i64>,
}

impl Held {
    fn is(&self, other: &Self) -> bool {
        (&self.id, self.slot) == (&other.id, other.slot)
    }

    /// Records are ordered by this time.
    fn order(&self) -> i64 {
        self.rest.map_or(self.expiry, |ends| ends + REST_SPAN)
    }

    /// The record beside a prepay id that rests. Its id begins with the same text as in Redis.
    fn rest_of(prepay: &Self, ends: i64) -> Self {
        Self { id: format!("resting:{}", prepay.id), uses: 0, expiry: ends, suspect: false, ..prepay.clone() }
    }

    fn is_rest(&self) -> bool {
        self.id.starts_with("resting:")
    }

    fn is_grant_of(&self, template: &str) -> bool {
        self.kind == Kind::Grant && self.id == template
    }
}

/// A credential to collect.
#[derive(Debug, Clone)]
pub enum Item {
    Id(Held),
    Grant(Grant),
}

/// The name of a lease: its user with the request id or the broadcast if there is one, or else its first owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Request(usize, String),
    Lease([u8; 16]),
    /// User and number of the broadcast.
    Broadcast(usize, usize),
}

impl Name {
    fn of(user: usize, id: LeaseId, request: Option<&Request>) -> Self {
        match request {
            Some(request) => Self::Request(user, request.id.as_str().to_owned()),
            None => Self::Lease(id.0),
        }
    }
}

struct InFlight {
    owner: LeaseId,
    user: usize,
    fingerprint: Option<[u8; 16]>,
    held: Held,
    deadline: i64,
    /// When the reaper handles it.
    turn: i64,
    pinned: bool,
    taken_over: bool,
    /// Its user was erased. It only records that the request was in progress.
    erased: bool,
}

struct Finished {
    fingerprint: [u8; 16],
    outcome: Vec<u8>,
    until: i64,
}

#[derive(Default)]
pub struct Model {
    cap: usize,
    /// The time at the start.
    began: i64,
    pub now: i64,
    users: Vec<Vec<Held>>,
    /// When each user was last sent a message.
    touched: Vec<Option<i64>>,
    /// The send lock of each user.
    marks: Vec<Option<Mark>>,
    leases: BTreeMap<Name, InFlight>,
    requests: BTreeMap<Name, Finished>,
    /// Until when each dedup key of a user is known.
    once: BTreeMap<(usize, u8), i64>,
    /// Until when the delivery failure of each msgid is known.
    failed: BTreeMap<u64, i64>,
    ledger: Ledger,
}

impl Model {
    pub fn new(cap: u16, users: usize, now: i64) -> Self {
        let (marks, touched) = (vec![None; users], vec![None; users]);
        let users = vec![Vec::new(); users];
        Self { cap: cap.into(), began: now, now, users, touched, marks, ..Self::default() }
    }

    /// Advances the time. The clock of Redis cannot advance: there, all stored times move into the past instead.
    pub fn advance(&mut self, seconds: i64) {
        self.now += seconds;
        self.requests.retain(|_, request| request.until > self.now);
        self.once.retain(|_, until| *until > self.now);
        self.failed.retain(|_, until| *until > self.now);
    }

    /// A time as it is stored in Redis.
    pub fn in_redis(&self, time: i64) -> u32 {
        if time == NEVER { record::NEVER } else { (time - (self.now - self.began)) as u32 }
    }

    pub fn ledger(&self) -> Ledger {
        Ledger { leased: self.leases.values().filter(|lease| !lease.erased).count() as u64, ..self.ledger }
    }

    /// The records of a user, without those that can neither be used nor counted.
    pub fn records(&self, user: usize) -> Vec<Record> {
        let counts = |held: &&Held| (held.uses > 0 || held.expiry > self.now) && !held.is_rest();
        let record = |held: &Held| {
            let (id, expiry) = (CredentialId::parse(held.id.as_str()).unwrap(), self.in_redis(held.expiry));
            let (kind, uses) = (held.kind, held.uses);
            let credential = Credential { kind, id, uses, expiry };
            // The time of a prepay id's rest may be over.
            let rest = held.rest.or_else(|| self.rest_of(user, held)).map(|ends| self.in_redis(ends));
            Record { credential, suspect: held.suspect, long_term: held.slot == LONG_TERM, rest }
        };
        self.users[user].iter().filter(counts).map(record).collect()
    }

    /// When a user was last sent a message, if that time is still kept.
    pub fn touched(&self, user: usize) -> Option<i64> {
        self.touched[user].filter(|at| at + KEEP_TOUCH.as_secs() as i64 > self.now)
    }

    /// How many users have stored data, after expired data was dropped.
    pub fn users(&self) -> u64 {
        let stored =
            |user: &usize| !self.users[*user].is_empty() || self.touched(*user).is_some() || self.mark(*user).is_some();
        (0..self.users.len()).filter(stored).count() as u64
    }

    pub fn collect(&mut self, items: &[(usize, Item)]) -> Vec<usize> {
        let mut duplicates = Vec::new();
        for (place, (user, item)) in items.iter().enumerate() {
            let new = match item {
                Item::Id(held) => self.collect_id(*user, held),
                Item::Grant(grant) => self.collect_grant(*user, grant),
            };
            if !new {
                duplicates.push(place);
            }
        }
        duplicates
    }

    fn collect_id(&mut self, user: usize, held: &Held) -> bool {
        self.drop_expired(user);
        if self.users[user].iter().any(|other| other.is(held)) {
            return false;
        }
        self.ledger.collected += u64::from(held.uses);
        self.insert(user, held.clone());
        true
    }

    pub fn erase(&mut self, user: usize) -> u32 {
        self.drop_expired(user);
        (self.touched[user], self.marks[user]) = (None, None);
        let in_stock: u32 = self.users[user].drain(..).map(|held| u32::from(held.uses)).sum();
        let theirs = |lease: &InFlight| lease.user == user && !lease.erased;
        let erased = in_stock + self.leases.values().filter(|lease| theirs(lease)).count() as u32;
        let stays = |name: &Name| matches!(name, Name::Request(..));
        self.leases.retain(|name, lease| !theirs(lease) || stays(name));
        for lease in self.leases.values_mut().filter(|lease| theirs(lease)) {
            (lease.erased, lease.turn) = (true, self.now + KEEP_REQUESTS.as_secs() as i64);
        }
        self.ledger.erased += u64::from(erased);
        erased
    }

    /// How many users can be reached, the counts by day and kind, and those by template.
    #[allow(clippy::type_complexity)]
    pub fn sweep(&mut self) -> (u64, BTreeMap<(i64, Kind), Count>, BTreeMap<TemplateId, Granted>) {
        let (mut reachable, mut days) = (0, BTreeMap::<_, Count>::new());
        let mut templates = BTreeMap::<_, Granted>::new();
        for user in 0..self.users.len() {
            self.drop_expired(user);
            reachable += u64::from(self.left(user) > 0);
            let mut granted = BTreeMap::<_, Granted>::new();
            for held in self.users[user].iter().filter(|held| held.uses > 0) {
                if held.kind == Kind::Grant {
                    let of = granted.entry(TemplateId::parse(held.id.as_str()).unwrap()).or_default();
                    if self.rest_of(user, held).is_some() {
                        of.resting += u64::from(held.uses);
                    } else {
                        of.messages += u64::from(held.uses);
                        of.long_term += u64::from(held.slot == LONG_TERM);
                    }
                    continue;
                }
                let day = (i64::from(self.in_redis(held.expiry)) + DAY_OFFSET).div_euclid(DAY);
                let count = days.entry((day, held.kind)).or_default();
                count.credentials += 1;
                count.messages += u64::from(held.uses);
            }
            for (template, of) in granted {
                let sum = templates.entry(template).or_default();
                sum.users += u64::from(of.messages > 0);
                sum.resting_users += u64::from(of.resting > 0);
                sum.resting += of.resting;
                sum.messages += of.messages;
                sum.long_term += of.long_term;
            }
        }
        (reachable, days, templates)
    }

    fn left(&self, user: usize) -> u32 {
        let counts = |held: &&Held| held.expiry > self.now && self.rest_of(user, held).is_none();
        self.users[user].iter().filter(counts).map(|held| u32::from(held.uses)).sum()
    }

    fn drop_expired(&mut self, user: usize) {
        let gone = self.users[user].extract_if(.., |held| held.expiry <= self.now);
        self.ledger.expired += gone.map(|held| u64::from(held.uses)).sum::<u64>();
    }

    fn insert(&mut self, user: usize, held: Held) {
        self.place(user, held);
        self.enforce_cap(user);
    }

    fn place(&mut self, user: usize, held: Held) {
        let records = &mut self.users[user];
        records.insert(records.partition_point(|other| other.order() <= held.order()), held);
    }

    fn enforce_cap(&mut self, user: usize) {
        let records = &mut self.users[user];
        while records.len() > self.cap
            && let Some(soonest) = records.iter().position(|held| held.uses > 0)
        {
            self.ledger.dropped += u64::from(records.remove(soonest).uses);
        }
    }
}
