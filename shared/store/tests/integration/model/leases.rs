//! A model of leases in plain Rust.

use std::time::Duration;

use domain::{CredentialId, Kind};
use store::eligibility::Eligibility;
use store::leases::{
    Lease, LeaseEnd, LeaseId, LeaseTerms, Leased, NewLease, Reaped, Recorded, Request, Settle, SettleReply,
};
use store::record::MAX_USES;

use super::{Finished, Held, InFlight, LONG_TERM, Mark, Model, Name};

/// The credentials that may be leased for a user.
pub(super) enum Found {
    /// The record at this index.
    At(usize),
    /// A grant, but another owner has locked the user for so many seconds.
    Busy(i64),
    /// The credentials rest; the first rest ends then.
    Resting(i64),
    Nothing,
}

impl Model {
    pub fn lease(
        &mut self,
        user: usize,
        &NewLease { id, request, wanted }: &NewLease<'_>,
        terms: &LeaseTerms,
    ) -> Leased {
        let (name, fingerprint) = (Name::of(user, id, request), request.map(|request| request.fingerprint));
        if let Some(done) = self.requests.get(&name) {
            let mine = fingerprint == Some(done.fingerprint);
            return if mine { Leased::Finished(done.outcome.clone()) } else { Leased::Reused };
        }
        if let Some(lease) = self.leases.get(&name) {
            if lease.fingerprint != fingerprint {
                return Leased::Reused;
            }
            if lease.erased {
                return Leased::Lost;
            }
            let (owner, deadline, granted) = (lease.owner, lease.deadline, lease.held.kind == Kind::Grant);
            if owner != id && deadline > self.now {
                return Leased::UnderWay(seconds(deadline - self.now));
            }
            if granted && let Some(wait) = self.busy_for(user, &[id, owner]) {
                return Leased::Busy(seconds(wait));
            }
            if owner != id {
                self.take_lease_over(&name, id, terms);
                if granted {
                    self.drop_expired(user);
                }
            }
            return Leased::Lease(self.reply(&name));
        }
        if let Found::Busy(wait) = self.find(user, terms, wanted, id) {
            return Leased::Busy(seconds(wait));
        }
        self.drop_expired(user);
        if self.take(user, name.clone(), (id, wanted), terms, fingerprint) {
            return Leased::Lease(self.reply(&name));
        }
        match self.find(user, terms, wanted, id) {
            Found::Resting(ends) => Leased::Resting(self.in_redis(ends).into()),
            _ => Leased::None,
        }
    }

    /// Moves a lease to another owner, who sends from now on.
    pub(super) fn take_lease_over(&mut self, name: &Name, owner: LeaseId, terms: &LeaseTerms) {
        let deadline = self.now + terms.duration.as_secs() as i64;
        let lease = self.leases.get_mut(name).unwrap();
        (lease.owner, lease.deadline, lease.turn) = (owner, deadline, deadline);
        (lease.pinned, lease.taken_over) = (false, true);
        if lease.held.kind == Kind::Grant {
            self.marks[lease.user] = Some(Mark { owner, until: deadline });
        }
    }

    pub fn recorded(&self, user: usize, request: &Request) -> Recorded {
        // Any lease id works, since the request determines the name.
        let name = Name::of(user, LeaseId([0; 16]), Some(request));
        match (self.requests.get(&name), self.leases.get(&name)) {
            (Some(done), _) if done.fingerprint != request.fingerprint => Recorded::Reused,
            (Some(done), _) => Recorded::Finished(done.outcome.clone()),
            (None, Some(lease)) if lease.fingerprint != Some(request.fingerprint) => Recorded::Reused,
            (None, Some(_)) => Recorded::UnderWay,
            (None, None) => Recorded::Nothing,
        }
    }

