//! Random sequences of calls for two broadcasts, one to everyone and one to a list, that share users with each other and
//! with single messages; held against the model. After every step everyone is in one place, the tally adds up, and no
//! credential and no message is held twice.

mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deadpool_redis::redis;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use shared::credential::{Credential, CredentialId, Kind, OpenId};
use shared::store::broadcast::audience::{Added, Choice, Recipient};
use shared::store::broadcast::pages::{Next, Settlement};
use shared::store::broadcast::records::{Record, State};
use shared::store::keys::Bucket;
use shared::store::leases::{LeaseId, LeaseTerms, Leased, Settled, Verdict};

use crate::broadcast::Broadcast;
use crate::model::{self, Held, Message, Model, Step};
use crate::world::{BRIEF, HOUR, TERMS, World, any_kind, timeless, user};

/// More users than buckets, so that some share one.
const USERS: [&str; 8] = ["oA", "oAB", "oB", "oC", "oD", "oE", "oF", "oG"];

const VERDICTS: [Verdict; 5] = [Verdict::Consume, Verdict::Return, Verdict::Suspect, Verdict::Discard, Verdict::Hold];

/// In all, less than any key of a broadcast is kept.
const MOST_HOURS: i64 = 28 * 24;

#[derive(Debug, Clone)]
enum Op {
    /// User, an old credential or a fresh one with so many uses (0: a form id), hours until it expires.
    Collect(usize, Option<Index>, u8, i64),
    /// Users to add to the list with their data, users to exclude; whether for the broadcast to everyone.
    Add(Vec<(usize, u8)>, Vec<usize>, bool),
    /// Broadcast, bucket of this user, how many; whether to skip who got a message lately, and whether the lease is long.
    Page(usize, usize, usize, bool, bool),
    /// Messages that were taken so far, whatever has become of them; verdict and what is next.
    Settle(Vec<(Option<Index>, usize, usize)>),
    /// Broadcast, bucket of this user, whether the lease is long.
    TakeOver(usize, usize, bool),
    /// A single message to a user, settled so if at all.
    Single(usize, Option<usize>),
    Erase(usize),
    Reap,
    /// Nobody comes back to what is in flight for as long as it is kept.
    LetGo,
    Hours(i64),
}

/// What a sequence begins with, so that there is somebody to send to.
fn beginning() -> impl Strategy<Value = Vec<Op>> {
    let collect =
        (0..USERS.len(), 0..3_u8, 1..30_i64).prop_map(|(user, uses, hours)| Op::Collect(user, None, uses, hours));
    let add = vec((0..USERS.len(), 0..3_u8), 4..12).prop_map(|users| Op::Add(users, vec![], false));
    (vec(collect, 8..20), add).prop_map(|(mut ops, add)| {
        ops.push(add);
        ops
    })
}

fn op() -> impl Strategy<Value = Op> {
    // Most happens to the first users, so that a sequence gets somewhere.
    let user = || prop_oneof![1 => 0..2_usize, 3 => 0..USERS.len()];
    let message = (prop::option::weighted(0.4, any::<Index>()), 0..VERDICTS.len(), 0..4_usize);
    prop_oneof![
        8 => (user(), prop::option::weighted(0.1, any::<Index>()), 0..3_u8, -1..30_i64)
            .prop_map(|(user, old, uses, hours)| Op::Collect(user, old, uses, hours)),
        5 => (vec((0..USERS.len(), 0..3_u8), 0..8), prop_oneof![3 => Just(vec![]), 1 => vec(0..USERS.len(), 1..2)],
            prop::bool::weighted(0.2)).prop_map(|(users, excluded, everyone)| Op::Add(users, excluded, everyone)),
        9 => (0..2_usize, user(), 1..4_usize, prop::bool::weighted(0.3), any::<bool>())
            .prop_map(|(broadcast, user, count, skip, long)| Op::Page(broadcast, user, count, skip, long)),
        9 => vec(message, 1..4).prop_map(Op::Settle),
        4 => (0..2_usize, user(), any::<bool>())
            .prop_map(|(broadcast, user, long)| Op::TakeOver(broadcast, user, long)),
        2 => (user(), prop::option::of(0..4_usize)).prop_map(|(user, verdict)| Op::Single(user, verdict)),
        1 => (0..USERS.len()).prop_map(Op::Erase),
        1 => Just(Op::Reap),
        1 => Just(Op::LetGo),
        4 => prop_oneof![8 => 1..4_i64, 1 => Just(24), 1 => Just(168)].prop_map(Op::Hours),
    ]
}

