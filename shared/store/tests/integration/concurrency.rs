//! Concurrent calls of many tasks.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::dependency::Dependency as _;
use domain::{Credential, GrantUses};
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use store::eligibility::Eligibility;
use store::leases::{LeaseEnd, LeaseId, LeaseTerms, Leased, NewLease, Settle, SettleReply};
use tokio::task::JoinSet;

use crate::fixture::{BRIEF, Fixture, TERMS, any_kind, form_id, marks, prepay_id, request, store, template, user};

fn form_ids(from: u32, count: u32) -> Vec<Credential> {
    (from..from + count).map(|number| form_id(&format!("f{number}"), 9)).collect()
}

/// Eight tasks collect 500 form ids each for one user. Returns how many are stored and how many the cap dropped.
async fn eight_times_500(cap: u16) -> (u64, u64) {
    let (fixture, anna) = (Arc::new(Fixture::with_cap(cap).await), user("oAnna"));
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let (fixture, anna) = (fixture.clone(), anna.clone());
        tasks.spawn(async move {
            for part in form_ids(task * 500, 500).chunks(50) {
                assert!(fixture.collect(&anna, part).await.is_empty());
            }
        });
    }
    tasks.join_all().await;
    fixture.assert_sound().await;
    let (stored, ledger) =
        (fixture.stored(&anna).await.len() as u64, fixture.store.ledger(&fixture.app).await.unwrap());
    assert_eq!(ledger.collected, 4000);
    (stored, ledger.dropped)
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_form_ids_are_all_stored_or_dropped_by_the_cap() {
    assert_eq!(eight_times_500(5000).await, (4000, 0));
    assert_eq!(eight_times_500(120).await, (120, 3880));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_400_form_ids_is_leased_once_and_then_none_is_left() {
    let (fixture, anna) = (Arc::new(Fixture::with_cap(5000).await), user("oAnna"));
    for part in form_ids(0, 400).chunks(100) {
        fixture.collect(&anna, part).await;
    }
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (fixture, anna) = (fixture.clone(), anna.clone());
        tasks.spawn(async move {
            let mut mine = Vec::new();
            while let Leased::Lease(lease) = fixture.ask(&anna, LeaseId::random(), &TERMS, None).await {
                mine.push(lease.credential);
            }
            mine
        });
    }
    let all = tasks.join_all().await.concat();
    assert_eq!(all.len(), 400);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 400);
    assert_eq!(fixture.leases().await, 400);
    fixture.assert_sound().await;
}

