//! The store in plain Rust, as simple as can be: what every reply and every record must be.

use std::collections::BTreeMap;

use shared::credential::{Credential, CredentialId, Kind};
use shared::store::leases::{Lease, LeaseId, LeaseTerms, Leased, Reaped, Request, Settled, Verdict};
use shared::store::record::MAX_USES;
use shared::store::stock::{Count, DAY, DAY_OFFSET, Ledger};

/// A stored credential. Times are in seconds by the model's own clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub kind: Kind,
    pub id: String,
    pub uses: u8,
    pub expiry: i64,
    pub suspect: bool,
}

/// A user and its request id.
type Name = (usize, String);

struct InFlight {
    user: usize,
    request: Option<Name>,
    held: Held,
    deadline: i64,
    looked_at: i64,
    pinned: bool,
    taken_over: bool,
}

enum Progress {
    UnderWay(LeaseId),
    Finished(Vec<u8>),
}

struct Remembered {
    fingerprint: [u8; 16],
    progress: Progress,
    until: i64,
}

#[derive(Default)]
pub struct Model {
    cap: usize,
    /// The clock when it began.
    began: i64,
    pub now: i64,
    users: Vec<Vec<Held>>,
    leases: BTreeMap<[u8; 16], InFlight>,
    requests: BTreeMap<Name, Remembered>,
    ledger: Ledger,
}

impl Model {
    pub fn new(cap: u16, users: usize, now: i64) -> Self {
        let users = vec![Vec::new(); users];
        Self { cap: cap.into(), began: now, now, users, ..Self::default() }
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
        Ledger { leased: self.leases.len() as u64, ..self.ledger }
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
        if self.leases.contains_key(&id.0) {
            return Leased::Lease(self.reply(id));
        }
        let name = request.map(|request| (user, request.id.as_str().to_owned()));
        if let (Some(name), Some(request)) = (&name, request)
            && let Some(known) = self.requests.get(name)
        {
            if known.fingerprint != request.fingerprint {
                return Leased::Reused;
            }
            let holder = match &known.progress {
                Progress::Finished(outcome) => return Leased::Finished(outcome.clone()),
                Progress::UnderWay(holder) => *holder,
            };
            let Some(held) = self.leases.get(&holder.0) else {
                return Leased::Lost;
            };
            if held.deadline > self.now {
                return Leased::UnderWay(std::time::Duration::from_secs((held.deadline - self.now) as u64));
            }
            let mut lease = self.leases.remove(&holder.0).unwrap();
            lease.deadline = self.now + terms.duration.as_secs() as i64;
            (lease.looked_at, lease.pinned, lease.taken_over) = (lease.deadline, false, true);
            self.leases.insert(id.0, lease);
            self.remember(name.clone(), request.fingerprint, Progress::UnderWay(id), terms);
            return Leased::Lease(self.reply(id));
        }
        self.drop_expired(user);
        let fingerprint = request.map(|request| request.fingerprint);
        if self.take(user, id, terms, kinds, name, fingerprint) { Leased::Lease(self.reply(id)) } else { Leased::None }
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
        let name = request.map(|request| (user, request.id.as_str().to_owned()));
        let known = name.as_ref().and_then(|name| self.requests.get(name));
        let holds = known.is_some_and(|known| matches!(known.progress, Progress::UnderWay(holder) if holder == id));
        let closes = name.zip(request.map(|request| request.fingerprint)).filter(|_| holds);
        if !self.leases.contains_key(&id.0) {
            if let Some((next, _)) = next
                && self.leases.contains_key(&next.0)
            {
                return Settled::Next(self.reply(next));
            }
            if verdict != Verdict::Hold {
                self.close(closes, outcome, terms);
            }
            return Settled::Stale;
        }
        self.drop_expired(user);
        if verdict == Verdict::Hold {
            let until = self.now + terms.keep.as_secs() as i64;
            let lease = self.leases.get_mut(&id.0).unwrap();
            (lease.deadline, lease.looked_at, lease.pinned) = (self.now, until, true);
            return Settled::Done { messages_left: self.left(user) };
        }
        let lease = self.leases.remove(&id.0).unwrap();
        match verdict {
            Verdict::Consume => self.spend(&lease),
            Verdict::Discard => {
                let dead = self.users[user].iter().position(|held| held.id == lease.held.id);
                let uses = dead.map_or(0, |place| self.users[user].remove(place).uses);
                self.ledger.discarded += 1 + u64::from(uses);
            }
            Verdict::Return | Verdict::Suspect | Verdict::Hold => self.give_back(&lease, verdict == Verdict::Suspect),
        }
        let Some((next, kinds)) = next else {
            self.close(closes, outcome, terms);
            return Settled::Done { messages_left: self.left(user) };
        };
        if self.take(user, next, terms, kinds, lease.request, request.map(|request| request.fingerprint)) {
            return Settled::Next(self.reply(next));
        }
        self.close(closes, outcome, terms);
        Settled::NoNext
    }

