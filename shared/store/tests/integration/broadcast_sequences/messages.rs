//! Steps on messages: settle, take over, send single messages, report delivery failures.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::sample::Index;
use store::broadcast::pages::{Next, Settlement};
use store::delivery_failures::MsgId;
use store::eligibility::Eligibility;
use store::keys::Bucket;
use store::leases::{LeaseEnd, LeaseId, LeaseTerms, Leased, NewLease, Settle, SettleReply};

use super::{Run, USERS, VERDICTS, number_of};
use crate::fixture::{TERMS, any_kind, template, timeless};
use crate::model::{Message, Step};

/// WeChat's id of the message that this owner sends to this user.
fn msgid(user: usize, owner: LeaseId) -> u64 {
    u64::from_be_bytes(owner.0[8..].try_into().unwrap()).wrapping_mul(USERS.len() as u64) + user as u64
}

impl Run<'_> {
    pub(super) async fn settle(&mut self, messages: &[(Option<Index>, usize, usize)], again: bool) {
        let Some(last) = self.taken.last().copied() else { return };
        let mut page: Vec<(usize, usize, Message)> = Vec::new();
        for (which, verdict, next) in messages {
            let (number, user, owner) = which.map_or(last, |which| *which.get(&self.taken));
            let verdict = VERDICTS[*verdict];
            let next = match next {
                0 => Next::End(if verdict == LeaseEnd::Consume { "delivered" } else { "FAILED 1" }.to_owned()),
                1 => Next::Again,
                2 => Next::Hold,
                _ => Next::Credential(self.fresh_id(), "CREDENTIALS_DEAD 41028".to_owned()),
            };
            let msgid = (verdict == LeaseEnd::Consume).then(|| msgid(user, owner));
            page.push((number, user, Message { user, owner, verdict, next, msgid }));
        }
        // The messages of one call belong to one broadcast and one bucket.
        let (number, bucket) = (page[0].0, self.bucket_of(page[0].1));
        page.retain(|(other, user, _)| *other == number && self.bucket_of(*user) == bucket);
        let messages: Vec<_> = page.into_iter().map(|(.., message)| message).collect();
        let settlements: Vec<_> = messages
            .iter()
            .map(|Message { user, owner, verdict, next, msgid }| {
                let (openid, next, msgid) = (self.users[*user].clone(), next.clone(), msgid.map(MsgId));
                Settlement { openid, owner: *owner, verdict: *verdict, next, msgid }
            })
            .collect();
        let settle = async |run: &Self| run.real[number].try_settle(bucket, &settlements, &TERMS).await;
        if messages.iter().any(|message| message.verdict == LeaseEnd::Hold && message.next != Next::Hold) {
            let before = self.fixture.everything().await;
            assert!(settle(self).await.is_err(), "a held message must stay in flight");
            assert_eq!(self.fixture.everything().await, before);
            return;
        }
        let reply = settle(self).await.unwrap();
        if again {
            let before = self.fixture.everything().await;
            assert_eq!(settle(self).await.unwrap().len(), reply.len());
            // A repeated hold restarts its time.
            if messages.iter().all(|message| message.next != Next::Hold) {
                assert_eq!(self.fixture.everything().await, before, "a repeated settle");
            }
        }
        let (mut wanted, mut settled) = (Vec::new(), BTreeSet::new());
        for message in &messages {
            // The second message of a user in one call is skipped.
            if !settled.insert(message.user) {
                continue;
            }
            let (model, broadcast, key) = (&mut self.model, &mut self.models[number], (number, message.user));
            if model.owner(broadcast, message.user) == Some(message.owner) && message.next != Next::Hold {
                self.doubt.remove(&key);
            }
            if let Some(lease) = model.settle_message(broadcast, message, &TERMS) {
                self.taken.push((number, message.user, lease.id));
                assert_eq!(self.doubt.insert(key, lease.credential.clone()), None, "a second credential");
                wanted.push((self.users[message.user].clone(), lease));
            }
        }
        assert_eq!(reply.into_iter().map(|(openid, lease)| (openid, timeless(lease))).collect::<Vec<_>>(), wanted);
    }

    pub(super) async fn take_over(&mut self, number: usize, bucket: Bucket, terms: &LeaseTerms) {
        let (part, owner) = (self.real[number].part(bucket), LeaseId::random());
        let flying = part.in_flight().await.unwrap();
        let here: Vec<_> = (0..self.users.len()).filter(|user| self.bucket_of(*user) == bucket).collect();
        let wanted: BTreeSet<_> =
            here.iter().copied().filter(|user| self.models[number].flight.contains(user)).collect();
        assert_eq!(flying.iter().map(number_of).collect::<BTreeSet<_>>(), wanted);
        // A takeover has no effect on users who are not in flight.
        let all: Vec<_> = here.iter().map(|user| self.users[*user].clone()).collect();
        let over = part.take_over(owner, &all, terms).await.unwrap();
        let (mut ready, mut wait) = (Vec::new(), None::<i64>);
        for user in here {
            match self.model.take_over(&mut self.models[number], user, owner, terms) {
                Step::Lease(lease) => {
                    assert_eq!(self.doubt.get(&(number, user)), Some(&lease.credential), "the same credential");
                    self.taken.push((number, user, owner));
                    let data = self.models[number].data.get(&user).cloned().unwrap_or_default();
                    ready.push((self.users[user].clone(), lease, data));
                }
                Step::Wait(left) => wait = Some(wait.map_or(left, |wait| wait.min(left))),
                Step::Busy | Step::None => {}
            }
        }
        let real: Vec<_> =
            over.ready.into_iter().map(|ready| (ready.openid, timeless(ready.lease), ready.data)).collect();
        assert_eq!(real, ready);
        match (over.wait, wait) {
            (Some(real), Some(wanted)) => {
                assert!(real.abs_diff(Duration::from_secs(wanted as u64)) < Duration::from_secs(600));
            }
            (real, wanted) => assert_eq!((real, wanted), (None, None)),
        }
    }

    pub(super) async fn single(&mut self, user: usize, verdict: Option<usize>, granted: bool) {
        let (id, store, app, openid) = (self.fresh_id(), &self.fixture.store, &self.fixture.app, &self.users[user]);
        let of = if granted { Eligibility::grants(template("t1")) } else { any_kind() };
        let new = NewLease { id, request: None, wanted: &of };
        let reply = store.lease(app, openid, &new, &TERMS).await.unwrap();
        let wanted = self.model.lease(user, &new, &TERMS);
        let (Leased::Lease(lease), Some(verdict)) = (&reply, verdict) else {
            assert_eq!(matches!(reply, Leased::None), matches!(wanted, Leased::None));
            assert_eq!(matches!(reply, Leased::Busy(_)), matches!(wanted, Leased::Busy(_)));
            return;
        };
        assert_eq!(Leased::Lease(timeless(lease.clone())), wanted);
        let settle = Settle { id, request: None, end: VERDICTS[verdict], outcome: None, next: None };
        let reply = store.settle(app, openid, &settle, &TERMS).await.unwrap();
        let wanted: SettleReply = self.model.settle(user, &settle, &TERMS);
        assert_eq!(reply, wanted);
    }

    /// WeChat reports a delivery failure of a message in any state.
    pub(super) async fn fail_late(&mut self, which: Option<Index>) {
        let Some(last) = self.taken.last().copied() else { return };
        let (number, user, owner) = which.map_or(last, |which| *which.get(&self.taken));
        let msgid = msgid(user, owner);
        let new = self.real[number].fail_late(&self.users[user], MsgId(msgid)).await;
        assert_eq!(new, self.model.fail_late(&mut self.models, user, msgid));
        let failure =
            self.fixture.store.late_failure(&self.fixture.app, &self.users[user], MsgId(msgid)).await.unwrap();
        assert_eq!(failure.map(|failure| failure.errcode), self.model.failed(msgid).then_some(43101));
    }
}