struct Run<'a> {
    world: &'a World,
    users: Vec<OpenId>,
    model: Model,
    real: [Broadcast<'a>; 2],
    models: [model::Broadcast; 2],
    /// As if they were running.
    records: [Record; 2],
    /// Buckets of each broadcast that are through with the snapshot, and where sending began.
    seen: [BTreeSet<Bucket>; 2],
    begun: [BTreeSet<Bucket>; 2],
    /// Every message that was taken: broadcast, user, owner.
    taken: Vec<(usize, usize, LeaseId)>,
    /// The credential of each message that is being sent or in doubt, as far as callers know.
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
        self.world.store.bucket_of(&self.users[user])
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
            }
            Op::Settle(messages) => self.settle(messages, again).await,
            Op::TakeOver(broadcast, user, long) => {
                self.take_over(*broadcast, self.bucket_of(*user), if *long { &TERMS } else { &BRIEF }).await;
            }
            Op::Single(user, verdict) => self.single(*user, *verdict).await,
            Op::Erase(user) => {
                for _ in 0..times {
                    let erased = self.world.store.erase(&self.world.app, &self.users[*user]).await.unwrap();
                    assert_eq!(erased, self.model.erase(*user));
                    for (number, broadcast) in self.models.iter_mut().enumerate() {
                        broadcast.forget(*user);
                        self.doubt.remove(&(number, *user));
                    }
                }
            }
            Op::Reap => {
                for _ in 0..times {
                    assert_eq!(self.world.reap(&TERMS).await, self.model.reap(&TERMS));
                }
            }
            Op::LetGo => {
                for _ in 0..2 {
                    self.pass(4).await;
                    assert_eq!(self.world.reap(&TERMS).await, self.model.reap(&TERMS));
                }
            }
            Op::Hours(hours) => self.pass(*hours).await,
        }
    }

    async fn pass(&mut self, hours: i64) {
        if self.hours + hours < MOST_HOURS {
            self.hours += hours;
            self.world.advance(hours).await;
            self.model.advance(hours * HOUR);
        }
    }

    async fn collect(&mut self, user: usize, old: Option<Index>, uses: u8, hours: i64) {
        let fresh = Held {
            kind: if uses == 0 { Kind::FormId } else { Kind::PrepayId },
            id: format!("c{}", self.collected.len()),
            uses: uses.max(1),
            expiry: self.model.now + hours * HOUR + HOUR / 2,
            suspect: false,
        };
        let (user, held) = match old {
            Some(old) if !self.collected.is_empty() => old.get(&self.collected).clone(),
            _ => (user, fresh),
        };
        self.collected.push((user, held.clone()));
        let (id, expiry) = (CredentialId::parse(held.id.as_str()).unwrap(), self.model.in_redis(held.expiry));
        let credential = Credential { kind: held.kind, id, uses: held.uses, expiry };
        let duplicates = self.world.collect(&self.users[user], &[credential]).await;
        assert_eq!(duplicates, self.model.collect(&[(user, held)]));
    }

    async fn add(&mut self, users: &[(usize, u8)], excluded: &[usize], everyone: bool) {
        let number = usize::from(!everyone);
        for bucket in self.world.store.buckets() {
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
        // Between whole hours, as all times here.
        let interval = if skip { 5400 } else { 0 };
        self.real[number].choice = Choice { kinds: any_kind(), min_interval: interval };
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
        assert_eq!((gone.len(), page.taken), (before.min(count), before.min(count)));
        let mut wanted = BTreeMap::new();
        for user in gone {
            assert_eq!(self.bucket_of(user), bucket);
            let broadcast = &mut self.models[number];
            if let Step::Lease(lease) = self.model.turn(broadcast, user, owner, interval, terms) {
                wanted.insert(user, (lease, broadcast.data.get(&user).cloned().unwrap_or_default()));
            }
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
            assert_eq!(earlier, None, "a second credential, while the first is in doubt");
        }
    }

    async fn settle(&mut self, messages: &[(Option<Index>, usize, usize)], again: bool) {
        let Some(last) = self.taken.last().copied() else { return };
        let mut page: Vec<(usize, usize, Message)> = Vec::new();
        for (which, verdict, next) in messages {
            let (number, user, owner) = which.map_or(last, |which| *which.get(&self.taken));
            let verdict = VERDICTS[*verdict];
            let next = match next {
                0 => Next::End(if verdict == Verdict::Consume { "delivered" } else { "FAILED 1" }.to_owned()),
                1 => Next::Again,
                2 => Next::Hold,
                _ => Next::Credential(self.fresh_id(), "CREDENTIALS_DEAD 41028".to_owned()),
            };
            page.push((number, user, Message { user, owner, verdict, next }));
        }
        // Those of one call are of one broadcast and bucket.
        let (number, bucket) = (page[0].0, self.bucket_of(page[0].1));
        page.retain(|(other, user, _)| *other == number && self.bucket_of(*user) == bucket);
        let messages: Vec<_> = page.into_iter().map(|(.., message)| message).collect();
        let settlements: Vec<_> = messages
            .iter()
            .map(|Message { user, owner, verdict, next }| {
                let (openid, next) = (self.users[*user].clone(), next.clone());
                Settlement { openid, owner: *owner, verdict: *verdict, next }
            })
            .collect();
        let settle = async |run: &Self| run.real[number].try_settle(bucket, &settlements, &TERMS).await;
        if messages.iter().any(|message| message.verdict == Verdict::Hold && message.next != Next::Hold) {
            let before = self.world.everything().await;
            assert!(settle(self).await.is_err(), "what is held stays in flight");
            assert_eq!(self.world.everything().await, before);
            return;
        }
        let reply = settle(self).await.unwrap();
        if again {
            let before = self.world.everything().await;
            assert_eq!(settle(self).await.unwrap().len(), reply.len());
            // A hold is until so long after it was last said.
            if messages.iter().all(|message| message.next != Next::Hold) {
                assert_eq!(self.world.everything().await, before, "repeated");
            }
        }
        let (mut wanted, mut settled) = (Vec::new(), BTreeSet::new());
        for message in &messages {
            // A user who comes a second time in one call is passed over.
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

    async fn take_over(&mut self, number: usize, bucket: Bucket, terms: &LeaseTerms) {
        let (store, app, owner) = (&self.world.store, &self.world.app, LeaseId::random());
        let id = &self.real[number].id;
        let flying = store.in_flight(app, id, bucket).await.unwrap();
        let here: Vec<_> = (0..self.users.len()).filter(|user| self.bucket_of(*user) == bucket).collect();
        let wanted: BTreeSet<_> =
            here.iter().copied().filter(|user| self.models[number].flight.contains(user)).collect();
        assert_eq!(flying.iter().map(number_of).collect::<BTreeSet<_>>(), wanted);
        // Asking for those who are not in flight does nothing to them.
        let all: Vec<_> = here.iter().map(|user| self.users[*user].clone()).collect();
        let over = store.take_over(app, id, bucket, owner, &all, terms).await.unwrap();
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
                Step::None => {}
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

    async fn single(&mut self, user: usize, verdict: Option<usize>) {
        let (id, store, app, openid) = (self.fresh_id(), &self.world.store, &self.world.app, &self.users[user]);
        let reply = store.lease(app, openid, id, &TERMS, any_kind(), None).await.unwrap();
        let wanted = self.model.lease(user, id, &TERMS, &Kind::ALL, None);
        let (Leased::Lease(lease), Some(verdict)) = (&reply, verdict) else {
            assert_eq!(matches!(reply, Leased::None), matches!(wanted, Leased::None));
            return;
        };
        assert_eq!(Leased::Lease(timeless(lease.clone())), wanted);
        let reply = store.settle(app, openid, id, &TERMS, VERDICTS[verdict], None, None, None).await.unwrap();
        let wanted: Settled = self.model.settle(user, id, &TERMS, VERDICTS[verdict], b"", None, None);
        assert_eq!(reply, wanted);
    }
}

#[test]
fn broadcasts_do_what_the_model_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::with_cap(4));
    let config = ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(start in beginning(), ops in vec((op(), prop::bool::weighted(0.3)), 20..60))| {
        runtime.block_on(async {
            world.raw::<()>(&redis::cmd("FLUSHALL")).await;
            let real = [Broadcast::new(&world, true).await, Broadcast::new(&world, false).await];
            let mut records = [real[0].record().await, real[1].record().await];
            records.iter_mut().for_each(|record| (record.state, record.started_ms) = (State::Running, Some(1)));
            let mut run = Run {
                world: &world,
                users: USERS.map(user).into(),
                model: Model::new(4, USERS.len(), testing::now()),
                real,
                records,
                models: [0, 1].map(model::Broadcast::new),
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
