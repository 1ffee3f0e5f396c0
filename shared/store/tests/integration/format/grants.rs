//! Records of grants and send locks: Rust reads what the scripts write, and the scripts leave other records unchanged.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use deadpool_redis::redis;
use domain::{Credential, Kind};
use proptest::collection::vec;
use proptest::prelude::*;
use store::record::{self, NEVER, Record};
use store::retention::KEEP_TOUCH;

use super::credentials;
use crate::fixture::{Fixture, cases, expiries, marks, rests};

/// A script that runs one function of the script heads on a field.
const HEADS: &str = concat!(
    include_str!("../../../lua/head/records.lua"),
    include_str!("../../../lua/head/stock.lua"),
    include_str!("../../../lua/head/touched.lua"),
    include_str!("../../../lua/head/touch.lua"),
    include_str!("../../../lua/head/rest.lua"),
    include_str!("../../../lua/head/left.lua"),
    include_str!("../../../lua/head/grants.lua"),
    include_str!("../../../lua/head/void.lua"),
    include_str!("../../../lua/head/leases.lua"),
    include_str!("../../../lua/head/mark.lua"),
    "local field, what, a, b = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
    if what == 'add' then
      local new, left = add_uses(field, a, b)
      return { new or '', new and left or -1 }
    elseif what == 'void' then return { void_grants(field, a) }
    elseif what == 'mark' then return { marks().put_on(field, a, now_ms + b), now_ms + b }
    elseif what == 'unmark' then return { marks().take_off(field, a), 0 }
    elseif what == 'busy' then return { '', marks().busy_for(field, a) or -1 }
    elseif what == 'touched' then return { touch(field, now), touched_at(field) or -1 }
    elseif what == 'rest' then return { set_rest(field, a, b), 0 }
    elseif what == 'end rest' then return { set_rest(field, a), 0 }
    elseif what == 'mark rest' then return { insert(field, struct.pack('>I4', b) .. rest_mark(a)), 0 }
    elseif what == 'left' then return { '', messages_left(field) } end",
);

/// Templates that contain one another or look like the ids of other credentials.
const TEMPLATES: [&str; 5] = ["t", "tt", "a", "~!", "0123456789abcdef"];

/// The records of a field in the order in which they are spent.
fn read(field: &[u8]) -> Vec<Record> {
    record::unpack(field).map(Result::unwrap).collect()
}

/// Uses of the template, and whether there is a long-term subscription.
fn granted(records: &[Record], template: &str) -> (u64, bool) {
    let of = records.iter().filter(|one| one.credential.kind == Kind::Grant && one.credential.id.as_str() == template);
    of.fold((0, false), |(uses, long), one| match one.long_term {
        true => (uses, true),
        false => (uses + u64::from(one.credential.uses), long),
    })
}

fn without(records: &[Record], template: &str) -> Vec<Record> {
    let other = |one: &&Record| one.credential.kind != Kind::Grant || one.credential.id.as_str() != template;
    records.iter().filter(other).cloned().collect()
}

#[test]
fn rust_reads_grants_and_send_locks_that_scripts_write() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = runtime.block_on(Fixture::new());
    let run = async |field: &[u8], what: &str, a: &[u8], b: i64| -> (Vec<u8>, i64) {
        fixture.raw(redis::cmd("EVAL").arg(HEADS).arg(0).arg(field).arg(what).arg(a).arg(b)).await
    };
    let config = cases(24, 400);
    let grants = vec((0..TEMPLATES.len(), prop_oneof![1 => Just(0_u16), 5 => 1..40_u16, 1 => 100..1000_u16]), 1..8);
    // Owners are arbitrary bytes, including bytes that look like records.
    let owner = prop_oneof![Just([0; 16]), Just([192; 16]), Just([15; 16]), any::<[u8; 16]>()];
    proptest!(config, |(
        credentials in credentials(), grants in grants, owners in (owner.clone(), owner), touch: bool, again: bool,
    )| {
        let (owner, other) = owners;
        prop_assume!(owner != other);
        let now = testing::now() as u32;
        let mut records: Vec<(u32, Option<&Credential>)> = credentials.iter().map(|one| (one.expiry, Some(one))).collect();
        records.extend(touch.then_some((now + KEEP_TOUCH.as_secs() as u32 - 9, None)));
        records.sort_by_key(|(expiry, _)| Reverse(*expiry));
        let mut field = Vec::new();
        for (expiry, credential) in records {
            match credential {
                Some(credential) => record::pack(credential, &mut field),
                None => field.extend([&expiry.to_be_bytes()[..], &[192, 0, 0]].concat()),
            }
        }
        let (ids, touched) = (read(&field), record::touched(&field).unwrap());
        runtime.block_on(async {
            let mut sums = BTreeMap::<&str, (u64, bool)>::new();
            for (number, count) in grants {
                let template = TEMPLATES[number];
                let (new, left) = run(&field, "add", template.as_bytes(), count.into()).await;
                let sum = sums.entry(template).or_default();
                if count == 0 && sum.1 {
                    assert_eq!((new, left), (Vec::new(), -1), "the subscription exists already");
                    continue;
                }
                assert_eq!(left, 0);
                *sum = (sum.0 + u64::from(count), sum.1 || count == 0);
                assert_eq!(without(&read(&new), template), without(&read(&field), template));
                field = new;
                for (template, sum) in &sums {
                    assert_eq!(granted(&read(&field), template), *sum);
                }
            }
            let records = read(&field);
            assert!(records.starts_with(&ids), "grants are at the front of the field");
            assert!(records[ids.len()..].iter().all(|one| one.credential.expiry == NEVER && one.credential.uses > 0));
            let uses: i64 = records.iter().map(|one| i64::from(one.credential.uses)).sum();

            // A send lock is set and removed, and changes nothing else.
            let before = field.clone();
            let (marked, deadline) = run(&field, "mark", &owner, 30_000).await;
            field = marked;
            if again {
                field = run(&field, "mark", &other, 30_000).await.0;
            }
            let holder = if again { other } else { owner };
            let found = marks(&field);
            assert_eq!(found.iter().map(|(_, owner)| owner.0).collect::<Vec<_>>(), [holder]);
            let over = i64::from(found[0].0) * 1000 - deadline;
            assert!((0..1000).contains(&over) || again && (0..10_000).contains(&over), "rounded up: {over}");
            assert!(expiries(&field).is_sorted());
            assert_eq!((read(&field), record::touched(&field).unwrap()), (records.clone(), touched));
            assert_eq!(run(&field, "left", b"", 0).await.1, uses);
            assert_eq!(run(&field, "busy", &holder, 0).await.1, -1);
            let stranger = if again { owner } else { other };
            assert!((28_000..=31_000).contains(&run(&field, "busy", &stranger, 0).await.1));
            let (touched_anew, at) = run(&field, "touched", b"", 0).await;
            assert_eq!(at, touched.map_or(-1, i64::from));
            assert_eq!(marks(&touched_anew), found);
            assert_eq!(run(&field, "unmark", &stranger, 0).await.0, field);
            assert_eq!(run(&field, "unmark", &holder, 0).await.0, before);

            for (template, (uses, long)) in sums {
                let (left, gone) = run(&field, "void", template.as_bytes(), 0).await;
                assert_eq!(gone as u64, uses + u64::from(long));
                assert_eq!(read(&left), without(&read(&field), template));
                assert_eq!(marks(&left), found);
                field = left;
            }
            assert_eq!(read(&field), ids);
        });
    });
}

