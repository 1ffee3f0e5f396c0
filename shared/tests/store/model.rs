//! The store in plain Rust, as simple as can be: what every reply and every record must be.

mod broadcasts;

use std::collections::BTreeMap;
use std::time::Duration;

use shared::credential::{Credential, CredentialId, Kind};
use shared::store::leases::{
    KEEP_REQUESTS, Lease, LeaseId, LeaseTerms, Leased, Reaped, Recorded, Request, Settled, Verdict,
};
use shared::store::record::{KEEP_TOUCH, MAX_USES};
use shared::store::stock::{Count, DAY, DAY_OFFSET, Ledger};

pub use broadcasts::{Broadcast, Message, Step};

/// A stored credential. Times are in seconds by the model's own clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub kind: Kind,
    pub id: String,
    pub uses: u8,
    pub expiry: i64,
    pub suspect: bool,
}

/// What a lease is called: by its user and request id or broadcast if there is one, by its first owner otherwise.
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
    /// When the reaper looks at it.
    turn: i64,
    pinned: bool,
    taken_over: bool,
    /// Its user is gone; all it tells is that the request was under way.
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
    /// The clock when it began.
    began: i64,
    pub now: i64,
    users: Vec<Vec<Held>>,
    /// When each user was last sent a message.
    touched: Vec<Option<i64>>,
    leases: BTreeMap<Name, InFlight>,
    requests: BTreeMap<Name, Finished>,
    ledger: Ledger,
}

impl Model {
    pub fn new(cap: u16, users: usize, now: i64) -> Self {
        let (users, touched) = (vec![Vec::new(); users], vec![None; users]);
        Self { cap: cap.into(), began: now, now, users, touched, ..Self::default() }
    }

    /// Time passes. Redis' clock does not: there, everything stored moves into the past instead.
    pub fn advance(&mut self, seconds: i64) {
        self.now += seconds;
        self.requests.retain(|_, request| request.until > self.now);
    }

    /// A time as it stands in Redis.
    pub fn in_redis(&self, time: i64) -> u32 {
        (time - (self.now - self.began)) as u32
    }

    pub fn ledger(&self) -> Ledger {
        Ledger { leased: self.leases.values().filter(|lease| !lease.erased).count() as u64, ..self.ledger }
    }

    /// The records of a user, without those that neither can be used nor count.
    pub fn records(&self, user: usize) -> Vec<(Credential, bool)> {
        let counts = |held: &&Held| held.uses > 0 || held.expiry > self.now;
        let record = |held: &Held| {
            let (id, expiry) = (CredentialId::parse(held.id.as_str()).unwrap(), self.in_redis(held.expiry));
            let (kind, uses) = (held.kind, held.uses);
            (Credential { kind, id, uses, expiry }, held.suspect)
        };
        self.users[user].iter().filter(counts).map(record).collect()
    }

    /// When a user was last sent a message, if that is not too long ago to be known.
    pub fn touched(&self, user: usize) -> Option<i64> {
        self.touched[user].filter(|at| at + KEEP_TOUCH.as_secs() as i64 > self.now)
    }

    /// How many users something is stored of, once what has expired was dropped.
    pub fn users(&self) -> u64 {
        let stored = |user: &usize| !self.users[*user].is_empty() || self.touched(*user).is_some();
        (0..self.users.len()).filter(stored).count() as u64
    }

    pub fn collect(&mut self, credentials: &[(usize, Held)]) -> Vec<usize> {
        let mut duplicates = Vec::new();
        for (place, (user, held)) in credentials.iter().enumerate() {
            self.drop_expired(*user);
            if self.users[*user].iter().any(|other| other.id == held.id) {
                duplicates.push(place);
            } else {
                self.ledger.collected += u64::from(held.uses);
                self.insert(*user, held.clone());
            }
        }
        duplicates
    }

    pub fn lease(
        &mut self,
        user: usize,
        id: LeaseId,
        terms: &LeaseTerms,
        kinds: &[Kind],
        request: Option<&Request>,
    ) -> Leased {
        let (name, fingerprint) = (Name::of(user, id, request), request.map(|request| request.fingerprint));
        if let Some(done) = self.requests.get(&name) {
            let mine = fingerprint == Some(done.fingerprint);
            return if mine { Leased::Finished(done.outcome.clone()) } else { Leased::Reused };
        }
        if let Some(lease) = self.leases.get_mut(&name) {
            if lease.fingerprint != fingerprint {
                return Leased::Reused;
            }
            if lease.erased {
                return Leased::Lost;
            }
            if lease.owner != id {
                if lease.deadline > self.now {
                    return Leased::UnderWay(Duration::from_secs((lease.deadline - self.now) as u64));
                }
                lease.owner = id;
                lease.deadline = self.now + terms.duration.as_secs() as i64;
                (lease.turn, lease.pinned, lease.taken_over) = (lease.deadline, false, true);
            }
            return Leased::Lease(self.reply(&name));
        }
        self.drop_expired(user);
        let taken = self.take(user, name.clone(), id, terms, kinds, fingerprint);
        if taken { Leased::Lease(self.reply(&name)) } else { Leased::None }
    }

