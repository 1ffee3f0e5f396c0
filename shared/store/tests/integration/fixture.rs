//! The fixture of these tests: a Redis for each test, a store on it, and access to everything that is stored.

use std::collections::BTreeMap;
use std::time::Duration;

use deadpool_redis::redis::{self, Cmd, FromRedisValue};
use domain::dependency::Dependency as _;
use domain::{AppId, Credential, CredentialId, Grant, GrantUses, Kind, OpenId, RequestId, TemplateId};
use proptest::prelude::ProptestConfig;
use store::credentials::{MAX_COLLECT, OnceKey, Packed};
use store::eligibility::Eligibility;
use store::keys::{Bucket, BucketKeys};
use store::leases::{Lease, LeaseEnd, LeaseId, LeaseTerms, Leased, NewLease, Reaped, Request, Settle, SettleReply};
use store::{Store, StoreConfig, record};
use testing::{Redis, sized, store_config};

use crate::raw::Raw;

pub const HOUR: i64 = 3600;

/// When users decide about templates in tests where that does not matter.
pub const DECIDED: u32 = 1_800_000_000;

/// Leases of half an hour. No duration here is a whole number of hours, and time only advances by whole hours
/// ([`Fixture::advance`]), so no test depends on the exact time.
pub const TERMS: LeaseTerms = LeaseTerms {
    duration: Duration::from_secs(30 * 60),
    margin: Duration::from_secs(10 * 60),
    keep: Duration::from_secs(3 * 3600 + 30 * 60),
};

/// Leases that expire immediately or almost immediately.
pub const BRIEF: LeaseTerms = LeaseTerms { duration: Duration::ZERO, ..TERMS };