    pub fn reap(&mut self, terms: &LeaseTerms) -> Reaped {
        let mut reaped = Reaped::default();
        let late: Vec<_> =
            self.leases.iter().filter(|(_, lease)| lease.looked_at <= self.now).map(|(id, _)| *id).collect();
        for id in late {
            let lease = self.leases.get_mut(&id).unwrap();
            if lease.request.is_some() && !lease.pinned {
                (lease.pinned, lease.looked_at) = (true, self.now + terms.keep.as_secs() as i64);
                reaped.pinned += 1;
                continue;
            }
            let lease = self.leases.remove(&id).unwrap();
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
        let in_stock: u32 = self.users[user].drain(..).map(|held| u32::from(held.uses)).sum();
        let before = self.leases.len();
        self.leases.retain(|_, lease| lease.user != user);
        let erased = in_stock + (before - self.leases.len()) as u32;
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
        self.users[user].iter().map(|held| u32::from(held.uses)).sum()
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

    fn take(
        &mut self,
        user: usize,
        id: LeaseId,
        terms: &LeaseTerms,
        kinds: &[Kind],
        request: Option<Name>,
        fingerprint: Option<[u8; 16]>,
    ) -> bool {
        let earliest = self.now + terms.margin.as_secs() as i64;
        let usable = |held: &&mut Held| held.uses > 0 && kinds.contains(&held.kind) && held.expiry > earliest;
        let Some(held) = self.users[user].iter_mut().find(usable) else {
            return false;
        };
        held.uses -= 1;
        let held = held.clone();
        let deadline = self.now + terms.duration.as_secs() as i64;
        if let Some((name, fingerprint)) = request.clone().zip(fingerprint) {
            self.remember(name, fingerprint, Progress::UnderWay(id), terms);
        }
        let lease = InFlight { user, request, held, deadline, looked_at: deadline, pinned: false, taken_over: false };
        self.leases.insert(id.0, lease);
        true
    }

    fn spend(&mut self, lease: &InFlight) {
        self.users[lease.user].retain(|held| held.id != lease.held.id || held.uses > 0);
        self.ledger.consumed += 1;
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

    fn remember(&mut self, name: Name, fingerprint: [u8; 16], progress: Progress, terms: &LeaseTerms) {
        let until = self.now + terms.keep.as_secs() as i64;
        self.requests.insert(name, Remembered { fingerprint, progress, until });
    }

    fn close(&mut self, request: Option<(Name, [u8; 16])>, outcome: &[u8], terms: &LeaseTerms) {
        let Some((name, fingerprint)) = request else { return };
        if outcome.is_empty() {
            self.requests.remove(&name);
        } else {
            self.remember(name, fingerprint, Progress::Finished(outcome.to_vec()), terms);
        }
    }

    fn reply(&self, id: LeaseId) -> Lease {
        let lease = &self.leases[&id.0];
        Lease {
            id,
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