#[test]
fn rust_and_scripts_agree_on_what_rests() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = runtime.block_on(Fixture::new());
    let run = async |field: &[u8], what: &str, a: &[u8], b: i64| -> (Vec<u8>, i64) {
        fixture.raw(redis::cmd("EVAL").arg(HEADS).arg(0).arg(field).arg(what).arg(a).arg(b)).await
    };
    let grants = vec((0..TEMPLATES.len(), 0..40_u16), 1..8);
    proptest!(cases(24, 400), |(
        mut credentials in credentials(), grants in grants, template in 0..TEMPLATES.len(), which: prop::sample::Index,
        over: bool,
    )| {
        credentials.sort_by_key(|credential| Reverse(credential.expiry));
        let mut field = Vec::new();
        for credential in &credentials {
            record::pack(credential, &mut field);
        }
        let template = TEMPLATES[template];
        let ends = testing::now() + if over { -300 } else { 300 };
        let uses = |records: &[Record]| records.iter().map(|one| i64::from(one.credential.uses)).sum::<i64>();
        runtime.block_on(async {
            for (number, count) in grants {
                let (new, left) = run(&field, "add", TEMPLATES[number].as_bytes(), count.into()).await;
                if left >= 0 {
                    field = new;
                }
            }
            let before = read(&field);
            let granted = |one: &Record| {
                one.credential.kind == Kind::Grant && one.credential.id.as_str() == template
            };
            let left = async |field: &[u8]| run(field, "left", b"", 0).await.1;

            // Grants: all of one template rest. Nothing else changes, and the field is not longer.
            let (resting, _) = run(&field, "rest", template.as_bytes(), ends).await;
            assert_eq!((resting.len(), expiries(&resting).is_sorted()), (field.len(), true));
            let records = read(&resting);
            assert_eq!(without(&records, template), without(&before, template));
            let of: Vec<_> = records.iter().filter(|one| granted(one)).cloned().collect();
            assert!(of.iter().all(|one| (one.rest, one.suspect) == (Some(ends as u32), false)));
            let at_rest = if over { 0 } else { uses(&of) };
            assert_eq!(left(&resting).await, uses(&before) - at_rest);
            // Uses that are added rest too: only an accept ends a rest.
            let (more, _) = run(&resting, "add", template.as_bytes(), 40).await;
            let added = if of.is_empty() || over { 40 } else { 0 };
            assert_eq!(left(&more).await, uses(&before) - at_rest + added);
            assert!(expiries(&more).is_sorted());
            let (again, _) = run(&resting, "end rest", template.as_bytes(), 0).await;
            assert!(read(&again).iter().all(|one| one.rest.is_none()));
            assert_eq!(without(&read(&again), template), without(&before, template));
            let (mut of, mut was): (Vec<_>, Vec<_>) =
                (read(&again).into_iter().filter(granted).collect(), before.iter().filter(|one| granted(one)).cloned().collect());
            for list in [&mut of, &mut was] {
                list.sort_by_key(|one| (one.long_term, one.credential.uses));
            }
            assert_eq!(of, was);

            // Prepay ids: one rests by a mark beside it.
            let credential = which.get(&credentials);
            let (marked, _) = run(&field, "mark rest", &super::tail(credential), ends).await;
            assert_eq!((marked.len(), rests(&marked).len()), (field.len() + 22, 1));
            assert!(expiries(&marked).is_sorted());
            let prepay = credential.kind == Kind::PrepayId;
            let resting: Vec<_> = read(&marked).into_iter().filter(|one| one.rest.is_some()).collect();
            let found: Vec<_> = resting.iter().map(|one| (&one.credential, one.rest)).collect();
            let wanted = (credential, Some(ends as u32));
            assert_eq!(found, if prepay { vec![wanted] } else { Vec::new() });
            assert_eq!(left(&marked).await, uses(&before) - if prepay && !over { uses(&resting) } else { 0 });
        });
    });
}
