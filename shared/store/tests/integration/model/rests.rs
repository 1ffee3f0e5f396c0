//! A model of rests in plain Rust.

use domain::Kind;
use store::leases::LeaseEnd;

use super::{Held, InFlight, Model};

impl Model {
    /// When the rest of a credential ends, if it rests now.
    pub(super) fn rest_of(&self, user: usize, held: &Held) -> Option<i64> {
        let ends = match held.kind {
            Kind::FormId => None,
            Kind::PrepayId => {
                let mark = Held::rest_of(held, 0);
                self.users[user].iter().find(|other| other.is(&mark)).map(|mark| mark.expiry)
            }
            Kind::Grant => held.rest,
        };
        ends.filter(|ends| *ends > self.now)
    }

    /// When the rest of the grants of a template ends or has ended.
    pub(super) fn rested(&self, user: usize, template: &str) -> Option<i64> {
        self.users[user].iter().filter(|held| held.is_grant_of(template)).find_map(|held| held.rest)
    }

    pub(super) fn set_rest(&mut self, user: usize, template: &str, rest: Option<i64>) {
        let grants: Vec<_> = self.users[user].extract_if(.., |held| held.is_grant_of(template)).collect();
        for held in grants {
            self.place(user, Held { rest, ..held });
        }
    }

    /// The user accepts the template.
    pub(super) fn end_rest(&mut self, user: usize, template: &str) {
        if self.rested(user, template).is_some() {
            self.set_rest(user, template, None);
        }
    }

    /// What a verdict amounts to, and when the rest ends that then begins.
    pub(super) fn resolve(&self, lease: &InFlight, verdict: LeaseEnd) -> (LeaseEnd, Option<i64>) {
        let (LeaseEnd::Rest(seconds) | LeaseEnd::UnknownRest(seconds)) = verdict else { return (verdict, None) };
        let unknown = matches!(verdict, LeaseEnd::UnknownRest(_));
        let kept = if unknown { LeaseEnd::Unknown } else { LeaseEnd::Return };
        let (ends, held) = (self.now + i64::from(seconds), &lease.held);
        let granted = self.users[lease.user].iter().any(|other| other.is_grant_of(&held.id));
        match (held.kind, self.rested(lease.user, &held.id)) {
            (Kind::FormId, _) => (kept, None),
            (Kind::PrepayId, _) => (kept, Some(ends)),
            (Kind::Grant, _) if !granted => (if unknown { kept } else { LeaseEnd::Discard }, None),
            (Kind::Grant, None) => (kept, Some(ends)),
            (Kind::Grant, Some(ended)) if ended > self.now => (kept, None),
            (Kind::Grant, Some(_)) => (if unknown { LeaseEnd::UnknownVoid } else { LeaseEnd::Void }, None),
        }
    }

    /// Begins a rest, or ends one because the message was delivered.
    pub(super) fn change_rest(&mut self, lease: &InFlight, verdict: LeaseEnd, begins: Option<i64>) {
        let (user, held) = (lease.user, &lease.held);
        if held.kind == Kind::Grant {
            if begins.is_some() || held.rest.is_some() && verdict == LeaseEnd::Consume {
                self.set_rest(user, &held.id, begins);
            }
        } else if let Some(ends) = begins {
            let mark = Held::rest_of(held, ends);
            if !self.users[user].iter().any(|other| other.is(&mark)) {
                self.place(user, mark);
            }
        }
    }
}
