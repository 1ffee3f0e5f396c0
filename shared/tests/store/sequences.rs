//! Random sequences of calls against the model: every reply, and after every step every record, every touch, and the
//! whole ledger.

use std::collections::BTreeMap;
use std::time::Duration;

use deadpool_redis::redis;
use futures_util::future::{try_join, try_join_all};
use proptest::collection::vec;
use proptest::prelude::*;
use shared::credential::{Credential, CredentialId, Kind, OpenId};
use shared::store::Store;
use shared::store::credentials::Packed;
use shared::store::leases::{LeaseId, LeaseTerms, Leased, Request, Settled, Verdict};
use shared::store::record::KEEP_TOUCH;

use crate::model::{Held, Model};
use crate::world::{HOUR, TERMS, World, request, store, timeless, user};

/// More users than buckets, so that some share one.
const USERS: [&str; 5] = ["oA", "oB", "oC", "oD", "oE"];

/// Ids that hide in one another: `a` is stored as the bytes 61 00, which `6100` and `ff6100ff` contain.
const IDS: [(&str, Kind); 10] = [
    ("a", Kind::FormId),
    ("6100", Kind::FormId),
    ("ff6100ff", Kind::FormId),
    ("00", Kind::FormId),
    ("1519876543210", Kind::FormId),
    ("0123456789abcdef0123456789abcdef", Kind::FormId),
    ("0123456789ABCDEF0123456789ABCDEF", Kind::FormId),
    ("wx201410272009395522657a690389285100", Kind::PrepayId),
    ("p", Kind::PrepayId),
    ("7000", Kind::PrepayId),
];

const KINDS: [&[Kind]; 3] = [&Kind::ALL, &[Kind::FormId], &[Kind::PrepayId]];
const VERDICTS: [Verdict; 5] = [Verdict::Consume, Verdict::Return, Verdict::Suspect, Verdict::Discard, Verdict::Hold];
const OUTCOMES: [&[u8]; 2] = [b"", b"delivered"];

/// One of those asked for so far; none: the last.
type Which = Option<prop::sample::Index>;

#[derive(Debug, Clone)]
enum Op {
    /// User, id, uses of a prepay id, hours until it expires.
    Collect(Vec<(usize, usize, u8, i64)>),
    /// User, kinds, request id and message, whether the lease is a long one.
    Lease(usize, usize, Option<(u8, u8)>, bool),
    /// A lease that was asked for before, asked for again under the same id.
    LeaseAgain(Which),
    /// A lease that was asked for before, whatever has become of it; verdict, outcome, kinds of the next one.
    Settle(Which, usize, usize, Option<usize>),
    /// User, request id and message.
    Recorded(usize, (u8, u8)),
    Erase(usize),
    Reap,
    Sweep,
    Hours(i64),
}

fn op() -> impl Strategy<Value = Op> {
    // Most happens to the first user, so that a sequence gets somewhere.
    let user = || prop_oneof![3 => Just(0_usize), 1 => 1..USERS.len()];
    let uses = prop_oneof![1..4_u8, Just(31)];
    let credential = (user(), 0..IDS.len(), uses, -1..8_i64);
    let request = || (0..3_u8, prop_oneof![8 => Just(0_u8), 1 => Just(1)]);
    let kinds = || prop_oneof![3 => Just(0_usize), 1 => 1..KINDS.len()];
    let which = || prop::option::of(any::<prop::sample::Index>());
    prop_oneof![
        6 => vec(credential, 1..8).prop_map(Op::Collect),
        8 => (user(), kinds(), prop::option::of(request()), any::<bool>())
            .prop_map(|(user, kinds, request, long)| Op::Lease(user, kinds, request, long)),
        2 => which().prop_map(Op::LeaseAgain),
        9 => (which(), 0..VERDICTS.len(), 0..OUTCOMES.len(), prop::option::of(kinds()))
            .prop_map(|(lease, verdict, outcome, next)| Op::Settle(lease, verdict, outcome, next)),
        3 => (user(), request()).prop_map(|(user, request)| Op::Recorded(user, request)),
        2 => user().prop_map(Op::Erase),
        3 => Just(Op::Reap),
        1 => Just(Op::Sweep),
        // A day: what is left of a request whose user was erased goes. A week: the time of the last message is forgotten.
        5 => prop_oneof![12 => 1..4_i64, 2 => Just(24), 1 => 167..169_i64].prop_map(Op::Hours),
    ]
}