pub struct Fixture {
    pub redis: Redis,
    pub store: Store,
    pub app: AppId,
    raw: Raw,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with_cap(120).await
    }

    pub async fn with_cap(cap: u16) -> Self {
        Self::on(Redis::alone(), cap).await
    }

    pub async fn on(mut redis: Redis, cap: u16) -> Self {
        let store = store(&redis, cap);
        store.prepare().await.unwrap();
        let raw = Raw::to(&mut redis).await;
        Self { redis, store, app: AppId::parse("wx1").unwrap(), raw }
    }

    /// Opens the connection of the test again after a restart of Redis. The store must reconnect by itself.
    pub async fn reconnect(&mut self) {
        self.raw = Raw::to(&mut self.redis).await;
    }

    pub async fn raw<T: FromRedisValue>(&self, command: &Cmd) -> T {
        command.query_async(&mut self.raw.clone()).await.unwrap()
    }

    /// The replies to a pipeline.
    pub async fn all<T: FromRedisValue>(&self, pipe: &redis::Pipeline) -> T {
        pipe.query_async(&mut self.raw.clone()).await.unwrap()
    }

    pub async fn collect(&self, user: &OpenId, credentials: &[Credential]) -> Vec<usize> {
        assert!(credentials.len() <= MAX_COLLECT);
        let packed: Vec<_> = credentials.iter().map(|credential| Packed::new(user.clone(), credential)).collect();
        self.store.collect(&self.app, self.store.bucket_of(user), &packed).await.unwrap()
    }

    /// Collects a grant. False if it is a duplicate.
    pub async fn grant(&self, user: &OpenId, id: &str, uses: GrantUses, once: Option<OnceKey>) -> bool {
        let packed = packed_grant(user, id, uses, once);
        self.store.collect(&self.app, self.store.bucket_of(user), &[packed]).await.unwrap().is_empty()
    }

    /// Collects a use of a template that WeChat reported. False if it does not count.
    pub async fn accept(&self, user: &OpenId, id: &str, once: OnceKey, at: u32) -> bool {
        let packed = Packed::accept(user.clone(), template(id), once, at);
        self.store.collect(&self.app, self.store.bucket_of(user), &[packed]).await.unwrap().is_empty()
    }

    /// Asks for a lease of a grant of this template.
    pub async fn ask_for(&self, user: &OpenId, id: LeaseId, terms: &LeaseTerms, of: &str) -> Leased {
        let new = NewLease { id, request: None, wanted: &Eligibility::grants(template(of)) };
        self.store.lease(&self.app, user, &new, terms).await.unwrap()
    }

    pub async fn ask(&self, user: &OpenId, id: LeaseId, terms: &LeaseTerms, request: Option<&Request>) -> Leased {
        let new = NewLease { id, request, wanted: &any_kind() };
        self.store.lease(&self.app, user, &new, terms).await.unwrap()
    }

    /// Leases for a message without a request id. Panics if there is no credential.
    pub async fn lease(&self, user: &OpenId) -> Lease {
        leased(self.ask(user, LeaseId::random(), &TERMS, None).await)
    }

    pub async fn settle(&self, user: &OpenId, id: LeaseId, verdict: LeaseEnd) -> SettleReply {
        let settle = Settle { id, request: None, end: verdict, outcome: None, next: None };
        self.store.settle(&self.app, user, &settle, &TERMS).await.unwrap()
    }

    /// Settles the lease of a message with a request id.
    pub async fn settle_request(
        &self,
        user: &OpenId,
        id: LeaseId,
        verdict: LeaseEnd,
        outcome: Option<&[u8]>,
        request: &Request,
    ) -> SettleReply {
        let settle = Settle { id, request: Some(request), end: verdict, outcome, next: None };
        self.store.settle(&self.app, user, &settle, &TERMS).await.unwrap()
    }

    /// Settles a lease, and asks for the next one in the same call.
    pub async fn settle_next(
        &self,
        user: &OpenId,
        id: LeaseId,
        verdict: LeaseEnd,
        request: Option<&Request>,
        next: LeaseId,
    ) -> SettleReply {
        let any_kind = any_kind();
        let next = Some((next, &any_kind));
        let settle = Settle { id, request, end: verdict, outcome: Some(b"none left"), next };
        self.store.settle(&self.app, user, &settle, &TERMS).await.unwrap()
    }

    /// Reaps every bucket.
    pub async fn reap(&self, terms: &LeaseTerms) -> Reaped {
        let mut sum = Reaped::default();
        for bucket in self.store.buckets() {
            let reaped = self.store.reap(&self.app, bucket, terms, 1000).await.unwrap();
            sum.pinned += reaped.pinned;
            sum.suspect += reaped.suspect;
            sum.spent += reaped.spent;
        }
        sum
    }

    /// Another user of the same bucket.
    pub fn neighbour(&self, of: &OpenId) -> OpenId {
        let bucket = |user: &OpenId| self.store.bucket_of(user);
        (0..).map(|number| user(&format!("oBob{number}"))).find(|bob| bucket(bob) == bucket(of)).unwrap()
    }

    /// Creates so many users of a bucket, with two form ids each.
    pub async fn crowd(&self, bucket: Bucket, count: usize) -> Vec<OpenId> {
        let here = |user: &OpenId| self.store.bucket_of(user) == bucket;
        let users: Vec<_> = (0..).map(|number| user(&format!("oU{number}"))).filter(here).take(count).collect();
        let both = |user: &OpenId| {
            ["a", "b"].map(|id| Packed::new(user.clone(), &form_id(&format!("{id}{}", user.as_str()), 9)))
        };
        let packed: Vec<_> = users.iter().flat_map(both).collect();
        for page in packed.chunks(MAX_COLLECT) {
            self.store.collect(&self.app, bucket, page).await.unwrap();
        }
        users
    }

    /// The credentials of a user: id, uses left, whether it is suspect. The soonest to expire is first.
    pub async fn stored(&self, user: &OpenId) -> Vec<(String, u8, bool)> {
        let records = self.store.records(&self.app, user).await.unwrap();
        records.iter().map(|record| (id_of(&record.credential), record.credential.uses, record.suspect)).collect()
    }

    /// The packed records of a user, without leases; empty if there are none.
    pub async fn field(&self, user: &OpenId) -> Vec<u8> {
        let users = BucketKeys::new(&self.app, self.store.bucket_of(user)).users();
        self.raw::<Option<_>>(redis::cmd("HGET").arg(users).arg(user.as_str())).await.unwrap_or_default()
    }

    pub async fn leases(&self) -> u64 {
        self.store.ledger(&self.app).await.unwrap().leased
    }

    /// Advances the time by whole hours.
    pub async fn advance(&self, hours: i64) {
        self.pass(hours * HOUR).await
    }

    /// Advances the time by seconds. Tests call it with so few seconds that they do not matter for [`TERMS`].
    pub async fn pass(&self, seconds: i64) {
        self.raw(redis::cmd("EVAL").arg(include_str!("advance.lua")).arg(0).arg(seconds)).await
    }

    async fn keys(&self) -> Vec<String> {
        self.raw(redis::cmd("KEYS").arg("*")).await
    }

    /// The content of all keys in Redis, as bytes.
    pub async fn everything(&self) -> BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut all = BTreeMap::new();
        for key in self.keys().await {
            let read = match self.raw::<String>(redis::cmd("TYPE").arg(&key)).await.as_str() {
                "hash" => self.raw(redis::cmd("HGETALL").arg(&key)).await,
                "zset" => self.raw(redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).arg("WITHSCORES")).await,
                "set" => {
                    let members: Vec<Vec<u8>> = self.raw(redis::cmd("SMEMBERS").arg(&key)).await;
                    members.into_iter().map(|member| (member, Vec::new())).collect()
                }
                "stream" => BTreeMap::from([(Vec::new(), self.raw(redis::cmd("DUMP").arg(&key)).await)]),
                _ => BTreeMap::from([(Vec::new(), self.raw(redis::cmd("GET").arg(&key)).await)]),
            };
            all.insert(key, read);
        }
        all
    }

    /// Asserts the invariants that hold at any time, also during other calls: nothing is lost or counted twice, records
    /// are in order of expiry, and every key has an expiry or a bounded size.
    pub async fn assert_sound(&self) {
        for bucket in self.store.buckets() {
            let keys = BucketKeys::new(&self.app, bucket);
            let mut pipe = redis::pipe();
            pipe.atomic().cmd("HVALS").arg(keys.users()).cmd("HGETALL").arg(keys.ledger());
            pipe.cmd("HLEN").arg(keys.leases());
            type Read = (Vec<Vec<u8>>, BTreeMap<String, u64>, u64);
            let (users, mut ledger, leases): Read = self.all(&pipe).await;
            let mut available = 0;
            for field in users {
                assert!(!field.is_empty(), "a user without records has a field");
                let records: Vec<_> = record::unpack(&field).map(|record| record.unwrap().credential).collect();
                let (expiries, touches) = (expiries(&field), usize::from(record::touched(&field).unwrap().is_some()));
                let marks = marks(&field).len();
                assert!(marks <= 1, "a user has two send locks");
                assert!(expiries.is_sorted(), "records are not in order of expiry");
                let others = touches + marks + rests(&field).len();
                assert_eq!(expiries.len(), records.len() + others, "a user has two times of the last message");
                available += records.iter().map(|credential| u64::from(credential.uses)).sum::<u64>();
            }
            let mut take = |name: &str| ledger.remove(name).unwrap_or(0);
            let (collected, lost, unknown) = (take("collected"), take("lost"), take("unknown"));
            assert!(unknown <= ledger.get("consumed").copied().unwrap_or(0), "more are unknown than consumed");
            let gone: u64 = ledger.values().sum();
            assert_eq!(collected, available + leases - lost + gone, "available {available}, ledger {ledger:?}");
        }
        for key in self.keys().await {
            let left: i64 = self.raw(redis::cmd("PTTL").arg(&key)).await;
            // -1: no expiry. -2: the key was deleted since.
            let bounded = ["users", "leases", "ledger", "buckets", ":broadcasts:due", ":broadcasts:running"];
            let bounded = bounded.iter().any(|name| key.ends_with(name));
            assert!(left != -1 || bounded, "{key} has neither an expiry nor a bound");
        }
    }
}

