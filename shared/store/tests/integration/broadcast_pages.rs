//! The messages of a broadcast: each user leaves the audience once, a message keeps its credential while its outcome is
//! unknown, and it ends once.

use std::collections::HashSet;
use std::sync::Arc;

use domain::{MAX_ID, MAX_OPENID};
use store::broadcast::audience::{Choice, Recipient};
use store::broadcast::pages::{Next, Settlement};
use store::leases::{LeaseEnd, LeaseId, LeaseTerms};
use store::stock::Ledger;
use tokio::task::JoinSet;

use crate::broadcast::{Broadcast, MANY, end};
use crate::fixture::{BRIEF, Fixture, HOUR, TERMS, any_kind, form_id, prepay_id, timeless, user};

const VERDICTS: [LeaseEnd; 4] = [LeaseEnd::Consume, LeaseEnd::Return, LeaseEnd::Suspect, LeaseEnd::Discard];

fn all_next() -> [Next; 4] {
    [end("FAILED 1"), Next::Again, Next::Hold, Next::Credential(LeaseId::random(), "CREDENTIALS_DEAD".into())]
}

async fn ledger(fixture: &Fixture) -> Ledger {
    fixture.store.ledger(&fixture.app).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_300_users_is_taken_once_by_8_concurrent_tasks() {
    let fixture = Arc::new(Fixture::new().await);
    let bucket = fixture.store.bucket_of(&user("oAnna"));
    let users = fixture.crowd(bucket, 300).await;
    for everyone in [false, true] {
        let broadcast = Broadcast::new(&fixture, everyone).await;
        if everyone {
            broadcast.snapshot_all().await;
        } else {
            broadcast.add(&users, &[]).await;
        }
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let (fixture, id, choice) = (fixture.clone(), broadcast.id.clone(), broadcast.choice.clone());
            tasks.spawn(async move {
                let (mut mine, mut taken) = (Vec::new(), 0);
                loop {
                    let owner = LeaseId::random();
                    let part = fixture.store.part(&fixture.app, &id, bucket);
                    let page = part.take_page(owner, 7, MANY, &choice, &TERMS).await.unwrap();
                    if page.taken == 0 {
                        return (mine, taken);
                    }
                    taken += page.taken;
                    mine.extend(page.ready.into_iter().map(|ready| (ready.openid, ready.lease.credential)));
                }
            });
        }
        let (mine, taken): (Vec<_>, Vec<_>) = tasks.join_all().await.into_iter().unzip();
        let mine = mine.concat();
        assert_eq!((mine.len(), taken.iter().sum()), (300, 300));
        assert_eq!(mine.iter().map(|(openid, _)| openid).collect::<HashSet<_>>().len(), 300);
        assert_eq!(mine.iter().map(|(_, credential)| credential).collect::<HashSet<_>>().len(), 300);
        let (todo, flight, _) = broadcast.places().await;
        assert_eq!((todo.len(), flight.len()), (0, 300));
    }
    assert_eq!(ledger(&fixture).await.leased, 600);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn message_has_credential_and_data_and_its_ending_is_counted() {
    let (fixture, anna, bob) = (Fixture::new().await, user("oAnna"), user("oBob"));
    fixture.collect(&anna, &[form_id("f1", 9), prepay_id("p1", 2, 5)]).await;
    let broadcast = Broadcast::new(&fixture, false).await;
    for (openid, data) in [(&anna, b"hers".to_vec()), (&bob, Vec::new())] {
        let recipient = Recipient { openid: openid.clone(), data };
        broadcast.add_to(fixture.store.bucket_of(openid), &[recipient], &[]).await;
    }
    broadcast.start().await;
    let owner = LeaseId::random();
    let ready = broadcast.take_all(owner, &TERMS).await;
    assert_eq!(ready.len(), 1, "Bob has no credential");
    assert_eq!((&ready[0].openid, ready[0].data.as_slice()), (&anna, b"hers".as_slice()));
    let lease = &ready[0].lease;
    assert_eq!((lease.id, lease.credential.as_str(), lease.taken_over), (owner, "p1", false));
    let tally = broadcast.tally().await;
    assert_eq!((tally.audience, tally.left(), tally.in_flight, tally.ended("NO_CREDENTIAL")), (2, 1, 1, 1));
    assert_eq!(broadcast.settle(&anna, owner, LeaseEnd::Consume, end("delivered")).await, None);
    let tally = broadcast.tally().await;
    assert_eq!((tally.audience, tally.left(), tally.in_flight, tally.ended("delivered")), (2, 0, 0, 1));
    assert!(fixture.store.touched(&fixture.app, &anna).await.unwrap().is_some());
    assert_eq!(ledger(&fixture).await, Ledger { collected: 3, consumed: 1, ..Ledger::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn each_ending_is_returned_once_by_the_call_that_recorded_it() {
    let (fixture, anna, bob) = (Fixture::new().await, user("oAnna"), user("oBob"));
    fixture.collect(&anna, &[form_id("f1", 9)]).await;
    let broadcast = Broadcast::new(&fixture, false).await;
    broadcast.add(&[anna.clone(), bob], &[]).await;
    broadcast.start().await;
    let (owner, mut endings) = (LeaseId::random(), Vec::new());
    for bucket in fixture.store.buckets() {
        endings.extend(broadcast.take(bucket, owner, 64, &TERMS).await.endings);
    }
    assert_eq!(endings, [("NO_CREDENTIAL".to_owned(), 1)]);
    let bucket = fixture.store.bucket_of(&anna);
    let settle = async |owner, next| {
        let settlement = Settlement { openid: anna.clone(), owner, verdict: LeaseEnd::Consume, next, msgid: None };
        broadcast.part(bucket).settle(&[settlement], &broadcast.choice, &TERMS).await.unwrap().endings
    };
    assert_eq!(settle(LeaseId::random(), end("delivered")).await, [], "another owner cannot end the message");
    assert_eq!(settle(owner, end("delivered")).await, [("delivered".to_owned(), 1)]);
    assert_eq!(settle(owner, end("delivered")).await, [], "it is returned once");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn recently_messaged_users_are_skipped_and_keep_their_stock() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 50), form_id("f2", 50), form_id("f3", 50)]).await;
    let lease = fixture.lease(&anna).await;
    fixture.settle(&anna, lease.id, LeaseEnd::Consume).await;
    fixture.advance(3).await;
    let stock = fixture.stored(&anna).await;
    for (hours, skipped) in [(4, true), (2, false)] {
        let mut broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
        broadcast.choice = Choice { wanted: any_kind(), min_interval: (hours * HOUR) as u32 };
        let ready = broadcast.take_all(LeaseId::random(), &TERMS).await;
        assert_eq!((ready.is_empty(), broadcast.tally().await.ended("RECENTLY_MESSAGED")), (skipped, skipped.into()));
        assert_eq!(fixture.stored(&anna).await == stock, skipped);
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn message_with_unknown_outcome_keeps_its_credential() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bucket = fixture.store.bucket_of(&anna);
    fixture.collect(&anna, &[form_id("f1", 9), form_id("f2", 10)]).await;
    let broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
    let first = LeaseId::random();
    assert_eq!(broadcast.take_all(first, &TERMS).await.len(), 1);
    let over = broadcast.take_over(bucket, LeaseId::random(), std::slice::from_ref(&anna)).await;
    assert!(
        over.ready.is_empty() && over.wait.is_some_and(|wait| wait <= TERMS.duration),
        "its owner still has the lease"
    );
    broadcast.settle(&anna, first, LeaseEnd::Hold, Next::Hold).await;
    // Single messages continue, and no call leases a second credential for this message.
    let single = fixture.lease(&anna).await;
    assert_eq!(single.credential.as_str(), "f2");
    fixture.settle(&anna, single.id, LeaseEnd::Consume).await;
    fixture.collect(&anna, &[form_id("f0", 1), form_id("f1", 9)]).await;
    assert!(broadcast.take_all(LeaseId::random(), &TERMS).await.is_empty());
    fixture.advance(5).await;
    fixture.reap(&TERMS).await;
    let second = LeaseId::random();
    let over = broadcast.take_over(bucket, second, std::slice::from_ref(&anna)).await;
    assert_eq!(over.ready.len(), 1);
    let lease = &over.ready[0].lease;
    assert_eq!((lease.credential.as_str(), lease.taken_over, over.wait), ("f1", true, None));
    // The first owner is stale now.
    let before = fixture.everything().await;
    for verdict in VERDICTS {
        for next in all_next() {
            assert_eq!(broadcast.settle(&anna, first, verdict, next).await, None);
        }
    }
    assert_eq!(fixture.everything().await, before);
    broadcast.settle(&anna, second, LeaseEnd::Consume, end("delivered")).await;
    assert_eq!(broadcast.tally().await.ended("delivered"), 1);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn reaped_message_is_not_sent_again_however_its_owner_settles() {
    let anna = user("oAnna");
    for (credential, next) in all_next()
        .into_iter()
        .flat_map(|next| [form_id("f1", 30), prepay_id("f1", 3, 30)].map(|credential| (credential, next.clone())))
    {
        let fixture = Fixture::new().await;
        fixture.collect(&anna, &[credential, form_id("f2", 40)]).await;
        let broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
        let owner = LeaseId::random();
        broadcast.take_all(owner, &TERMS).await;
        for _ in 0..2 {
            fixture.advance(4).await;
            fixture.reap(&TERMS).await;
        }
        assert_eq!(fixture.leases().await, 0, "the reaper ended the lease");
        let stock = fixture.stored(&anna).await;
        assert_eq!(broadcast.settle(&anna, owner, LeaseEnd::Return, next.clone()).await, None);
        let ending = match next {
            Next::End(ending) | Next::Credential(_, ending) => ending,
            Next::Again | Next::Hold => "UNKNOWN".to_owned(),
        };
        let tally = broadcast.tally().await;
        assert_eq!((tally.ended(&ending), tally.left()), (1, 0), "{ending}");
        assert!(broadcast.take_all(LeaseId::random(), &TERMS).await.is_empty());
        assert_eq!((fixture.stored(&anna).await, fixture.leases().await), (stock, 0));
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn takeover_of_a_reaped_message_ends_it_as_unknown_once() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 30)]).await;
    let broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
    broadcast.take_all(LeaseId::random(), &TERMS).await;
    for _ in 0..2 {
        fixture.advance(4).await;
        fixture.reap(&TERMS).await;
    }
    let over =
        broadcast.take_over(fixture.store.bucket_of(&anna), LeaseId::random(), &[anna.clone(), anna.clone()]).await;
    assert!(over.ready.is_empty() && over.wait.is_none());
    let tally = broadcast.tally().await;
    assert_eq!((tally.ended("UNKNOWN"), tally.left()), (1, 0));
    assert_eq!(ledger(&fixture).await, Ledger { collected: 1, consumed: 1, unknown: 1, ..Ledger::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn repeated_settle_changes_nothing_and_returns_the_same_lease() {
    let anna = user("oAnna");
    for verdict in VERDICTS {
        for next in all_next() {
            let fixture = Fixture::new().await;
            fixture.collect(&anna, &[form_id("f1", 1), prepay_id("p1", 2, 2), form_id("f3", 3)]).await;
            let broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
            let owner = LeaseId::random();
            broadcast.take_all(owner, &BRIEF).await;
            let settle = async || broadcast.settle(&anna, owner, verdict, next.clone()).await.map(timeless);
            let first = settle().await;
            assert_eq!(first.is_some(), matches!(next, Next::Credential(..)));
            let before = fixture.everything().await;
            assert_eq!(settle().await, first);
            // A repeated hold restarts its time, so the stored time may differ by a moment.
            assert!(next == Next::Hold || fixture.everything().await == before, "{verdict:?} {next:?}");
            fixture.assert_sound().await;
        }
    }
}

#[tokio::test]
async fn user_who_is_twice_in_one_call_is_settled_once() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[prepay_id("p1", 3, 2)]).await;
    let broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
    let owner = LeaseId::random();
    broadcast.take_all(owner, &TERMS).await;
    let twice = [end("delivered"), end("FAILED 1")].map(|next| Settlement {
        openid: anna.clone(),
        owner,
        verdict: LeaseEnd::Consume,
        next,
        msgid: None,
    });
    broadcast.try_settle(fixture.store.bucket_of(&anna), &twice, &TERMS).await.unwrap();
    let tally = broadcast.tally().await;
    assert_eq!((tally.ended("delivered"), tally.ended("FAILED 1"), tally.left()), (1, 0, 0));
    assert_eq!(ledger(&fixture).await.consumed, 1);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn call_with_an_impossible_lease_end_changes_nothing() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bob = fixture.neighbour(&anna);
    for owner in [&anna, &bob] {
        fixture.collect(owner, &[form_id("f1", 1), form_id("f2", 2)]).await;
    }
    let broadcast = Broadcast::to(&fixture, &[anna.clone(), bob.clone()]).await;
    let owner = LeaseId::random();
    assert_eq!(broadcast.take_all(owner, &TERMS).await.len(), 2);
    // So that there are expired credentials to drop too.
    fixture.advance(2).await;
    let before = fixture.everything().await;
    for next in all_next().into_iter().filter(|next| *next != Next::Hold) {
        let page = [(&anna, LeaseEnd::Consume, end("delivered")), (&bob, LeaseEnd::Hold, next)]
            .map(|(openid, verdict, next)| Settlement { openid: openid.clone(), owner, verdict, next, msgid: None });
        assert!(broadcast.try_settle(fixture.store.bucket_of(&anna), &page, &TERMS).await.is_err());
        assert_eq!(fixture.everything().await, before);
    }
    fixture.assert_sound().await;
}

#[tokio::test]
async fn page_of_64_longest_names_fits_into_one_call_of_each_kind() {
    let (fixture, long) = (Fixture::new().await, "o".repeat(MAX_OPENID - 8));
    let bucket = fixture.store.bucket_of(&user("oAnna"));
    let users: Vec<_> = (0..)
        .map(|number| user(&format!("{long}{number:08}")))
        .filter(|openid| fixture.store.bucket_of(openid) == bucket)
        .take(64)
        .collect();
    let id = "i".repeat(MAX_ID - 8);
    for (number, openid) in users.iter().enumerate() {
        fixture
            .collect(openid, &[form_id(&format!("{id}{number:08}"), 9), form_id(&format!("{number:08}{id}"), 10)])
            .await;
    }
    let broadcast = Broadcast::to(&fixture, &users).await;
    let (first, second) = (LeaseId::random(), LeaseId::random());
    assert_eq!(broadcast.take(bucket, first, 1000, &BRIEF).await.ready.len(), 64);
    let flying = broadcast.part(bucket).in_flight().await.unwrap();
    assert_eq!(broadcast.take_over(bucket, second, &flying).await.ready.len(), 64);
    let settle = async |owner, verdict, next: &dyn Fn() -> Next| {
        let settlements: Vec<_> = users
            .iter()
            .map(|openid| Settlement { openid: openid.clone(), owner, verdict, next: next(), msgid: None })
            .collect();
        broadcast.try_settle(bucket, &settlements, &TERMS).await.unwrap().len()
    };
    let third = LeaseId::random();
    assert_eq!(settle(second, LeaseEnd::Discard, &|| Next::Credential(third, "CREDENTIALS_DEAD".into())).await, 64);
    assert_eq!(settle(third, LeaseEnd::Suspect, &|| end("UNKNOWN")).await, 0);
    let tally = broadcast.tally().await;
    assert_eq!((tally.ended("UNKNOWN"), tally.left(), fixture.leases().await), (64, 0, 0));
    assert_eq!(broadcast.undelivered(10).await.len(), 64);
    assert_eq!(ledger(&fixture).await, Ledger { collected: 128, discarded: 64, ..Ledger::default() });
    fixture.assert_sound().await;
}

#[tokio::test]
async fn message_ends_without_a_next_credential_beyond_the_margin() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 9), form_id("f2", 0)]).await;
    let broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
    let terms = LeaseTerms { margin: TERMS.margin * 6, ..TERMS };
    let (owner, next) = (LeaseId::random(), LeaseId::random());
    assert_eq!(broadcast.take_all(owner, &terms).await[0].lease.credential.as_str(), "f1");
    let next = Next::Credential(next, "CREDENTIALS_DEAD 41028".into());
    let settlement = Settlement { openid: anna.clone(), owner, verdict: LeaseEnd::Discard, next, msgid: None };
    let leases = broadcast.try_settle(fixture.store.bucket_of(&anna), &[settlement], &terms).await.unwrap();
    assert!(leases.is_empty());
    assert_eq!(broadcast.tally().await.ended("CREDENTIALS_DEAD 41028"), 1);
    assert_eq!(fixture.stored(&anna).await, [("f2".to_owned(), 1, false)]);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn owner_fetches_a_lost_page_again_unless_it_was_held_since() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bucket = fixture.store.bucket_of(&anna);
    fixture.collect(&anna, &[form_id("f1", 9)]).await;
    let broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
    let owner = LeaseId::random();
    let first = broadcast.take(bucket, owner, 1, &TERMS).await.ready.remove(0).lease;
    let again = async || broadcast.take_over(bucket, owner, std::slice::from_ref(&anna)).await;
    for _ in 0..2 {
        let over = again().await;
        assert_eq!((timeless(over.ready[0].lease.clone()), over.wait), (timeless(first.clone()), None));
    }
    // From now on the message may have been sent, so even its owner takes it over.
    broadcast.settle(&anna, owner, LeaseEnd::Hold, Next::Hold).await;
    let over = again().await;
    assert!(over.ready[0].lease.taken_over);
    // The same holds after its lease has expired. The credential is held for the message as for any other.
    fixture.advance(1).await;
    assert_eq!(fixture.reap(&TERMS).await.pinned, 1);
    assert!(again().await.ready[0].lease.taken_over);
    fixture.advance(1).await;
    assert_eq!(fixture.reap(&TERMS).await.pinned, 1, "it is held again and not released immediately");
    fixture.assert_sound().await;
}
