//! Random sequences of calls, compared with the model: every reply, and after every step every record, every time of
//! the last message, every send lock, and the whole ledger.

use std::collections::BTreeMap;
use std::time::Duration;

use deadpool_redis::redis;
use domain::dependency::Dependency as _;
use domain::{Credential, CredentialId, GrantUses, Kind, OpenId};
use futures_util::future::{try_join, try_join_all};
use proptest::collection::vec;
use proptest::prelude::*;
use store::Store;
use store::credentials::{OnceKey, Packed};
use store::eligibility::{Eligibility, Kinds};
use store::leases::{LeaseEnd, LeaseId, LeaseTerms, Leased, NewLease, Request, Settle, SettleReply};
use store::retention::KEEP_TOUCH;
use store::stock::Stock;

use crate::fixture::{
    DECIDED, Fixture, HOUR, TERMS, any_kind, cases, marks, packed_grant, request, store, template, timeless, user,
};
use crate::model::{Grant, Held, Item, Model};

/// More users than buckets, so that some share one.
const USERS: [&str; 5] = ["oA", "oB", "oC", "oD", "oE"];

/// Ids that contain one another: `a` is stored as the bytes 61 00, which `6100` and `ff6100ff` contain.
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

/// Templates that are also the ids of other credentials.
const TEMPLATES: [&str; 3] = ["a", "6100", "p"];

const VERDICTS: [LeaseEnd; 13] = [
    LeaseEnd::Consume,
    LeaseEnd::Return,
    LeaseEnd::Suspect,
    LeaseEnd::Discard,
    LeaseEnd::Hold,
    LeaseEnd::Unknown,
    LeaseEnd::Void,
    LeaseEnd::UnknownDiscard,
    LeaseEnd::UnknownVoid,
    // More than once, because a second refusal must meet a rest and the end of a rest.
    LeaseEnd::Rest(5400),
    LeaseEnd::Rest(5400),
    LeaseEnd::Rest(30 * 3600),
    LeaseEnd::UnknownRest(5400),
];
const OUTCOMES: [&[u8]; 2] = [b"", b"delivered"];

/// The credentials that a lease may request; the most common cases are first.
fn wanted() -> [Eligibility; 7] {
    let only = |kind| Eligibility::ids(Kinds::NONE.with(kind));
    let [a, b, c] = TEMPLATES.map(template);
    [
        any_kind(),
        Eligibility::grants(a.clone()),
        Eligibility { template: Some(b), ..any_kind() },
        Eligibility::grants(c),
        only(Kind::FormId),
        Eligibility { template: Some(a), ..only(Kind::PrepayId) },
        only(Kind::Grant),
    ]
}

/// One of the leases that were requested so far; `None` is the last one.
type Which = Option<prop::sample::Index>;

/// A credential to collect.
#[derive(Debug, Clone)]
enum What {
    /// Id, uses of a prepay id, hours until it expires.
    Id(usize, u8, i64),
    /// Template, uses (none: a long-term subscription), dedup key.
    Grant(usize, Option<u16>, Option<u8>),
}

#[derive(Debug, Clone)]
enum Op {
    Collect(Vec<(usize, What)>),
    /// User, template, dedup key.
    Void(usize, usize, u8),
    /// User, requested credentials, request id and message, whether the lease is long.
    Lease(usize, usize, Option<(u8, u8)>, bool),
    /// Repeats an earlier call for a lease with the same lease id.
    LeaseAgain(Which),
    /// A lease that was requested before, in any state; how it ends, outcome, the next request.
    Settle(Which, usize, usize, Option<usize>),
    /// User, request id and message.
    Recorded(usize, (u8, u8)),
    Erase(usize),
    Reap,
    Sweep,
    Hours(i64),
}