    pub fn settle(
        &mut self,
        user: usize,
        &Settle { id, request, end, outcome, next }: &Settle<'_>,
        terms: &LeaseTerms,
    ) -> SettleReply {
        let outcome = outcome.unwrap_or_default();
        let name = Name::of(user, id, request);
        let Some(lease) = self.leases.get_mut(&name).filter(|lease| lease.owner == id) else {
            if let Some((next, _)) = next {
                let following = Name::of(user, next, request);
                if self.leases.get(&following).is_some_and(|lease| lease.owner == next && !lease.erased) {
                    return SettleReply::Next(self.reply(&following));
                }
            }
            return SettleReply::Stale;
        };
        if lease.erased {
            if !outcome.is_empty() {
                self.leases.remove(&name);
                self.finish(name, outcome, request, terms);
            }
            return SettleReply::Stale;
        }
        if end == LeaseEnd::Hold {
            let turn = self.now + terms.keep.as_secs() as i64;
            (lease.deadline, lease.turn, lease.pinned) = (self.now, turn, true);
            let held = lease.held.clone();
            self.unmark(user, &held, id);
            self.drop_expired(user);
            return SettleReply::Done { messages_left: self.left(user) };
        }
        let lease = self.leases.remove(&name).unwrap();
        self.drop_expired(user);
        self.apply(&lease, end, self.now);
        if let Some((next, wanted)) = next {
            let following = Name::of(user, next, request);
            if self.take(user, following.clone(), (next, wanted), terms, lease.fingerprint) {
                return SettleReply::Next(self.reply(&following));
            }
        }
        self.finish(name, outcome, request, terms);
        let Some((next, wanted)) = next else { return SettleReply::Done { messages_left: self.left(user) } };
        match self.find(user, terms, wanted, next) {
            Found::Resting(ends) => SettleReply::NextRests(self.in_redis(ends).into()),
            _ => SettleReply::NoNext,
        }
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
            let single = !matches!(name, Name::Broadcast(..));
            if single && lease.held.kind == Kind::FormId && lease.held.expiry > self.now {
                self.apply(&lease, LeaseEnd::Suspect, lease.deadline);
                reaped.suspect += 1;
            } else {
                self.apply(&lease, LeaseEnd::Unknown, lease.deadline);
                reaped.spent += 1;
            }
        }
        reaped
    }

    /// Finds what would be leased.
    pub(super) fn find(&self, user: usize, terms: &LeaseTerms, wanted: &Eligibility, owner: LeaseId) -> Found {
        let earliest = self.now + terms.margin.as_secs() as i64;
        let template = wanted.template.as_ref().map(|template| template.as_str());
        let allowed = |held: &Held| {
            wanted.kinds.iter().any(|kind| kind == held.kind)
                && (held.kind != Kind::Grant || Some(held.id.as_str()) == template)
        };
        let usable = |held: &Held| held.uses > 0 && allowed(held) && held.expiry > earliest;
        let records = &self.users[user];
        let leased = |held: &Held| held.slot == LONG_TERM && allowed(held);
        let ready = |held: &Held| usable(held) && self.rest_of(user, held).is_none();
        let resting = records.iter().filter(|held| usable(held)).filter_map(|held| self.rest_of(user, held)).min();
        match records.iter().position(ready) {
            Some(place) if records[place].kind != Kind::Grant => Found::At(place),
            Some(place) => self.busy_for(user, &[owner]).map_or(Found::At(place), Found::Busy),
            None if resting.is_some() => resting.map_or(Found::Nothing, Found::Resting),
            None if records.iter().any(leased) => self.busy_for(user, &[owner]).map_or(Found::Nothing, Found::Busy),
            None => Found::Nothing,
        }
    }

    pub(super) fn take(
        &mut self,
        user: usize,
        name: Name,
        (id, wanted): (LeaseId, &Eligibility),
        terms: &LeaseTerms,
        fingerprint: Option<[u8; 16]>,
    ) -> bool {
        let Found::At(place) = self.find(user, terms, wanted, id) else {
            return false;
        };
        self.users[user][place].uses -= 1;
        let held = self.users[user][place].clone();
        let deadline = self.now + terms.duration.as_secs() as i64;
        if held.kind == Kind::Grant {
            self.marks[user] = Some(Mark { owner: id, until: deadline });
        }
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

    /// Applies the end of a lease. `sent_at` is the latest time at which the message may have been sent.
    pub(super) fn apply(&mut self, lease: &InFlight, verdict: LeaseEnd, sent_at: i64) {
        let (user, held) = (lease.user, &lease.held);
        self.unmark(user, held, lease.owner);
        let too_late = verdict == LeaseEnd::Suspect && held.expiry <= self.now;
        let verdict = if too_late { LeaseEnd::Unknown } else { verdict };
        let (verdict, begins) = self.resolve(lease, verdict);
        let unknown = matches!(verdict, LeaseEnd::Unknown | LeaseEnd::UnknownDiscard | LeaseEnd::UnknownVoid);
        let spent = u64::from(unknown || verdict == LeaseEnd::Consume);
        self.ledger.consumed += spent;
        self.ledger.unknown += u64::from(unknown);
        if spent > 0 || verdict == LeaseEnd::Suspect {
            self.touched[user] = self.touched[user].max(Some(sent_at));
        }
        match verdict {
            LeaseEnd::Consume | LeaseEnd::Unknown => {
                if held.slot == LONG_TERM {
                    self.ledger.collected += u64::from(self.restore(user, held));
                } else {
                    self.users[user].retain(|other| !other.is(held) || other.uses > 0);
                }
            }
            LeaseEnd::Void | LeaseEnd::UnknownVoid if held.kind == Kind::Grant => {
                self.ledger.discarded += 1 - spent + self.remove_grants(user, &held.id);
            }
            LeaseEnd::Discard | LeaseEnd::Void | LeaseEnd::UnknownDiscard | LeaseEnd::UnknownVoid => {
                let dead = self.users[user].iter().position(|other| other.is(held));
                let uses = dead.map_or(0, |place| self.users[user].remove(place).uses);
                self.ledger.discarded += 1 - spent + u64::from(uses);
            }
            LeaseEnd::Return | LeaseEnd::Suspect | LeaseEnd::Hold => {
                self.give_back(lease, verdict == LeaseEnd::Suspect)
            }
            LeaseEnd::Rest(_) | LeaseEnd::UnknownRest(_) => unreachable!("resolved above"),
        }
        self.change_rest(lease, verdict, begins);
    }

    fn give_back(&mut self, lease: &InFlight, suspect: bool) {
        let (user, leased) = (lease.user, &lease.held);
        if leased.expiry <= self.now {
            self.ledger.expired += 1;
            return;
        }
        if leased.slot == LONG_TERM {
            self.ledger.discarded += u64::from(!self.restore(user, leased));
            return;
        }
        let (grant, own) = (leased.kind == Kind::Grant, self.users[user].iter_mut().find(|held| held.is(leased)));
        match own {
            Some(held) if held.uses < MAX_USES => {
                held.uses += 1;
                held.suspect |= suspect && !grant;
            }
            _ if grant => {
                self.add_uses(user, &leased.id, 1);
                self.enforce_cap(user);
            }
            Some(held) => {
                held.suspect |= suspect;
                self.ledger.dropped += 1;
            }
            None => {
                let suspect = suspect || leased.suspect;
                self.insert(user, Held { uses: 1, suspect, ..leased.clone() });
            }
        }
    }

    fn finish(&mut self, name: Name, outcome: &[u8], request: Option<&Request>, terms: &LeaseTerms) {
        if let Some(request) = request.filter(|_| !outcome.is_empty()) {
            let until = self.now + terms.keep.as_secs() as i64;
            let finished = Finished { fingerprint: request.fingerprint, outcome: outcome.to_vec(), until };
            self.requests.insert(name, finished);
        }
    }

    pub(super) fn reply(&self, name: &Name) -> Lease {
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

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(seconds as u64)
}