pub fn store(redis: &Redis, cap: u16) -> Store {
    Store::new(&StoreConfig { cap, ..store_config(redis.url()) }).unwrap()
}

/// The number of random cases of a property test. Each run draws new cases, so several runs find what one run of a few
/// hundred cases would find. `./deploy/test.sh --soak` uses the larger number.
pub fn cases(usual: u32, soak: u32) -> ProptestConfig {
    ProptestConfig { cases: sized(usual, soak), failure_persistence: None, ..ProptestConfig::default() }
}

pub fn any_kind() -> Eligibility {
    Eligibility::ids(Kind::ALL.into_iter().collect())
}

pub fn user(name: &str) -> OpenId {
    OpenId::parse(name).unwrap()
}

/// A form id that expires in so many hours and 30 minutes.
pub fn form_id(id: &str, hours: i64) -> Credential {
    Credential { kind: Kind::FormId, ..prepay_id(id, 1, hours) }
}

/// A prepay id that expires in so many hours and 30 minutes.
pub fn prepay_id(id: &str, uses: u8, hours: i64) -> Credential {
    let expiry = (testing::now() + hours * HOUR + HOUR / 2) as u32;
    Credential { kind: Kind::PrepayId, id: CredentialId::parse(id).unwrap(), uses, expiry }
}