fn op() -> impl Strategy<Value = Op> {
    // Most steps use the first user, so that steps affect each other.
    let user = || prop_oneof![3 => Just(0_usize), 1 => 1..USERS.len()];
    let uses = prop_oneof![1..4_u8, Just(31)];
    let id = (0..IDS.len(), uses, -1..8_i64).prop_map(|(id, uses, hours)| What::Id(id, uses, hours));
    let count = prop_oneof![1 => Just(None), 6 => (1..4_u16).prop_map(Some), 1 => (30..100_u16).prop_map(Some)];
    let template = || prop_oneof![2 => Just(0_usize), 1 => 1..TEMPLATES.len()];
    let grant = (template(), count, prop::option::weighted(0.4, 0..3_u8))
        .prop_map(|(template, count, key)| What::Grant(template, count, key));
    let credential = (user(), prop_oneof![2 => id, 1 => grant]);
    let request = || (0..3_u8, prop_oneof![8 => Just(0_u8), 1 => Just(1)]);
    let wanted = || prop_oneof![3 => Just(0_usize), 3 => Just(1), 2 => 2..7_usize];
    let which = || prop::option::of(any::<prop::sample::Index>());
    prop_oneof![
        6 => vec(credential, 1..8).prop_map(Op::Collect),
        8 => (user(), wanted(), prop::option::of(request()), any::<bool>())
            .prop_map(|(user, wanted, request, long)| Op::Lease(user, wanted, request, long)),
        1 => (user(), template(), 0..3_u8).prop_map(|(user, template, key)| Op::Void(user, template, key)),
        2 => which().prop_map(Op::LeaseAgain),
        9 => (which(), 0..VERDICTS.len(), 0..OUTCOMES.len(), prop::option::of(wanted()))
            .prop_map(|(lease, verdict, outcome, next)| Op::Settle(lease, verdict, outcome, next)),
        3 => (user(), request()).prop_map(|(user, request)| Op::Recorded(user, request)),
        2 => user().prop_map(Op::Erase),
        3 => Just(Op::Reap),
        1 => Just(Op::Sweep),
        // After a day, a request of an erased user is forgotten. After a week, the time of the last message is
        // forgotten.
        5 => prop_oneof![12 => 1..4_i64, 2 => Just(24), 1 => 167..169_i64].prop_map(Op::Hours),
    ]
}

/// The arguments of a call for a lease.
#[derive(Clone)]
struct Asked {
    id: LeaseId,
    user: usize,
    wanted: Eligibility,
    terms: LeaseTerms,
    request: Option<Request>,
}

