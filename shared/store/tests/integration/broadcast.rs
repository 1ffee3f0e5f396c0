//! The fixture for broadcasts: calls on one broadcast, and the states of its users.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deadpool_redis::redis;
use domain::{OpenId, RequestId};
use store::Error;
use store::broadcast::audience::{Added, Choice, Recipient};
use store::broadcast::pages::{Next, Page, Ready, Settlement, TakenOver};
use store::broadcast::permits::{Api, Bounds, Budget, Permits};
use store::broadcast::records::{Created, Draft, Move, Moved, Pause, Record, State};
use store::broadcast::tallies::{DELIVERED, Tally, Undelivered};
use store::broadcast::tasks::{Left, TakeTasks, Task};
use store::broadcast::{BroadcastId, Part};
use store::delivery_failures::{LateFailure, MsgId};
use store::keys::{Bucket, BucketKeys, PartKeys};
use store::leases::{Lease, LeaseEnd, LeaseId, LeaseTerms};

use crate::fixture::{BRIEF, Fixture, TERMS, any_kind, form_id, user};

/// More permits than any test sends messages.
pub const MANY: u64 = 1_000_000;

/// The time that dispatchers pass to the store.
pub const NOW_MS: u64 = 1_800_000_000_000;

/// Runs every script of broadcasts at least once, on a broadcast that finishes and one that is cancelled.
pub async fn two_whole_broadcasts(fixture: &Fixture) {
    let (anna, bob, request) = (user("oAnna"), user("oBob"), RequestId::parse("r1").unwrap());
    let (store, app) = (&fixture.store, &fixture.app);
    let budget = Budget { api: Api::Template, day: 1 };
    let bounds = Bounds { app_rate: 1000, broadcast_rate: 900, daily_quota: 1000, broadcast_share: 900 };
    let bucket = store.bucket_of(&anna);
    for cancelled in [false, true] {
        fixture.collect(&anna, &[form_id("f1", 8), form_id("f2", 9)]).await;
        let draft = Draft { not_before_ms: Some(NOW_MS + 1), canary: Some(9), ..draft(false) };
        let request = (!cancelled).then_some((&request, [1; 16]));
        assert_eq!(store.create_broadcast(app, &draft, request).await.unwrap(), Created::New);
        let broadcast = Broadcast { everyone: false, ..Broadcast::again(fixture, draft.id.clone()) };
        let list = [&anna, &bob].map(|openid| Recipient { data: b"own".to_vec(), ..recipient(openid) });
        for recipient in list {
            broadcast.add_to(store.bucket_of(&recipient.openid), &[recipient], &[user("oCarol")]).await;
        }
        broadcast.snapshot(bucket).await;
        store.preview_all(app, bucket, &broadcast.choice, &TERMS).await.unwrap();
        broadcast.go(&Move::Start { everyone: false }).await;
        let start = Move::Start { everyone: false };
        assert_eq!(store.due_broadcasts(app, NOW_MS + 1).await.unwrap(), std::slice::from_ref(&draft.id));
        store.move_broadcast(app, &draft.id, &start, NOW_MS + 1).await.unwrap();
        broadcast.tasks("c1", Duration::from_secs(9), 9).await;
        store.count_messages(app, budget, 1).await.unwrap();
        store.set_quota(app, budget, 100, 1, 1).await.unwrap();
        store.may_ask_quota(app, budget.api, Duration::from_secs(9)).await.unwrap();
        let permits = Permits::default();
        let permit = broadcast.part(bucket).permit(&permits, 9, 10, &bounds, budget).await.unwrap();
        assert_eq!(permit.granted, 2);
        let owner = LeaseId::random();
        for openid in [&anna, &bob] {
            broadcast.take(store.bucket_of(openid), LeaseId::random(), 9, &BRIEF).await;
        }
        broadcast.take_over(bucket, owner, std::slice::from_ref(&anna)).await;
        broadcast.settle(&anna, owner, LeaseEnd::Hold, Next::Hold).await;
        assert!(broadcast.part(bucket).permits(2, true).await.unwrap().left == 0);
        let next_owner = LeaseId::random();
        let next = Next::Credential(next_owner, "CREDENTIALS_DEAD".into());
        broadcast.settle(&anna, owner, LeaseEnd::Discard, next).await;
        broadcast.deliver(&anna, next_owner, MsgId(7)).await;
        broadcast.fail_late(&anna, MsgId(7)).await;
        store.lengthen_streak(app, &draft.id).await.unwrap();
        let pause = Pause { reason: "QUOTA".into(), resume_ms: Some(NOW_MS + 2), ..Pause::default() };
        broadcast.go(&Move::Pause(pause)).await;
        if cancelled {
            broadcast.go(&Move::Cancel).await;
            store.erase(app, &anna).await.unwrap();
        }
        let mut state = None;
        for _ in 0..2 {
            for task in broadcast.tasks("c1", Duration::from_secs(9), 9).await {
                broadcast.part(task.bucket).close(true).await.unwrap();
                state = store.leave_task(app, &task, Left::Passed).await.unwrap();
            }
            for task in broadcast.tasks("c1", Duration::from_secs(9), 9).await {
                state = store.leave_task(app, &task, Left::Done).await.unwrap();
            }
            for task in broadcast.tasks("c2", Duration::ZERO, 9).await {
                broadcast.part(task.bucket).close(true).await.unwrap();
                state = store.leave_task(app, &task, Left::Done).await.unwrap();
            }
        }
        assert_eq!(state, Some(if cancelled { State::Cancelled } else { State::Done }));
        assert_eq!(broadcast.tally().await.ended("NO_CREDENTIAL"), 1);
    }
    fixture.assert_sound().await;
}