/// What a lease was asked for with.
#[derive(Clone)]
struct Asked {
    id: LeaseId,
    user: usize,
    kinds: usize,
    terms: LeaseTerms,
    request: Option<Request>,
}

struct Run<'a> {
    world: &'a World,
    store: &'a Store,
    users: Vec<OpenId>,
    model: Model,
    asked: Vec<Asked>,
    ids: u8,
}

impl Run<'_> {
    fn fresh_id(&mut self) -> LeaseId {
        self.ids += 1;
        LeaseId([self.ids; 16])
    }

    fn asked(&self, which: Which) -> Option<Asked> {
        let last = self.asked.last()?;
        Some(which.map_or(last, |which| which.get(&self.asked)).clone())
    }

    async fn step(&mut self, op: &Op, again: bool) {
        let times = if again { 2 } else { 1 };
        match op {
            Op::Collect(credentials) => {
                for _ in 0..times {
                    self.collect(credentials).await;
                }
            }
            Op::Lease(user, kinds, wanted, long) => {
                let terms = LeaseTerms {
                    duration: TERMS.duration * if *long { 5 } else { 1 },
                    // What expires within the half hour is too old.
                    margin: TERMS.margin * 4,
                    ..TERMS
                };
                let request = wanted.map(|(name, message)| request(&format!("r{name}"), message));
                let asked = Asked { id: self.fresh_id(), user: *user, kinds: *kinds, terms, request };
                self.asked.push(asked.clone());
                for _ in 0..times {
                    self.lease(&asked).await;
                }
            }
            Op::LeaseAgain(which) => {
                if let Some(asked) = self.asked(*which) {
                    self.lease(&asked).await;
                }
            }
            Op::Settle(which, verdict, outcome, next) => {
                let Some(asked) = self.asked(*which) else { return };
                let verdict = VERDICTS[*verdict];
                if verdict == Verdict::Hold && asked.request.is_none() {
                    return;
                }
                let next = next.map(|kinds| Asked { id: self.fresh_id(), kinds, ..asked.clone() });
                self.asked.extend(next.clone());
                for _ in 0..times {
                    self.settle(&asked, verdict, OUTCOMES[*outcome], next.as_ref()).await;
                }
            }
            Op::Recorded(user, (name, message)) => {
                let request = request(&format!("r{name}"), *message);
                let recorded = self.store.recorded(&self.world.app, &self.users[*user], &request).await.unwrap();
                assert_eq!(recorded, self.model.recorded(*user, &request));
            }
            Op::Erase(user) => {
                for _ in 0..times {
                    let erased = self.store.erase(&self.world.app, &self.users[*user]).await.unwrap();
                    assert_eq!(erased, self.model.erase(*user));
                }
            }
            Op::Reap => {
                for _ in 0..times {
                    assert_eq!(self.world.reap(&TERMS).await, self.model.reap(&TERMS));
                }
            }
            Op::Sweep => self.sweep().await,
            Op::Hours(hours) => {
                self.world.advance(*hours).await;
                self.model.advance(hours * HOUR);
            }
        }
    }

    async fn collect(&mut self, credentials: &[(usize, usize, u8, i64)]) {
        let mut by_bucket = BTreeMap::<_, (Vec<_>, Vec<_>)>::new();
        for &(user, id, uses, hours) in credentials {
            let (id, kind) = IDS[id];
            let uses = if kind == Kind::FormId { 1 } else { uses };
            let expiry = self.model.now + hours * HOUR + HOUR / 2;
            let held = Held { kind, id: id.to_owned(), uses, expiry, suspect: false };
            let parsed = CredentialId::parse(id).unwrap();
            let credential = Credential { kind, id: parsed, uses, expiry: self.model.in_redis(expiry) };
            let openid = &self.users[user];
            let (ours, models) = by_bucket.entry(self.store.bucket_of(openid)).or_default();
            ours.push(Packed::new(openid.clone(), &credential));
            models.push((user, held));
        }
        for (bucket, (ours, models)) in by_bucket {
            let duplicates = self.store.collect(&self.world.app, bucket, &ours).await.unwrap();
            assert_eq!(duplicates, self.model.collect(&models));
        }
    }

    async fn lease(&mut self, asked: &Asked) {
        let Asked { id, user, kinds, terms, request } = asked;
        let kinds = KINDS[*kinds];
        let (app, openid) = (&self.world.app, &self.users[*user]);
        let allowed = kinds.iter().copied().collect();
        let reply = self.store.lease(app, openid, *id, terms, allowed, request.as_ref()).await.unwrap();
        match (reply, self.model.lease(*user, *id, terms, kinds, request.as_ref())) {
            (Leased::Lease(real), wanted) => assert_eq!(Leased::Lease(timeless(real)), wanted),
            (Leased::UnderWay(real), Leased::UnderWay(wanted)) => {
                assert!(real.abs_diff(wanted) < Duration::from_secs(600), "{real:?} {wanted:?}");
            }
            (real, wanted) => assert_eq!(real, wanted),
        }
    }

    async fn settle(&mut self, asked: &Asked, verdict: Verdict, outcome: &[u8], next: Option<&Asked>) {
        let Asked { id, user, terms, request, .. } = asked;
        let (app, openid, request) = (&self.world.app, &self.users[*user], request.as_ref());
        let (recorded, next) =
            ((!outcome.is_empty()).then_some(outcome), next.map(|next| (next.id, KINDS[next.kinds])));
        let allowed = next.map(|(id, kinds)| (id, kinds.iter().copied().collect()));
        let reply = self.store.settle(app, openid, *id, terms, verdict, recorded, request, allowed).await.unwrap();
        let wanted = self.model.settle(*user, *id, terms, verdict, outcome, request, next);
        match reply {
            Settled::Next(lease) => assert_eq!(Settled::Next(timeless(lease)), wanted),
            real => assert_eq!(real, wanted),
        }
    }

    async fn sweep(&mut self) {
        let (mut reachable, mut days) = (0, BTreeMap::new());
        for bucket in self.store.buckets() {
            let stock = self.store.sweep(&self.world.app, bucket, 7, Duration::ZERO).await.unwrap();
            assert_eq!(stock.counted_at, 7);
            reachable += stock.reachable;
            for (day, count) in stock.days {
                let sum = days.entry(day).or_insert(shared::store::stock::Count::default());
                sum.credentials += count.credentials;
                sum.messages += count.messages;
            }
        }
        assert_eq!((reachable, days), self.model.sweep());
        assert_eq!(self.store.users(&self.world.app).await.unwrap(), self.model.users());
    }
}