struct Run<'a> {
    fixture: &'a Fixture,
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
            Op::Void(user, of, key) => {
                for _ in 0..times {
                    self.void(*user, TEMPLATES[*of], *key).await;
                }
            }
            Op::Lease(user, of, named, long) => {
                let terms = LeaseTerms {
                    duration: TERMS.duration * if *long { 5 } else { 1 },
                    // A credential that expires in half an hour is within this margin.
                    margin: TERMS.margin * 4,
                    ..TERMS
                };
                let request = named.map(|(name, message)| request(&format!("r{name}"), message));
                let asked = Asked { id: self.fresh_id(), user: *user, wanted: wanted()[*of].clone(), terms, request };
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
                if verdict == LeaseEnd::Hold && asked.request.is_none() {
                    return;
                }
                let next = next.map(|of| Asked { id: self.fresh_id(), wanted: wanted()[of].clone(), ..asked.clone() });
                self.asked.extend(next.clone());
                for _ in 0..times {
                    self.settle(&asked, verdict, OUTCOMES[*outcome], next.as_ref()).await;
                }
            }
            Op::Recorded(user, (name, message)) => {
                let request = request(&format!("r{name}"), *message);
                let recorded = self.store.recorded(&self.fixture.app, &self.users[*user], &request).await.unwrap();
                assert_eq!(recorded, self.model.recorded(*user, &request));
            }
            Op::Erase(user) => {
                for _ in 0..times {
                    let erased = self.store.erase(&self.fixture.app, &self.users[*user]).await.unwrap();
                    assert_eq!(erased, self.model.erase(*user));
                }
            }
            Op::Reap => {
                for _ in 0..times {
                    assert_eq!(self.fixture.reap(&TERMS).await, self.model.reap(&TERMS));
                }
            }
            Op::Sweep => self.sweep().await,
            Op::Hours(hours) => {
                self.fixture.advance(*hours).await;
                self.model.advance(hours * HOUR);
            }
        }
    }

    async fn collect(&mut self, credentials: &[(usize, What)]) {
        let mut by_bucket = BTreeMap::<_, (Vec<_>, Vec<_>)>::new();
        for (user, what) in credentials {
            let openid = &self.users[*user];
            let (packed, item) = match *what {
                What::Id(id, uses, hours) => {
                    let (id, kind) = IDS[id];
                    let uses = if kind == Kind::FormId { 1 } else { uses };
                    let expiry = self.model.now + hours * HOUR + HOUR / 2;
                    let held = Held { kind, id: id.to_owned(), slot: 0, uses, expiry, suspect: false, rest: None };
                    let parsed = CredentialId::parse(id).unwrap();
                    let credential = Credential { kind, id: parsed, uses, expiry: self.model.in_redis(expiry) };
                    (Packed::new(openid.clone(), &credential), Item::Id(held))
                }
                What::Grant(of, count, key) => {
                    let uses = count.map_or(GrantUses::LongTerm, GrantUses::Count);
                    let grant = Grant { template: TEMPLATES[of].to_owned(), uses, key };
                    let key = key.map(|key| once(*user, key));
                    (packed_grant(openid, TEMPLATES[of], uses, key), Item::Grant(grant))
                }
            };
            let (ours, models) = by_bucket.entry(self.store.bucket_of(openid)).or_default();
            ours.push(packed);
            models.push((*user, item));
        }
        for (bucket, (ours, models)) in by_bucket {
            let duplicates = self.store.collect(&self.fixture.app, bucket, &ours).await.unwrap();
            assert_eq!(duplicates, self.model.collect(&models));
        }
    }

    async fn void(&mut self, user: usize, of: &str, key: u8) {
        let (app, openid) = (&self.fixture.app, &self.users[user]);
        let voided = self.store.void(app, openid, &template(of), once(user, key), DECIDED).await.unwrap();
        assert_eq!(voided, self.model.void(user, of, key));
    }

    async fn lease(&mut self, asked: &Asked) {
        let Asked { id, user, wanted, terms, request } = asked;
        let (app, openid) = (&self.fixture.app, &self.users[*user]);
        let new = NewLease { id: *id, request: request.as_ref(), wanted };
        let reply = self.store.lease(app, openid, &new, terms).await.unwrap();
        match (reply, self.model.lease(*user, &new, terms)) {
            (Leased::Lease(real), wanted) => assert_eq!(Leased::Lease(timeless(real)), wanted),
            (Leased::UnderWay(real), Leased::UnderWay(wanted)) | (Leased::Busy(real), Leased::Busy(wanted)) => {
                assert!(real.abs_diff(wanted) < Duration::from_secs(600), "{real:?} {wanted:?}");
            }
            (Leased::Resting(real), Leased::Resting(wanted)) => assert!(real.abs_diff(wanted) < 600, "{real} {wanted}"),
            (real, wanted) => assert_eq!(real, wanted),
        }
    }

    async fn settle(&mut self, asked: &Asked, verdict: LeaseEnd, outcome: &[u8], next: Option<&Asked>) {
        let Asked { id, user, terms, request, .. } = asked;
        let (app, openid, request) = (&self.fixture.app, &self.users[*user], request.as_ref());
        let (outcome, next) = ((!outcome.is_empty()).then_some(outcome), next.map(|next| (next.id, &next.wanted)));
        let settle = Settle { id: *id, request, end: verdict, outcome, next };
        let reply = self.store.settle(app, openid, &settle, terms).await.unwrap();
        let wanted = self.model.settle(*user, &settle, terms);
        match (reply, wanted) {
            (SettleReply::Next(lease), wanted) => assert_eq!(SettleReply::Next(timeless(lease)), wanted),
            (SettleReply::NextRests(real), SettleReply::NextRests(wanted)) => {
                assert!(real.abs_diff(wanted) < 600, "{real} {wanted}");
            }
            (real, wanted) => assert_eq!(real, wanted),
        }
    }

    async fn sweep(&mut self) {
        let mut sum = Stock::default();
        for bucket in self.store.buckets() {
            let stock = self.store.sweep(&self.fixture.app, bucket, 7, Duration::ZERO).await.unwrap();
            assert_eq!(stock.counted_at, 7);
            sum.add(&stock);
        }
        assert_eq!((sum.reachable, sum.days, sum.templates), self.model.sweep());
        assert_eq!(self.store.users(&self.fixture.app).await.unwrap(), self.model.users());
    }
}

