//! What a user decided about a template counts by the time of the decision, in whatever order WeChat's events arrive.

use std::collections::BTreeSet;

use deadpool_redis::redis;
use domain::{GrantUses, OpenId};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::Index;
use store::credentials::{OnceKey, Packed};
use store::keys::BucketKeys;
use store::leases::{LeaseEnd, LeaseId};
use store::stock::Ledger;

use crate::fixture::{DECIDED, Fixture, TERMS, cases, leased, template, user};

/// A decision at this second. It has the dedup key that its event would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Decision {
    Accept(u32),
    Reject(u32),
}

use Decision::{Accept, Reject};

impl Decision {
    fn once(self) -> OnceKey {
        let (kind, at) = match self {
            Accept(at) => (1, at),
            Reject(at) => (2, at),
        };
        let mut key = [kind; 16];
        key[..4].copy_from_slice(&at.to_be_bytes());
        OnceKey(key)
    }

    /// Reports the decision. Returns the number of uses that it added or removed; `None` if it does not count.
    async fn report(self, fixture: &Fixture, of: &OpenId) -> Option<u32> {
        match self {
            Accept(at) => fixture.accept(of, "t1", self.once(), DECIDED + at).await.then_some(1),
            Reject(at) => {
                let (app, once) = (&fixture.app, self.once());
                fixture.store.void(app, of, &template("t1"), once, DECIDED + at).await.unwrap()
            }
        }
    }
}

async fn uses(fixture: &Fixture, of: &OpenId) -> u32 {
    fixture.stored(of).await.iter().map(|(_, uses, _)| u32::from(*uses)).sum()
}

async fn reported(decisions: &[Decision]) -> (Fixture, OpenId) {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    for decision in decisions {
        decision.report(&fixture, &anna).await;
    }
    (fixture, anna)
}

