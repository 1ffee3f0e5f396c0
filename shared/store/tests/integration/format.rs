//! Rust and the scripts read and write the same packed format.

mod grants;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use deadpool_redis::redis;
use domain::{Credential, CredentialId, Kind};
use proptest::collection::vec;
use proptest::prelude::*;
use store::leases::{LeaseEnd, LeaseId, Leased};
use store::record::{self, Record};
use store::retention::KEEP_TOUCH;
use store::stock::Count;

use crate::fixture::{Fixture, TERMS, cases, expiries, form_id, leased, user};

fn tail(credential: &Credential) -> Vec<u8> {
    let mut packed = Vec::new();
    record::pack(credential, &mut packed);
    packed.split_off(5)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn id() -> impl Strategy<Value = String> {
    "([0-9a-f]{2}){1,64}|[!-~]{1,128}"
        .prop_filter("not a valid credential id", |id| CredentialId::parse(id.as_str()).is_ok())
}

/// Credentials with all kinds of ids, including decoys: ids whose bytes contain the tails of other records.
fn credentials() -> impl Strategy<Value = Vec<Credential>> {
    let one = (id(), 1..=31_u8, any::<bool>(), 1..1000_i64);
    let decoy = (any::<prop::sample::Index>(), vec(any::<u8>(), 0..3), vec(any::<u8>(), 0..3), any::<bool>());
    (vec(one, 1..12), vec(decoy, 0..12)).prop_map(|(ones, decoys)| {
        let mut all: Vec<Credential> = Vec::new();
        for (id, uses, prepay, hours) in ones {
            let (kind, uses) = if prepay { (Kind::PrepayId, uses) } else { (Kind::FormId, 1) };
            all.push(Credential { kind, uses, ..form_id(&id, hours) });
        }
        for (of, before, after, sooner) in decoys {
            let of = of.get(&all).clone();
            let id = hex(&[before, tail(&of), after].concat());
            let expiry = if sooner { of.expiry - 1 } else { of.expiry + 1 };
            all.extend(CredentialId::parse(id).ok().map(|id| Credential { id, expiry, ..of }));
        }
        let mut seen = HashSet::new();
        all.retain(|credential| seen.insert(credential.id.clone()));
        all
    })
}

#[test]
fn scripts_read_what_rust_packs() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (fixture, anna) = (runtime.block_on(Fixture::with_cap(1000)), user("oAnna"));
    let config = cases(32, 400);
    proptest!(config, |(credentials in credentials(), consumed in vec(any::<bool>(), 24))| {
        runtime.block_on(async {
            fixture.raw::<()>(&redis::cmd("FLUSHALL")).await;
            assert!(fixture.collect(&anna, &credentials).await.is_empty());
            assert_eq!(fixture.collect(&anna, &credentials).await, (0..credentials.len()).collect::<Vec<_>>());

            // In order of expiry; those with equal expiry in the order of arrival.
            let mut wanted = credentials.clone();
            wanted.sort_by_key(|credential| credential.expiry);
            let records = async || fixture.store.records(&fixture.app, &anna).await.unwrap();
            let as_records = |credentials: &[Credential]| -> Vec<_> {
                let record = |credential| Record { credential, suspect: false, long_term: false, rest: None };
                credentials.iter().cloned().map(record).collect()
            };
            assert_eq!(records().await, as_records(&wanted));

            let mut days = BTreeMap::<_, Count>::new();
            for credential in &wanted {
                let count = days.entry(((i64::from(credential.expiry) + 8 * 3600) / 86400, credential.kind)).or_default();
                count.credentials += 1;
                count.messages += u64::from(credential.uses);
            }
            let bucket = fixture.store.bucket_of(&anna);
            let stock = fixture.store.sweep(&fixture.app, bucket, 0, Duration::ZERO).await.unwrap();
            assert_eq!((stock.reachable, stock.days), (1, days));

            // Each is leased in turn. Some are spent. The others return to their own records.
            let mut leases = Vec::new();
            for credential in wanted.iter().flat_map(|one| std::iter::repeat_n(one, one.uses.into())) {
                let lease = fixture.lease(&anna).await;
                let read = (&lease.credential, lease.kind, lease.expiry);
                assert_eq!(read, (&credential.id, credential.kind, credential.expiry));
                leases.push(lease);
            }
            assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, None).await, Leased::None);
            let spent: HashSet<_> =
                wanted.iter().zip(&consumed).filter(|(_, spent)| **spent).map(|(one, _)| one.id.clone()).collect();
            for lease in &leases {
                let verdict = if spent.contains(&lease.credential) { LeaseEnd::Consume } else { LeaseEnd::Return };
                fixture.settle(&anna, lease.id, verdict).await;
            }
            wanted.retain(|credential| !spent.contains(&credential.id));
            assert_eq!(records().await, as_records(&wanted));
            fixture.assert_sound().await;
        });
    });
}