pub struct Broadcast<'a> {
    pub fixture: &'a Fixture,
    pub id: BroadcastId,
    pub choice: Choice,
    pub everyone: bool,
}

pub fn draft(everyone: bool) -> Draft {
    let id = BroadcastId::new(NOW_MS);
    Draft { id, spec: b"what is sent".to_vec(), everyone, not_before_ms: None, canary: None }
}

pub fn recipient(openid: &OpenId) -> Recipient {
    Recipient { openid: openid.clone(), data: Vec::new() }
}

pub fn end(ending: &str) -> Next {
    Next::End(ending.to_owned())
}

impl<'a> Broadcast<'a> {
    pub async fn new(fixture: &'a Fixture, everyone: bool) -> Self {
        Self::of(fixture, &draft(everyone)).await
    }

    pub async fn of(fixture: &'a Fixture, draft: &Draft) -> Self {
        assert_eq!(fixture.store.create_broadcast(&fixture.app, draft, None).await.unwrap(), Created::New);
        let choice = Choice { wanted: any_kind(), min_interval: 0 };
        Self { fixture, id: draft.id.clone(), choice, everyone: draft.everyone }
    }

    /// An existing broadcast to everyone.
    pub fn again(fixture: &'a Fixture, id: BroadcastId) -> Self {
        let choice = Choice { wanted: any_kind(), min_interval: 0 };
        Self { fixture, id, choice, everyone: true }
    }

    /// A running broadcast to a list of users.
    pub async fn to(fixture: &'a Fixture, users: &[OpenId]) -> Self {
        let broadcast = Self::new(fixture, false).await;
        broadcast.add(users, &[]).await;
        broadcast.start().await;
        broadcast
    }

    pub async fn record(&self) -> Record {
        self.fixture.store.broadcast(&self.fixture.app, &self.id).await.unwrap().unwrap()
    }

    pub async fn go(&self, to: &Move) -> Moved {
        self.fixture.store.move_broadcast(&self.fixture.app, &self.id, to, NOW_MS).await.unwrap()
    }

    pub async fn start(&self) {
        assert_eq!(self.go(&Move::Start { everyone: self.everyone }).await, Moved::To(State::Running));
    }