#[tokio::test]
async fn acceptance_older_than_a_known_rejection_counts_no_more() {
    let (fixture, anna) = reported(&[Reject(20)]).await;
    let rejected_after =
        async |at| fixture.store.rejected_after(&fixture.app, &anna, &template("t1"), DECIDED + at).await.unwrap();
    assert_eq!((rejected_after(19).await, rejected_after(20).await, rejected_after(21).await), (true, false, false));
    let before = fixture.everything().await;
    assert_eq!(Accept(19).report(&fixture, &anna).await, None);
    assert_eq!(fixture.everything().await, before);
    assert_eq!(Accept(21).report(&fixture, &anna).await, Some(1));
    assert_eq!(Accept(20).report(&fixture, &anna).await, Some(1), "in the same second, the order of arrival counts");
    assert!(fixture.accept(&anna, "t2", OnceKey([9; 16]), DECIDED).await, "another template");
    assert!(fixture.accept(&user("oBob"), "t1", OnceKey([9; 16]), DECIDED).await, "another user");
    fixture.advance(25).await;
    assert_eq!(Accept(19).report(&fixture, &anna).await, Some(1), "the rejection is forgotten after a day");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn acceptance_newer_than_a_late_rejection_stays() {
    let (fixture, anna) = reported(&[Accept(10), Accept(11), Accept(30), Accept(31), Accept(32)]).await;
    assert_eq!(Reject(20).report(&fixture, &anna).await, Some(2));
    assert_eq!(uses(&fixture, &anna).await, 3);
    assert_eq!(Reject(15).report(&fixture, &anna).await, Some(0), "a later one is known");
    assert_eq!(Reject(31).report(&fixture, &anna).await, Some(2));
    assert_eq!(uses(&fixture, &anna).await, 1);
    let before = fixture.everything().await;
    for again in [Reject(20), Reject(15), Reject(31), Accept(10), Accept(32), Accept(30)] {
        assert_eq!(again.report(&fixture, &anna).await, None, "{again:?}");
    }
    assert_eq!(fixture.everything().await, before);
    let wanted = Ledger { collected: 5, discarded: 4, ..Ledger::default() };
    assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap(), wanted);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn at_most_as_many_uses_stay_as_are_left() {
    for end in [LeaseEnd::Consume, LeaseEnd::Return] {
        let (fixture, anna) = reported(&[Accept(30), Accept(31)]).await;
        let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
        assert_eq!(Reject(20).report(&fixture, &anna).await, Some(0));
        assert_eq!(uses(&fixture, &anna).await, 1, "the other is leased");
        fixture.settle(&anna, lease.id, end).await;
        assert_eq!(uses(&fixture, &anna).await, 1 + u32::from(end == LeaseEnd::Return));
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn long_term_subscription_stays_if_the_user_accepted_again() {
    for (at, uses_left) in [(20, 71), (40, 0)] {
        let (fixture, anna) = reported(&[Accept(30)]).await;
        fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await;
        fixture.grant(&anna, "t1", GrantUses::Count(69), None).await;
        assert_eq!(Reject(at).report(&fixture, &anna).await, Some(71 - uses_left));
        assert_eq!(uses(&fixture, &anna).await, uses_left, "rejected at {at}");
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn times_of_decisions_are_few_and_expire() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let decided = BucketKeys::new(&fixture.app, fixture.store.bucket_of(&anna)).decided(&anna, &template("t1"));
    let (size, ttl) = (redis::cmd("ZCARD").arg(&decided).to_owned(), redis::cmd("TTL").arg(&decided).to_owned());
    Reject(0).report(&fixture, &anna).await;
    for at in 1..200 {
        assert_eq!(Accept(at).report(&fixture, &anna).await, Some(1));
    }
    assert_eq!(fixture.raw::<u32>(&size).await, 128);
    assert!(fixture.raw::<i64>(&ttl).await > 23 * 3600, "the rejection is kept for a day");
    assert_eq!(Accept(0).report(&fixture, &anna).await, Some(1));
    let rejected: f64 = fixture.raw(redis::cmd("ZSCORE").arg(&decided).arg("reject")).await;
    assert_eq!(rejected, f64::from(DECIDED));

    let bob = user("oBob");
    let key = BucketKeys::new(&fixture.app, fixture.store.bucket_of(&bob)).decided(&bob, &template("t1"));
    Accept(1).report(&fixture, &bob).await;
    let kept: i64 = fixture.raw(redis::cmd("TTL").arg(&key)).await;
    assert!((1..=3600).contains(&kept), "{kept}");
    // Without the time of the acceptance, the rejection revokes everything.
    fixture.advance(2).await;
    assert_eq!(Reject(0).report(&fixture, &bob).await, Some(1));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn nothing_in_redis_names_an_erased_user() {
    let (fixture, anna) = reported(&[Accept(10), Reject(20), Accept(30)]).await;
    fixture.store.erase(&fixture.app, &anna).await.unwrap();
    let named = |bytes: &[u8]| bytes.windows(5).any(|window| window == b"oAnna");
    for (key, value) in fixture.everything().await {
        assert!(!named(key.as_bytes()), "{key}");
        assert!(!value.iter().any(|(field, value)| named(field) || named(value)), "{key}");
    }
    assert_eq!(Accept(30).report(&fixture, &anna).await, None, "a repeated event brings nothing back");
}

/// Decisions at different seconds.
fn decisions() -> impl Strategy<Value = BTreeSet<Decision>> {
    let times = btree_set(0..100_u32, 1..12);
    (times, vec(prop::bool::weighted(0.7), 12)).prop_map(|(times, accepted)| {
        times.into_iter().zip(accepted).map(|(at, accepted)| if accepted { Accept(at) } else { Reject(at) }).collect()
    })
}

#[test]
fn acceptances_after_the_last_rejection_count_in_any_order() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (fixture, anna) = (runtime.block_on(Fixture::new()), user("oAnna"));
    let bucket = fixture.store.bucket_of(&anna);
    let repeated = vec(any::<Index>(), 0..20);
    proptest!(cases(200, 5000), |(decisions in decisions(), repeated in repeated, together in any::<bool>())| {
        let all: Vec<_> = decisions.iter().copied().collect();
        let last = all.iter().filter_map(|one| if let Reject(at) = one { Some(*at) } else { None }).max();
        let counts = |one: &&Decision| matches!(one, Accept(at) if last.is_none_or(|last| *at > last));
        let wanted = all.iter().filter(counts).count() as u32;
        // Some of them several times in any order, then all of them.
        let sequence: Vec<_> = repeated.iter().map(|which| which.get(&all)).chain(all.iter().rev()).collect();
        let accepted: Vec<_> = sequence
            .iter()
            .filter_map(|one| match one {
                Accept(at) if together => Some(Packed::accept(anna.clone(), template("t1"), one.once(), DECIDED + at)),
                _ => None,
            })
            .collect();
        runtime.block_on(async {
            fixture.raw::<()>(&redis::cmd("FLUSHALL")).await;
            // By one script.
            fixture.store.collect(&fixture.app, bucket, &accepted).await.unwrap();
            for decision in sequence {
                decision.report(&fixture, &anna).await;
            }
            assert_eq!(uses(&fixture, &anna).await, wanted);
            fixture.assert_sound().await;
        });
    });
}