#[test]
fn rust_reads_the_last_message_time_that_scripts_write() {
    const HEADS: &str = concat!(
        include_str!("../../lua/head/records.lua"),
        include_str!("../../lua/head/stock.lua"),
        include_str!("../../lua/head/touched.lua"),
        include_str!("../../lua/head/touch.lua"),
        "return { now, keep_touch, touched_at(ARGV[1]) or -1, touch(ARGV[1], now) }",
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = runtime.block_on(Fixture::new());
    let run = async |field: &[u8]| -> (u32, u64, i64, Vec<u8>) {
        fixture.raw(redis::cmd("EVAL").arg(HEADS).arg(0).arg(field)).await
    };
    let config = cases(32, 400);
    // Ids whose bytes look like a time of the last message, and an earlier such time or none.
    let decoys = vec(("([0-9a-f]{2}){0,3}", "([0-9a-f]{2}){0,3}", 1..1000_i64), 0..3);
    proptest!(config, |(mut credentials in credentials(), decoys in decoys, ago in prop::option::of(1..604_800_u32))| {
        for (before, after, hours) in decoys {
            credentials.push(form_id(&format!("{before}c00000{after}"), hours));
        }
        let now = testing::now() as u32;
        let touch = ago.map(|ago| (now - ago + KEEP_TOUCH.as_secs() as u32, None));
        let mut records: Vec<_> = credentials.iter().map(|one| (one.expiry, Some(one))).chain(touch).collect();
        records.sort_by_key(|(expiry, _)| Reverse(*expiry));
        let mut field = Vec::new();
        for (expiry, credential) in records {
            match credential {
                Some(credential) => record::pack(credential, &mut field),
                None => field.extend([&expiry.to_be_bytes()[..], &[192, 0, 0]].concat()),
            }
        }
        runtime.block_on(async {
            let (at, keep, before, touched) = run(&field).await;
            assert_eq!((keep, before), (KEEP_TOUCH.as_secs(), ago.map_or(-1, |ago| i64::from(now - ago))));
            assert_eq!(record::touched(&field), Ok(ago.map(|ago| now - ago)));
            assert_eq!(record::touched(&touched), Ok(Some(at)));
            assert_eq!(touched.len(), field.len() + if ago.is_some() { 0 } else { 7 });
            assert!(expiries(&touched).is_sorted());
            assert!(record::unpack(&touched).eq(record::unpack(&field)), "the credentials are unchanged");
            let (_, _, again, _) = run(&touched).await;
            assert_eq!(again, i64::from(at));
        });
    });
}

#[tokio::test]
async fn ids_of_every_length_read_back_unchanged() {
    let (fixture, anna) = (Fixture::with_cap(1000).await, user("oAnna"));
    let mut credentials = Vec::new();
    for length in 1..=128_usize {
        for (digits, hours) in [("0123456789abcdef", 1), ("0123456789ABCDEF", 2), ("x-_~!\"\\{}:", 3), ("0", 4)] {
            let id: String = digits.chars().cycle().take(length).collect();
            credentials.push(form_id(&id, hours));
        }
    }
    let mut seen = HashSet::new();
    credentials.retain(|credential| seen.insert(credential.id.clone()));
    for part in credentials.chunks(128) {
        assert!(fixture.collect(&anna, part).await.is_empty());
    }
    for part in credentials.chunks(128) {
        assert_eq!(fixture.collect(&anna, part).await.len(), part.len());
    }
    let mut leased_ids = HashSet::new();
    for _ in 0..credentials.len() {
        leased_ids.insert(leased(fixture.ask(&anna, LeaseId::random(), &TERMS, None).await).credential);
    }
    assert_eq!(leased_ids, seen);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn credential_contained_in_the_bytes_of_another_stays_distinct() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let victim = form_id("a", 2);
    let decoys = [form_id(&hex(&tail(&victim)), 1), form_id(&format!("ff{}ff", hex(&tail(&victim))), 3)];
    fixture.collect(&anna, &decoys).await;
    assert!(fixture.collect(&anna, std::slice::from_ref(&victim)).await.is_empty());
    let (decoy, lease) = (fixture.lease(&anna).await, fixture.lease(&anna).await);
    assert_eq!(lease.credential, victim.id);
    fixture.settle(&anna, lease.id, LeaseEnd::Discard).await;
    fixture.settle(&anna, decoy.id, LeaseEnd::Return).await;
    let left: Vec<_> = fixture.stored(&anna).await.into_iter().map(|(id, ..)| id).collect();
    assert_eq!(left, ["6100", "ff6100ff"]);
    fixture.assert_sound().await;
}
