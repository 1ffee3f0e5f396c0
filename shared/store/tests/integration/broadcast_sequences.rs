//! Random sequences of calls for two broadcasts, one to everyone and one to a list, which share users with each other
//! and with single messages. They are compared with the model. After every step each user is in exactly one state, the
//! tally adds up, and no credential and no message has two leases.

mod check;
mod messages;

use std::collections::{BTreeMap, BTreeSet};

use deadpool_redis::redis;
use domain::{Credential, CredentialId, GrantUses, Kind, OpenId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use store::broadcast::audience::{Added, Choice, Recipient};
use store::broadcast::records::{Record, State};
use store::eligibility::Eligibility;
use store::keys::Bucket;
use store::leases::{LeaseEnd, LeaseId, LeaseTerms};

use crate::broadcast::Broadcast;
use crate::fixture::{BRIEF, Fixture, HOUR, TERMS, any_kind, cases, template, timeless, user};
use crate::model::{self, Grant, Held, Item, Model, Step};

/// More users than buckets, so that some share one.
const USERS: [&str; 8] = ["oA", "oAB", "oB", "oC", "oD", "oE", "oF", "oG"];

const VERDICTS: [LeaseEnd; 11] = [
    LeaseEnd::Consume,
    LeaseEnd::Return,
    LeaseEnd::Suspect,
    LeaseEnd::Discard,
    LeaseEnd::Hold,
    LeaseEnd::Unknown,
    LeaseEnd::Void,
    LeaseEnd::UnknownDiscard,
    LeaseEnd::UnknownVoid,
    LeaseEnd::Rest(5400),
    LeaseEnd::Rest(5400),
];

/// The most time that passes in a sequence: less than any key of a broadcast is kept.
const MOST_HOURS: i64 = 28 * 24;

#[derive(Debug, Clone)]
enum Op {
    /// User; an old credential, or a new one with so many uses (0: a form id); hours until it expires.
    Collect(usize, Option<Index>, u8, i64),
    /// User, template, uses (none: a long-term subscription).
    Grant(usize, &'static str, Option<u16>),
    /// Users to add to the list with their data, users to exclude; whether this is the broadcast to everyone.
    Add(Vec<(usize, u8)>, Vec<usize>, bool),
    /// Broadcast, bucket of this user, page size; whether to skip recently messaged users, whether the lease is long.
    Page(usize, usize, usize, bool, bool),
    /// Messages that were taken so far, in any state; how the lease ends, and what is next.
    Settle(Vec<(Option<Index>, usize, usize)>),
    /// Broadcast, bucket of this user, whether the lease is long.
    TakeOver(usize, usize, bool),
    /// A single message to a user; how it is settled, if at all; whether with a grant.
    Single(usize, Option<usize>, bool),
    /// WeChat reports a delivery failure of a message that was taken so far.
    FailLater(Option<Index>),
    Erase(usize),
    Reap,
    /// No owner settles the messages in flight until the reaper releases them.
    LetGo,
    Hours(i64),
}

/// The first steps of a sequence, so that there are users to send to.
fn beginning() -> impl Strategy<Value = Vec<Op>> {
    let collect =
        (0..USERS.len(), 0..3_u8, 1..30_i64).prop_map(|(user, uses, hours)| Op::Collect(user, None, uses, hours));
    let grant = (0..USERS.len(), prop_oneof![3 => (1..3_u16).prop_map(Some), 1 => Just(None)])
        .prop_map(|(user, uses)| Op::Grant(user, "t1", uses));
    let add = vec((0..USERS.len(), 0..3_u8), 4..12).prop_map(|users| Op::Add(users, vec![], false));
    (vec(prop_oneof![collect, grant], 8..20), add).prop_map(|(mut ops, add)| {
        ops.push(add);
        ops
    })
}

fn op() -> impl Strategy<Value = Op> {
    // Most steps use the first users, so that steps affect each other.
    let user = || prop_oneof![1 => 0..2_usize, 3 => 0..USERS.len()];
    let message = (prop::option::weighted(0.4, any::<Index>()), 0..VERDICTS.len(), 0..4_usize);
    prop_oneof![
        8 => (user(), prop::option::weighted(0.1, any::<Index>()), 0..3_u8, -1..30_i64)
            .prop_map(|(user, old, uses, hours)| Op::Collect(user, old, uses, hours)),
        6 => (user(), prop_oneof![4 => Just("t1"), 1 => Just("t2")],
            prop_oneof![5 => (1..3_u16).prop_map(Some), 1 => (30..80_u16).prop_map(Some), 2 => Just(None)])
            .prop_map(|(user, of, uses)| Op::Grant(user, of, uses)),
        5 => (vec((0..USERS.len(), 0..3_u8), 0..8), prop_oneof![3 => Just(vec![]), 1 => vec(0..USERS.len(), 1..2)],
            prop::bool::weighted(0.2)).prop_map(|(users, excluded, everyone)| Op::Add(users, excluded, everyone)),
        9 => (0..2_usize, user(), 1..4_usize, prop::bool::weighted(0.3), any::<bool>())
            .prop_map(|(broadcast, user, count, skip, long)| Op::Page(broadcast, user, count, skip, long)),
        9 => vec(message, 1..4).prop_map(Op::Settle),
        4 => (0..2_usize, user(), any::<bool>())
            .prop_map(|(broadcast, user, long)| Op::TakeOver(broadcast, user, long)),
        3 => (user(), prop::option::of(prop_oneof![0..4_usize, 5..9_usize]), any::<bool>())
            .prop_map(|(user, verdict, granted)| Op::Single(user, verdict, granted)),
        3 => prop::option::weighted(0.5, any::<Index>()).prop_map(Op::FailLater),
        1 => (0..USERS.len()).prop_map(Op::Erase),
        1 => Just(Op::Reap),
        1 => Just(Op::LetGo),
        4 => prop_oneof![8 => 1..4_i64, 1 => Just(24), 1 => Just(168)].prop_map(Op::Hours),
    ]
}

struct Run<'a> {
    fixture: &'a Fixture,
    users: Vec<OpenId>,
    model: Model,
    real: [Broadcast<'a>; 2],
    models: [model::Broadcast; 2],
    /// The records as if both broadcasts were running.
    records: [Record; 2],
    /// Buckets of each broadcast whose snapshot is complete, and buckets where sending has begun.
    seen: [BTreeSet<Bucket>; 2],
    begun: [BTreeSet<Bucket>; 2],
    /// Every message that was taken: broadcast, user, owner.
    taken: Vec<(usize, usize, LeaseId)>,
    /// The credential of each message that is in flight or whose outcome is unknown, as far as callers know.
    doubt: BTreeMap<(usize, usize), CredentialId>,
    collected: Vec<(usize, Held)>,
    hours: i64,
    ids: u32,
}

fn number_of(openid: &OpenId) -> usize {
    USERS.iter().position(|user| *user == openid.as_str()).unwrap()
}

impl Run<'_> {
    fn fresh_id(&mut self) -> LeaseId {
        self.ids += 1;
        LeaseId([[7; 12].as_slice(), &self.ids.to_be_bytes()].concat().try_into().unwrap())
    }

    fn bucket_of(&self, user: usize) -> Bucket {
        self.fixture.store.bucket_of(&self.users[user])
    }

    async fn step(&mut self, op: &Op, again: bool) {
        let times = if again { 2 } else { 1 };
        match op {
            Op::Collect(user, old, uses, hours) => self.collect(*user, *old, *uses, *hours).await,
            Op::Add(users, excluded, everyone) => {
                for _ in 0..times {
                    self.add(users, excluded, *everyone).await;
                }
            }
            Op::Page(broadcast, user, count, skip, long) => {
                self.page(*broadcast, self.bucket_of(*user), *count, *skip, if *long { &TERMS } else { &BRIEF }).await;
                self.let_marks_go(*long).await;
            }
            Op::Settle(messages) => self.settle(messages, again).await,
            Op::TakeOver(broadcast, user, long) => {
                self.take_over(*broadcast, self.bucket_of(*user), if *long { &TERMS } else { &BRIEF }).await;
                self.let_marks_go(*long).await;
            }
            Op::Single(user, verdict, granted) => self.single(*user, *verdict, *granted).await,
            Op::FailLater(which) => {
                for _ in 0..times {
                    self.fail_late(*which).await;
                }
            }
            Op::Grant(user, of, uses) => self.grant(*user, of, *uses).await,
            Op::Erase(user) => {
                for _ in 0..times {
                    let erased = self.fixture.store.erase(&self.fixture.app, &self.users[*user]).await.unwrap();
                    assert_eq!(erased, self.model.erase(*user));
                    for (number, broadcast) in self.models.iter_mut().enumerate() {
                        broadcast.forget(*user);
                        self.doubt.remove(&(number, *user));
                    }
                }
            }
            Op::Reap => {
                for _ in 0..times {
                    assert_eq!(self.fixture.reap(&TERMS).await, self.model.reap(&TERMS));
                }
            }
            Op::LetGo => {
                for _ in 0..2 {
                    self.pass(4).await;
                    assert_eq!(self.fixture.reap(&TERMS).await, self.model.reap(&TERMS));
                }
            }
            Op::Hours(hours) => self.pass(*hours).await,
        }
    }

    async fn pass(&mut self, hours: i64) {
        if self.hours + hours < MOST_HOURS {
            self.hours += hours;
            self.fixture.advance(hours).await;
            self.model.advance(hours * HOUR);
            // Msgids are kept for an hour.
            self.models.iter_mut().for_each(|broadcast| broadcast.sent.clear());
        }
    }

    /// Lets the send lock of a brief lease expire. Locks are kept in whole seconds, so this takes up to a second.
    async fn let_marks_go(&mut self, long: bool) {
        if !long {
            self.fixture.pass(2).await;
            self.model.advance(2);
        }
    }

    async fn grant(&mut self, user: usize, of: &str, uses: Option<u16>) {
        let uses = uses.map_or(GrantUses::LongTerm, GrantUses::Count);
        let new = self.fixture.grant(&self.users[user], of, uses, None).await;
        let grant = Grant { template: of.to_owned(), uses, key: None };
        assert_eq!(new, self.model.collect(&[(user, Item::Grant(grant))]).is_empty());
    }

    async fn collect(&mut self, user: usize, old: Option<Index>, uses: u8, hours: i64) {
        let fresh = Held {
            kind: if uses == 0 { Kind::FormId } else { Kind::PrepayId },
            id: format!("c{}", self.collected.len()),
            slot: 0,
            uses: uses.max(1),
            expiry: self.model.now + hours * HOUR + HOUR / 2,
            suspect: false,
            rest: None,
        };
        let (user, held) = match old {
            Some(old) if !self.collected.is_empty() => old.get(&self.collected).clone(),
            _ => (user, fresh),
        };
        self.collected.push((user, held.clone()));
        let (id, expiry) = (CredentialId::parse(held.id.as_str()).unwrap(), self.model.in_redis(held.expiry));
        let credential = Credential { kind: held.kind, id, uses: held.uses, expiry };
        let duplicates = self.fixture.collect(&self.users[user], &[credential]).await;
        assert_eq!(duplicates, self.model.collect(&[(user, Item::Id(held))]));
    }

    async fn add(&mut self, users: &[(usize, u8)], excluded: &[usize], everyone: bool) {
        let number = usize::from(!everyone);
        for bucket in self.fixture.store.buckets() {
            let here = |user: &usize| self.bucket_of(*user) == bucket;
            let excluded: Vec<_> = excluded.iter().copied().filter(here).collect();
            let users: Vec<_> = users.iter().filter(|(user, _)| here(user) && !everyone).collect();
            if users.is_empty() && excluded.is_empty() {
                continue;
            }
            let users: Vec<_> = users.iter().map(|(user, data)| (*user, vec![*data; usize::from(*data)])).collect();
            let recipients: Vec<_> = users
                .iter()
                .map(|(user, data)| Recipient { openid: self.users[*user].clone(), data: data.clone() })
                .collect();
            let out: Vec<_> = excluded.iter().map(|user| self.users[*user].clone()).collect();
            let added = self.real[number].add_to(bucket, &recipients, &out).await;
            if self.begun[number].contains(&bucket) {
                assert_eq!(added, Added { late: true, ..Added::default() });
            } else {
                let (wanted, left_out) = self.models[number].add(&users, &excluded);
                assert_eq!(added, Added { added: wanted, excluded: left_out, late: false });
            }
        }
    }

    async fn page(&mut self, number: usize, bucket: Bucket, count: usize, skip: bool, terms: &LeaseTerms) {
        // 75 minutes: messages are sent at whole hours and deadlines are at half hours, so no time is exactly on the
        // bound.
        let interval = if skip { 4500 } else { 0 };
        let wanted = self.models[number].wanted.clone();
        self.real[number].choice = Choice { wanted, min_interval: interval };
        if number == 0 && self.seen[0].insert(bucket) {
            while !self.real[0].snapshot(bucket).await {}
            let here: Vec<_> = (0..self.users.len()).filter(|user| self.bucket_of(*user) == bucket).collect();
            self.model.snapshot(&mut self.models[0], here.into_iter(), terms);
        }
        let owner = self.fresh_id();
        let page = self.real[number].take(bucket, owner, count, terms).await;
        self.begun[number].insert(bucket);
        let (left, ..) = self.real[number].places().await;
        let gone: Vec<_> =
            self.models[number].todo.iter().copied().filter(|user| !left.contains(USERS[*user])).collect();
        let before = self.models[number].todo.iter().filter(|user| self.bucket_of(**user) == bucket).count();
        assert_eq!((gone.len() + page.busy, page.taken), (before.min(count), before.min(count)));
        let mut wanted = BTreeMap::new();
        for user in gone {
            assert_eq!(self.bucket_of(user), bucket);
            let broadcast = &mut self.models[number];
            match self.model.turn(broadcast, user, owner, interval, terms) {
                Step::Lease(lease) => {
                    wanted.insert(user, (lease, broadcast.data.get(&user).cloned().unwrap_or_default()));
                }
                step => assert_eq!(step, Step::None),
            }
        }
        let here = |user: &usize| self.bucket_of(*user) == bucket;
        let left: Vec<_> = self.models[number].todo.iter().copied().filter(here).collect();
        let turn = |user| self.model.turn(&mut self.models[number], user, owner, interval, terms);
        if page.taken == before {
            assert!(left.into_iter().map(turn).all(|step| step == Step::Busy));
        } else {
            assert!(page.busy <= left.len());
        }
        let ready: BTreeMap<_, _> = page
            .ready
            .into_iter()
            .map(|ready| (number_of(&ready.openid), (timeless(ready.lease), ready.data)))
            .collect();
        assert_eq!(ready, wanted);
        for (user, (lease, _)) in ready {
            self.taken.push((number, user, owner));
            let earlier = self.doubt.insert((number, user), lease.credential);
            assert_eq!(earlier, None, "a second credential while the outcome of the first is unknown");
        }
    }
}

#[test]
fn broadcasts_behave_like_the_model() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = runtime.block_on(Fixture::with_cap(4));
    let config = cases(12, 150);
    let wanted =
        [any_kind(), Eligibility::grants(template("t1")), Eligibility { template: Some(template("t1")), ..any_kind() }];
    let wanted = prop::array::uniform2(prop::sample::select(wanted.to_vec()));
    proptest!(config, |(wanted in wanted, start in beginning(), ops in vec((op(), prop::bool::weighted(0.3)), 20..60))| {
        runtime.block_on(async {
            fixture.raw::<()>(&redis::cmd("FLUSHALL")).await;
            let real = [Broadcast::new(&fixture, true).await, Broadcast::new(&fixture, false).await];
            let mut records = [real[0].record().await, real[1].record().await];
            records.iter_mut().for_each(|record| (record.state, record.started_ms) = (State::Running, Some(1)));
            let mut run = Run {
                fixture: &fixture,
                users: USERS.map(user).into(),
                model: Model::new(4, USERS.len(), testing::now()),
                real,
                records,
                models: [0, 1].map(|number| model::Broadcast::new(number, wanted[number].clone())),
                seen: Default::default(),
                begun: Default::default(),
                taken: Vec::new(),
                doubt: BTreeMap::new(),
                collected: Vec::new(),
                hours: 0,
                ids: 0,
            };
            for op in &start {
                run.step(op, false).await;
            }
            for (op, again) in &ops {
                run.step(op, *again).await;
                run.check().await;
            }
            run.check_answers().await;
        });
    });
}