/// Holds all that is stored of the users, and the ledger, against the model.
pub async fn compare(world: &World, store: &Store, users: &[OpenId], model: &Model) {
    let now = testing::now();
    let each =
        users.iter().map(|openid| try_join(store.records(&world.app, openid), store.touched(&world.app, openid)));
    for (number, (records, touched)) in try_join_all(each).await.unwrap().into_iter().enumerate() {
        let openid = &users[number];
        // One whose only use was leased when it expired counts for nothing, and goes whenever the user is touched.
        let records = records
            .into_iter()
            .filter(|record| record.credential.uses > 0 || i64::from(record.credential.expiry) > now);
        let records: Vec<_> = records.map(|record| (record.credential, record.suspect)).collect();
        assert_eq!(records, model.records(number), "records of {}", openid.as_str());
        let real = touched.filter(|at| now < i64::from(*at) + KEEP_TOUCH.as_secs() as i64);
        match (real, model.touched(number).map(|at| model.in_redis(at))) {
            (Some(real), Some(wanted)) => assert!(real.abs_diff(wanted) < 600, "{real} {wanted}"),
            (real, wanted) => assert_eq!(real, wanted, "the touch of {}", openid.as_str()),
        }
    }
    assert_eq!(store.ledger(&world.app).await.unwrap(), model.ledger());
    world.assert_sound().await;
}

#[test]
fn the_store_does_what_the_model_does() {
    const CAPS: [u16; 4] = [1, 3, 5, 120];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new());
    let stores = CAPS.map(|cap| store(&world.redis, cap));
    for store in &stores {
        runtime.block_on(store.prepare()).unwrap();
    }
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(cap in 0..CAPS.len(), ops in vec((op(), prop::bool::weighted(0.2)), 1..60))| {
        runtime.block_on(async {
            world.raw::<()>(&redis::cmd("FLUSHALL")).await;
            let mut run = Run {
                world: &world,
                store: &stores[cap],
                users: USERS.map(user).into(),
                model: Model::new(CAPS[cap], USERS.len(), testing::now()),
                asked: Vec::new(),
                ids: 0,
            };
            for (op, again) in &ops {
                run.step(op, *again).await;
                compare(&world, run.store, &run.users, &run.model).await;
            }
        });
    });
}