pub fn id_of(credential: &Credential) -> String {
    credential.id.as_str().to_owned()
}

/// Expiry and remaining bytes of each record of a field, from back to front, including the time of the last message and
/// the send lock.
fn raw_records(mut field: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    std::iter::from_fn(move || {
        let (rest, record) = field.split_at(field.len() - usize::from(field.last()? % 128) - 7);
        field = rest;
        let (expiry, record) = record.split_first_chunk().unwrap();
        Some((u32::from_be_bytes(*expiry), record))
    })
}

/// The expiries of the records of a field, from back to front, including the time of the last message and the send
/// lock.
pub fn expiries(field: &[u8]) -> Vec<u32> {
    raw_records(field).map(|(expiry, _)| expiry).collect()
}

/// The send locks of a field: expiry and owner of each.
pub fn marks(field: &[u8]) -> Vec<(u32, LeaseId)> {
    let mark = |(expiry, record): (u32, &[u8])| match record {
        [192, owner @ .., 15] => Some((expiry, LeaseId(owner.try_into().unwrap()))),
        _ => None,
    };
    raw_records(field).filter_map(mark).collect()
}

/// The marks of resting prepay ids of a field: expiry and hash of each.
pub fn rests(field: &[u8]) -> Vec<(u32, String)> {
    let rest = |(expiry, record): (u32, &[u8])| {
        let hash = record.strip_prefix(b"\x40resting:")?.strip_suffix(b"\x0f")?;
        Some((expiry, String::from_utf8(hash.to_vec()).unwrap()))
    };
    raw_records(field).filter_map(rest).collect()
}

pub fn template(id: &str) -> TemplateId {
    TemplateId::parse(id).unwrap()
}

pub fn packed_grant(user: &OpenId, id: &str, uses: GrantUses, once: Option<OnceKey>) -> Packed {
    Packed::grant(user.clone(), &Grant { template: template(id), uses }, once)
}

/// A request whose message is identified by one byte.
pub fn request(id: &str, message: u8) -> Request {
    Request { id: RequestId::parse(id).unwrap(), fingerprint: [message; 16] }
}

pub fn leased(reply: Leased) -> Lease {
    match reply {
        Leased::Lease(lease) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

pub fn next(reply: SettleReply) -> Lease {
    match reply {
        SettleReply::Next(lease) => lease,
        other => panic!("expected a next lease, got {other:?}"),
    }
}

/// A lease without its time, which no model can predict.
pub fn timeless(mut lease: Lease) -> Lease {
    assert!((lease.now - testing::now()).abs() < 60, "a lease has the time of Redis");
    lease.now = 0;
    lease
}