    pub fn part(&self, bucket: Bucket) -> Part<'_> {
        self.fixture.store.part(&self.fixture.app, &self.id, bucket)
    }

    /// Takes tasks that no replica has, and those of replicas that were silent for so long.
    pub async fn tasks(&self, consumer: &str, silence: Duration, count: usize) -> Vec<Task> {
        let take = TakeTasks { consumer, count, silence, most: count };
        self.fixture.store.take_tasks(&self.fixture.app, &self.id, &take).await.unwrap()
    }

    pub async fn add_to(&self, bucket: Bucket, recipients: &[Recipient], excluded: &[OpenId]) -> Added {
        self.part(bucket).add_recipients(recipients, excluded).await.unwrap()
    }

    /// Adds users of any bucket.
    pub async fn add(&self, users: &[OpenId], excluded: &[OpenId]) -> Added {
        let mut sum = Added::default();
        for bucket in self.fixture.store.buckets() {
            let of = |users: &[OpenId]| -> Vec<_> {
                users.iter().filter(|user| self.fixture.store.bucket_of(user) == bucket).cloned().collect()
            };
            let (users, excluded) = (of(users), of(excluded));
            if users.is_empty() && excluded.is_empty() {
                continue;
            }
            let users: Vec<_> = users.iter().map(recipient).collect();
            let added = self.add_to(bucket, &users, &excluded).await;
            sum.added += added.added;
            sum.excluded += added.excluded;
            sum.late |= added.late;
        }
        sum
    }

    pub async fn snapshot(&self, bucket: Bucket) -> bool {
        self.part(bucket).snapshot(&self.choice, &TERMS).await.unwrap()
    }

    /// Completes the snapshots of all buckets.
    pub async fn snapshot_all(&self) {
        for bucket in self.fixture.store.buckets() {
            while !self.snapshot(bucket).await {}
        }
    }

    pub async fn take(&self, bucket: Bucket, owner: LeaseId, count: usize, terms: &LeaseTerms) -> Page {
        self.part(bucket).take_page(owner, count, MANY, &self.choice, terms).await.unwrap()
    }

    /// Takes all users of all buckets for one owner.
    pub async fn take_all(&self, owner: LeaseId, terms: &LeaseTerms) -> Vec<Ready> {
        let mut ready = Vec::new();
        for bucket in self.fixture.store.buckets() {
            loop {
                let page = self.take(bucket, owner, 64, terms).await;
                ready.extend(page.ready);
                // The users that are left are locked and stay so.
                if page.taken == page.busy {
                    break;
                }
            }
        }
        ready
    }

    pub async fn take_over(&self, bucket: Bucket, owner: LeaseId, openids: &[OpenId]) -> TakenOver {
        self.part(bucket).take_over(owner, openids, &TERMS).await.unwrap()
    }

    pub async fn try_settle(
        &self,
        bucket: Bucket,
        settlements: &[Settlement],
        terms: &LeaseTerms,
    ) -> Result<Vec<(OpenId, Lease)>, Error> {
        self.part(bucket).settle(settlements, &self.choice, terms).await.map(|settled| settled.next)
    }

    /// Settles one message.
    pub async fn settle(&self, user: &OpenId, owner: LeaseId, verdict: LeaseEnd, next: Next) -> Option<Lease> {
        let settlement = Settlement { openid: user.clone(), owner, verdict, next, msgid: None };
        let mut leases = self.try_settle(self.fixture.store.bucket_of(user), &[settlement], &TERMS).await.unwrap();
        leases.pop().map(|(_, lease)| lease)
    }

    /// Settles one message as delivered with this msgid.
    pub async fn deliver(&self, user: &OpenId, owner: LeaseId, msgid: MsgId) {
        let (openid, msgid) = (user.clone(), Some(msgid));
        let settlement = Settlement { openid, owner, verdict: LeaseEnd::Consume, next: end(DELIVERED), msgid };
        self.try_settle(self.fixture.store.bucket_of(user), &[settlement], &TERMS).await.unwrap();
    }

    /// Reports a delivery failure, as WeChat does. False if it was reported before.
    pub async fn fail_late(&self, user: &OpenId, msgid: MsgId) -> bool {
        let failure = LateFailure { errcode: 43101, status: "user refuse".to_owned() };
        self.fixture.store.fail_late(&self.fixture.app, user, msgid, &failure).await.unwrap()
    }

    pub async fn tally(&self) -> Tally {
        self.fixture.store.tally(&self.fixture.app, &self.record().await).await.unwrap()
    }

    /// How many users are counted with this ending, in all buckets.
    pub async fn counts_of(&self, ending: &str) -> u64 {
        self.places().await.2.get(ending).copied().unwrap_or(0)
    }

    /// The complete list of undelivered messages, read in pages of `count`. Asserts that no page is empty or too long.
    pub async fn undelivered(&self, count: usize) -> Vec<Undelivered> {
        let (mut all, mut from, record) = (Vec::new(), None, self.record().await);
        loop {
            let asked = self.fixture.store.undelivered(&self.fixture.app, &record, from, count).await.unwrap();
            let (page, next) = asked;
            assert!(page.len() == count || next.is_none(), "{} of {count}", page.len());
            assert!(!page.is_empty() || all.is_empty(), "an empty page follows one that promised more");
            all.extend(page);
            from = next;
            if from.is_none() {
                return all;
            }
        }
    }

    pub fn keys_in(&self, bucket: Bucket) -> PartKeys {
        BucketKeys::new(&self.fixture.app, bucket).broadcast(&self.id)
    }

    /// The waiting users, the users in flight, and the counts, of all buckets.
    pub async fn places(&self) -> (BTreeSet<String>, BTreeSet<String>, BTreeMap<String, u64>) {
        let mut pipe = redis::pipe();
        for part in self.fixture.store.buckets().map(|bucket| self.keys_in(bucket)) {
            pipe.cmd("SMEMBERS").arg(part.todo()).cmd("SMEMBERS").arg(part.flight()).cmd("HGETALL").arg(part.tally());
        }
        let read: Vec<Vec<String>> = self.fixture.all(&pipe).await;
        let (mut todo, mut flight, mut counts) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        for part in read.chunks_exact(3) {
            todo.extend(part[0].iter().cloned());
            flight.extend(part[1].iter().cloned());
            for field in part[2].chunks_exact(2) {
                if !["seen", "cursor", "begun"].contains(&field[0].as_str()) {
                    *counts.entry(field[0].clone()).or_default() += field[1].parse::<u64>().unwrap();
                }
            }
        }
        (todo, flight, counts)
    }
}