/// A dedup key that no other user has.
fn once(user: usize, key: u8) -> OnceKey {
    OnceKey([16 * user as u8 + key; 16])
}

/// Compares all that is stored of the users, and the ledger, with the model.
pub async fn compare(fixture: &Fixture, store: &Store, users: &[OpenId], model: &Model) {
    let now = testing::now();
    let each =
        users.iter().map(|openid| try_join(store.records(&fixture.app, openid), store.touched(&fixture.app, openid)));
    for (number, (records, touched)) in try_join_all(each).await.unwrap().into_iter().enumerate() {
        let openid = &users[number];
        // A record whose only use was leased when it expired counts for nothing. The next write to the user drops it.
        let mut records: Vec<_> = records
            .into_iter()
            .filter(|record| record.credential.uses > 0 || i64::from(record.credential.expiry) > now)
            .collect();
        let wanted = model.records(number);
        for (real, wanted) in records.iter_mut().zip(&wanted) {
            // The mark of a prepay id's rest stays until the next write to the user.
            let over = real.credential.kind != Kind::Grant && real.rest.is_some_and(|ends| i64::from(ends) <= now);
            if over || real.rest.zip(wanted.rest).is_some_and(|(real, wanted)| real.abs_diff(wanted) < 600) {
                real.rest = wanted.rest;
            }
        }
        assert_eq!(records, wanted, "records of {}", openid.as_str());
        let real = touched.filter(|at| now < i64::from(*at) + KEEP_TOUCH.as_secs() as i64);
        match (real, model.touched(number).map(|at| model.in_redis(at))) {
            (Some(real), Some(wanted)) => assert!(real.abs_diff(wanted) < 600, "{real} {wanted}"),
            (real, wanted) => assert_eq!(real, wanted, "the time of the last message of {}", openid.as_str()),
        }
        let real = marks(&fixture.field(openid).await).into_iter().find(|(expiry, _)| i64::from(*expiry) > now);
        match (real, model.mark(number)) {
            (Some((expiry, owner)), Some(wanted)) => {
                assert_eq!(owner, wanted.owner, "the send lock of {}", openid.as_str());
                assert!(expiry.abs_diff(model.in_redis(wanted.until)) < 600);
            }
            (real, wanted) => assert_eq!((real, wanted), (None, None), "the send lock of {}", openid.as_str()),
        }
    }
    assert_eq!(store.ledger(&fixture.app).await.unwrap(), model.ledger());
    fixture.assert_sound().await;
}

#[test]
fn store_behaves_like_the_model() {
    const CAPS: [u16; 4] = [1, 3, 5, 120];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = runtime.block_on(Fixture::new());
    let stores = CAPS.map(|cap| store(&fixture.redis, cap));
    for store in &stores {
        runtime.block_on(store.prepare()).unwrap();
    }
    let config = cases(32, 400);
    proptest!(config, |(cap in 0..CAPS.len(), ops in vec((op(), prop::bool::weighted(0.2)), 1..60))| {
        runtime.block_on(async {
            fixture.raw::<()>(&redis::cmd("FLUSHALL")).await;
            let mut run = Run {
                fixture: &fixture,
                store: &stores[cap],
                users: USERS.map(user).into(),
                model: Model::new(CAPS[cap], USERS.len(), testing::now()),
                asked: Vec::new(),
                ids: 0,
            };
            for (op, again) in &ops {
                run.step(op, *again).await;
                compare(&fixture, run.store, &run.users, &run.model).await;
            }
        });
    });
}