    pub fn recorded(&self, user: usize, request: &Request) -> Recorded {
        // Any id will do: the name is the request's.
        let name = Name::of(user, LeaseId([0; 16]), Some(request));
        match (self.requests.get(&name), self.leases.get(&name)) {
            (Some(done), _) if done.fingerprint != request.fingerprint => Recorded::Reused,
            (Some(done), _) => Recorded::Finished(done.outcome.clone()),
            (None, Some(lease)) if lease.fingerprint != Some(request.fingerprint) => Recorded::Reused,
            (None, Some(_)) => Recorded::UnderWay,
            (None, None) => Recorded::Nothing,
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub fn settle(
        &mut self,
        user: usize,
        id: LeaseId,
        terms: &LeaseTerms,
        verdict: Verdict,
        outcome: &[u8],
        request: Option<&Request>,
        next: Option<(LeaseId, &[Kind])>,
    ) -> Settled {
        let name = Name::of(user, id, request);
        let Some(lease) = self.leases.get_mut(&name).filter(|lease| lease.owner == id) else {
            if let Some((next, _)) = next {
                let following = Name::of(user, next, request);
                if self.leases.get(&following).is_some_and(|lease| lease.owner == next && !lease.erased) {
                    return Settled::Next(self.reply(&following));
                }
            }
            return Settled::Stale;
        };
        if lease.erased {
            if !outcome.is_empty() {
                self.leases.remove(&name);
                self.finish(name, outcome, request, terms);
            }
            return Settled::Stale;
        }
        if verdict == Verdict::Hold {
            let turn = self.now + terms.keep.as_secs() as i64;
            (lease.deadline, lease.turn, lease.pinned) = (self.now, turn, true);
            self.drop_expired(user);
            return Settled::Done { messages_left: self.left(user) };
        }
        let lease = self.leases.remove(&name).unwrap();
        self.drop_expired(user);
        self.apply(&lease, verdict);
        if let Some((next, kinds)) = next {
            let following = Name::of(user, next, request);
            if self.take(user, following.clone(), next, terms, kinds, lease.fingerprint) {
                return Settled::Next(self.reply(&following));
            }
        }
        self.finish(name, outcome, request, terms);
        if next.is_some() { Settled::NoNext } else { Settled::Done { messages_left: self.left(user) } }
    }

    pub fn reap(&mut self, terms: &LeaseTerms) -> Reaped {
        let mut reaped = Reaped::default();
        let late: Vec<_> =
            self.leases.iter().filter(|(_, lease)| lease.turn <= self.now).map(|(name, _)| name.clone()).collect();
        for name in late {
            let lease = self.leases.get_mut(&name).unwrap();
            if lease.fingerprint.is_some() && !lease.pinned && !lease.erased {
                (lease.pinned, lease.turn) = (true, self.now + terms.keep.as_secs() as i64);
                reaped.pinned += 1;
                continue;
            }
            let lease = self.leases.remove(&name).unwrap();
            if lease.erased {
                continue;
            }
            self.drop_expired(lease.user);
            if lease.held.kind == Kind::PrepayId {
                self.spend(&lease);
                reaped.spent += 1;
            } else {
                let expired = lease.held.expiry <= self.now;
                *(if expired { &mut reaped.expired } else { &mut reaped.suspect }) += 1;
                self.give_back(&lease, true);
            }
        }
        reaped
    }

    pub fn erase(&mut self, user: usize) -> u32 {
        self.drop_expired(user);
        self.touched[user] = None;
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

    /// How many users can be reached, and the counts by day and kind.
    pub fn sweep(&mut self) -> (u64, BTreeMap<(i64, Kind), Count>) {
        let (mut reachable, mut days) = (0, BTreeMap::<_, Count>::new());
        for user in 0..self.users.len() {
            self.drop_expired(user);
            reachable += u64::from(self.left(user) > 0);
            for held in self.users[user].iter().filter(|held| held.uses > 0) {
                let day = (i64::from(self.in_redis(held.expiry)) + DAY_OFFSET).div_euclid(DAY);
                let count = days.entry((day, held.kind)).or_default();
                count.credentials += 1;
                count.messages += u64::from(held.uses);
            }
        }
        (reachable, days)
    }

    fn left(&self, user: usize) -> u32 {
        self.users[user].iter().filter(|held| held.expiry > self.now).map(|held| u32::from(held.uses)).sum()
    }

    fn drop_expired(&mut self, user: usize) {
        let gone = self.users[user].extract_if(.., |held| held.expiry <= self.now);
        self.ledger.expired += gone.map(|held| u64::from(held.uses)).sum::<u64>();
    }

    fn insert(&mut self, user: usize, held: Held) {
        let records = &mut self.users[user];
        records.insert(records.partition_point(|other| other.expiry <= held.expiry), held);
        while records.len() > self.cap
            && let Some(soonest) = records.iter().position(|held| held.uses > 0)
        {
            self.ledger.dropped += u64::from(records.remove(soonest).uses);
        }
    }

    /// Where the credential stands that would be leased.
    fn usable(&self, user: usize, terms: &LeaseTerms, kinds: &[Kind]) -> Option<usize> {
        let earliest = self.now + terms.margin.as_secs() as i64;
        let usable = |held: &Held| held.uses > 0 && kinds.contains(&held.kind) && held.expiry > earliest;
        self.users[user].iter().position(usable)
    }

    fn take(
        &mut self,
        user: usize,
        name: Name,
        id: LeaseId,
        terms: &LeaseTerms,
        kinds: &[Kind],
        fingerprint: Option<[u8; 16]>,
    ) -> bool {
        let Some(place) = self.usable(user, terms, kinds) else {
            return false;
        };
        self.users[user][place].uses -= 1;
        let held = self.users[user][place].clone();
        let deadline = self.now + terms.duration.as_secs() as i64;
        let lease = InFlight {
            owner: id,
            user,
            fingerprint,
            held,
            deadline,
            turn: deadline,
            pinned: false,
            taken_over: false,
            erased: false,
        };
        self.leases.insert(name, lease);
        true
    }

    fn apply(&mut self, lease: &InFlight, verdict: Verdict) {
        let user = lease.user;
        match verdict {
            Verdict::Consume => self.spend(lease),
            Verdict::Discard => {
                let dead = self.users[user].iter().position(|held| held.id == lease.held.id);
                let uses = dead.map_or(0, |place| self.users[user].remove(place).uses);
                self.ledger.discarded += 1 + u64::from(uses);
            }
            Verdict::Return | Verdict::Suspect | Verdict::Hold => self.give_back(lease, verdict == Verdict::Suspect),
        }
    }

    fn spend(&mut self, lease: &InFlight) {
        self.users[lease.user].retain(|held| held.id != lease.held.id || held.uses > 0);
        self.ledger.consumed += 1;
        self.touched[lease.user] = Some(self.now);
    }

    fn give_back(&mut self, lease: &InFlight, suspect: bool) {
        if lease.held.expiry <= self.now {
            self.ledger.expired += 1;
        } else if let Some(held) = self.users[lease.user].iter_mut().find(|held| held.id == lease.held.id) {
            held.suspect |= suspect;
            if held.uses < MAX_USES { held.uses += 1 } else { self.ledger.dropped += 1 }
        } else {
            let suspect = suspect || lease.held.suspect;
            self.insert(lease.user, Held { uses: 1, suspect, ..lease.held.clone() });
        }
    }

    fn finish(&mut self, name: Name, outcome: &[u8], request: Option<&Request>, terms: &LeaseTerms) {
        if let Some(request) = request.filter(|_| !outcome.is_empty()) {
            let until = self.now + terms.keep.as_secs() as i64;
            let finished = Finished { fingerprint: request.fingerprint, outcome: outcome.to_vec(), until };
            self.requests.insert(name, finished);
        }
    }

    fn reply(&self, name: &Name) -> Lease {
        let lease = &self.leases[name];
        Lease {
            id: lease.owner,
            credential: CredentialId::parse(lease.held.id.as_str()).unwrap(),
            kind: lease.held.kind,
            expiry: self.in_redis(lease.held.expiry),
            now: 0,
            suspect: lease.held.suspect,
            taken_over: lease.taken_over,
            messages_left: self.left(lease.user),
        }
    }
}