/// One of many tasks: random calls of the store, on users and requests that all tasks share.
async fn anything(fixture: &Fixture, steps: u32) {
    let users = ["oA", "oB", "oC"].map(user);
    let verdicts = [
        LeaseEnd::Consume,
        LeaseEnd::Return,
        LeaseEnd::Suspect,
        LeaseEnd::Discard,
        LeaseEnd::Unknown,
        LeaseEnd::Void,
        LeaseEnd::Hold,
    ];
    let mut mine = Vec::new();
    for _ in 0..steps {
        let openid = users.choose(&mut rand::rng()).unwrap();
        let (what, number): (u8, u8) = (rand::rng().random_range(0..12), rand::rng().random_range(0..20));
        match what {
            0..3 if number >= 15 => {
                let uses = if number == 15 { GrantUses::LongTerm } else { GrantUses::Count(u16::from(number)) };
                fixture.grant(openid, "t1", uses, None).await;
            }
            0..3 => {
                let hours = i64::from(number % 3) - 1;
                let credentials = [form_id(&format!("f{number}"), hours), prepay_id(&format!("p{number}"), 3, 1)];
                fixture.collect(openid, &credentials).await;
            }
            3..7 => {
                let terms = LeaseTerms { keep: Duration::from_secs(1), ..if what == 3 { BRIEF } else { TERMS } };
                let message = (number < 10).then(|| request(&format!("r{number}"), 1));
                let wanted = Eligibility { template: Some(template("t1")), ..any_kind() };
                let (app, id, message_ref) = (&fixture.app, LeaseId::random(), message.as_ref());
                let new = NewLease { id, request: message_ref, wanted: &wanted };
                let reply = fixture.store.lease(app, openid, &new, &terms).await.unwrap();
                if let Leased::Lease(lease) = reply {
                    mine.push((openid.clone(), lease.id, message));
                }
            }
            7..10 => {
                let Some((openid, id, message)) = mine.pop() else {
                    continue;
                };
                let verdict = verdicts[usize::from(number) % if message.is_some() { 7 } else { 6 }];
                let next = LeaseId::random();
                if number.is_multiple_of(2) {
                    let settled = fixture.settle_next(&openid, id, verdict, message.as_ref(), next).await;
                    if let SettleReply::Next(_) = settled {
                        mine.push((openid, next, message));
                    }
                } else if let Some(message) = message {
                    fixture.settle_request(&openid, id, verdict, Some(b"ok"), &message).await;
                } else {
                    fixture.settle(&openid, id, verdict).await;
                }
            }
            10 => drop(fixture.reap(&TERMS).await),
            _ if number == 0 => drop(fixture.store.erase(&fixture.app, openid).await.unwrap()),
            _ => {
                let bucket = fixture.store.bucket_of(openid);
                fixture.store.sweep(&fixture.app, bucket, 0, Duration::ZERO).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_200_grants_is_leased_once_and_one_at_a_time() {
    let (fixture, anna) = (Arc::new(Fixture::with_cap(120).await), user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::Count(200), None).await;
    let under_way = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (fixture, anna, under_way) = (fixture.clone(), anna.clone(), under_way.clone());
        // Each task has connections of its own, like a replica.
        let other = store(&fixture.redis, 120);
        other.prepare().await.unwrap();
        tasks.spawn(async move {
            let (wanted, mut mine, mut busy) = (Eligibility::grants(template("t1")), 0, 0);
            loop {
                let id = LeaseId::random();
                let new = NewLease { id, request: None, wanted: &wanted };
                match other.lease(&fixture.app, &anna, &new, &TERMS).await.unwrap() {
                    Leased::Lease(lease) => {
                        assert!(!under_way.swap(true, Ordering::SeqCst), "two leases at once");
                        assert_eq!(lease.credential.as_str(), "t1");
                        tokio::task::yield_now().await;
                        // One in five is not sent and is returned.
                        let back = rand::rng().random_range(0..5) == 0;
                        let verdict = if back { LeaseEnd::Return } else { LeaseEnd::Consume };
                        under_way.store(false, Ordering::SeqCst);
                        let settle = Settle { id, request: None, end: verdict, outcome: None, next: None };
                        let settled = other.settle(&fixture.app, &anna, &settle, &TERMS).await;
                        assert!(matches!(settled.unwrap(), SettleReply::Done { .. }));
                        mine += u64::from(!back);
                    }
                    Leased::Busy(_) => {
                        busy += 1;
                        tokio::time::sleep(Duration::from_micros(500)).await;
                    }
                    Leased::None => return (mine, busy),
                    other => panic!("{other:?}"),
                }
            }
        });
    }
    let (mine, busy): (Vec<u64>, Vec<u64>) = tasks.join_all().await.into_iter().unzip();
    // A task that asks while the last grant is leased may see none. If that grant is returned, another task takes it.
    assert_eq!(mine.iter().sum::<u64>(), 200);
    assert!(busy.iter().sum::<u64>() > 0, "no task found the user locked");
    let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
    assert_eq!((ledger.collected, ledger.consumed, ledger.leased), (200, 200, 0));
    assert!(marks(&fixture.field(&anna).await).is_empty());
    fixture.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_16_tasks_make_random_calls() {
    let fixture = Arc::new(Fixture::with_cap(12).await);
    let done = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (fixture, done) = (fixture.clone(), done.clone());
        tokio::spawn(async move {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                fixture.assert_sound().await;
                looks += 1;
            }
            looks
        })
    };
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let fixture = fixture.clone();
        tasks.spawn(async move { anything(&fixture, 200).await });
    }
    tasks.join_all().await;
    done.store(true, Ordering::Relaxed);
    assert!(watcher.await.unwrap() > 0);
    fixture.assert_sound().await;
    let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
    assert!(ledger.collected > 200 && ledger.consumed > 0 && ledger.discarded > 0, "{ledger:?}");
}
