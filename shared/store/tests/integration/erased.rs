//! Messages in progress when their user is erased: no data of the user stays, and no message is sent twice.

use domain::GrantUses;
use store::leases::{LeaseEnd, LeaseId, Leased, Reaped, Recorded, SettleReply};

use crate::fixture::{BRIEF, Fixture, TERMS, form_id, leased, next, prepay_id, request, user};

const VERDICTS: [LeaseEnd; 5] =
    [LeaseEnd::Consume, LeaseEnd::Return, LeaseEnd::Suspect, LeaseEnd::Discard, LeaseEnd::Hold];

#[tokio::test]
async fn request_in_any_state_is_lost_once_its_user_is_erased() {
    let (anna, message) = (user("oAnna"), request("r1", 1));
    for state in ["in time", "late", "pinned", "held", "taken over"] {
        let fixture = Fixture::new().await;
        fixture.collect(&anna, &[prepay_id("p1", 3, 9)]).await;
        let terms = if matches!(state, "in time" | "held") { TERMS } else { BRIEF };
        let (first, second) = (LeaseId::random(), LeaseId::random());
        leased(fixture.ask(&anna, first, &terms, Some(&message)).await);
        match state {
            "pinned" => assert_eq!(fixture.reap(&TERMS).await.pinned, 1),
            "held" => drop(fixture.settle_request(&anna, first, LeaseEnd::Hold, None, &message).await),
            "taken over" => drop(leased(fixture.ask(&anna, second, &TERMS, Some(&message)).await)),
            _ => {}
        }
        assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), 3, "{state}");
        let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
        assert_eq!((ledger.erased, ledger.leased), (3, 0), "{state}");
        fixture.collect(&anna, &[prepay_id("p1", 3, 9), form_id("f2", 9)]).await;
        let before = fixture.everything().await;
        for id in [first, second, LeaseId::random()] {
            assert_eq!(fixture.ask(&anna, id, &TERMS, Some(&message)).await, Leased::Lost, "{state}");
            assert_eq!(fixture.ask(&anna, id, &TERMS, Some(&request("r1", 2))).await, Leased::Reused, "{state}");
        }
        let recorded = fixture.store.recorded(&fixture.app, &anna, &message).await.unwrap();
        assert_eq!(recorded, Recorded::UnderWay, "{state}");
        assert_eq!(fixture.reap(&TERMS).await, Reaped::default(), "{state}");
        assert_eq!(fixture.everything().await, before, "{state}");
        assert_eq!(fixture.lease(&anna).await.credential.as_str(), "p1", "other messages continue");
        assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), 4, "nothing is erased twice");
        assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap().erased, 7, "{state}");
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn late_outcome_becomes_the_answer_of_a_lost_request() {
    let (anna, message) = (user("oAnna"), request("r1", 1));
    for verdict in VERDICTS {
        let fixture = Fixture::new().await;
        fixture.collect(&anna, &[form_id("f1", 9)]).await;
        let id = LeaseId::random();
        leased(fixture.ask(&anna, id, &TERMS, Some(&message)).await);
        fixture.store.erase(&fixture.app, &anna).await.unwrap();
        fixture.collect(&anna, &[form_id("f1", 9), form_id("f2", 9)]).await;
        let stock = fixture.stored(&anna).await;
        let before = fixture.everything().await;
        let settle = async |id, outcome| fixture.settle_request(&anna, id, verdict, outcome, &message).await;
        assert_eq!(settle(id, None).await, SettleReply::Stale);
        assert_eq!(settle(LeaseId::random(), Some(b"no".as_slice())).await, SettleReply::Stale);
        assert_eq!(fixture.everything().await, before, "no outcome, or not by its owner");
        assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await, Leased::Lost);

        assert_eq!(settle(id, Some(b"ok")).await, SettleReply::Stale);
        let before = fixture.everything().await;
        assert!(!before.keys().any(|key| key.ends_with(":leases")), "no lost request is left");
        assert_eq!(settle(id, Some(b"again")).await, SettleReply::Stale);
        for id in [id, LeaseId::random()] {
            let finished = Leased::Finished(b"ok".to_vec());
            assert_eq!(fixture.ask(&anna, id, &TERMS, Some(&message)).await, finished, "{verdict:?}");
            assert_eq!(fixture.ask(&anna, id, &TERMS, Some(&request("r1", 2))).await, Leased::Reused);
        }
        let recorded = fixture.store.recorded(&fixture.app, &anna, &message).await.unwrap();
        assert_eq!(recorded, Recorded::Finished(b"ok".to_vec()));
        assert_eq!(fixture.everything().await, before, "{verdict:?}");
        assert_eq!(fixture.stored(&anna).await, stock, "{verdict:?}");
        let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
        assert_eq!((ledger.erased, ledger.consumed + ledger.discarded, ledger.leased), (1, 0, 0), "{verdict:?}");
        fixture.assert_sound().await;
        fixture.advance(4).await;
        assert!(
            !leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await).taken_over,
            "a new message"
        );
    }
}

#[tokio::test]
async fn settle_for_an_erased_user_gets_no_next_credential() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 9)]).await;
    let id = LeaseId::random();
    leased(fixture.ask(&anna, id, &TERMS, Some(&message)).await);
    fixture.store.erase(&fixture.app, &anna).await.unwrap();
    fixture.collect(&anna, &[form_id("f2", 9)]).await;
    for _ in 0..2 {
        let settled = fixture.settle_next(&anna, id, LeaseEnd::Discard, Some(&message), LeaseId::random()).await;
        assert_eq!(settled, SettleReply::Stale);
    }
    assert_eq!((fixture.stored(&anna).await, fixture.leases().await), (vec![("f2".to_owned(), 1, false)], 0));
    let reply = fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await;
    assert_eq!(reply, Leased::Finished(b"none left".to_vec()));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn repeated_settle_finds_no_next_lease_after_an_erasure() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    for request in [None, Some(request("r1", 1))] {
        fixture.collect(&anna, &[form_id("f1", 9), form_id("f2", 9)]).await;
        let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, request.as_ref()).await);
        let following = LeaseId::random();
        next(fixture.settle_next(&anna, lease.id, LeaseEnd::Discard, request.as_ref(), following).await);
        assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), 1);
        let before = fixture.everything().await;
        let settled = fixture.settle_next(&anna, lease.id, LeaseEnd::Discard, request.as_ref(), following).await;
        assert_eq!(settled, SettleReply::Stale);
        assert_eq!(fixture.everything().await, before);
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn lost_request_is_forgotten_after_a_day_and_may_be_sent_again() {
    let (fixture, anna, message) = (Fixture::new().await, user("oAnna"), request("r1", 1));
    fixture.collect(&anna, &[form_id("f1", 99)]).await;
    leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
    fixture.store.erase(&fixture.app, &anna).await.unwrap();
    fixture.collect(&anna, &[form_id("f1", 99)]).await;
    let ask = async || fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await;
    for hours in [23, 1] {
        assert_eq!(fixture.reap(&TERMS).await, Reaped::default());
        assert_eq!(ask().await, Leased::Lost);
        fixture.advance(hours).await;
    }
    assert_eq!(ask().await, Leased::Lost, "until the reaper runs");
    assert_eq!(fixture.reap(&TERMS).await, Reaped::default(), "no credential is affected");
    assert!(!fixture.everything().await.keys().any(|key| key.ends_with(":leases")));
    fixture.assert_sound().await;
    assert_eq!(fixture.store.recorded(&fixture.app, &anna, &message).await.unwrap(), Recorded::Nothing);
    let lease = leased(ask().await);
    assert_eq!((lease.credential.as_str(), lease.taken_over, lease.suspect), ("f1", false, false));
    assert_eq!(fixture.leases().await, 1);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn erasure_leaves_nothing_of_the_user_in_redis() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bob = fixture.neighbour(&anna);
    let contains = |bytes: &[u8]| bytes.windows(5).any(|window| window == anna.as_str().as_bytes());
    let places = async || {
        let (mut keys, mut fields, mut values) = (0, 0, 0);
        for (key, entries) in fixture.everything().await {
            keys += usize::from(contains(key.as_bytes()));
            fields += entries.keys().filter(|field| contains(field)).count();
            values += entries.values().filter(|value| contains(value)).count();
        }
        (keys, fields, values)
    };
    for owner in [&anna, &bob] {
        let credentials: Vec<_> = (1..8).map(|number| form_id(&format!("f{number}"), 9)).collect();
        fixture.collect(owner, &credentials).await;
        fixture.lease(owner).await;
        let ends = [None, Some((LeaseEnd::Hold, None)), Some((LeaseEnd::Consume, Some(b"ok".as_slice())))];
        for (name, end) in ["open", "held", "done"].into_iter().zip(ends) {
            let (message, id) = (request(name, 1), LeaseId::random());
            leased(fixture.ask(owner, id, &TERMS, Some(&message)).await);
            if let Some((verdict, outcome)) = end {
                fixture.settle_request(owner, id, verdict, outcome, &message).await;
            }
        }
        let (message, over) = (request("over", 1), LeaseId::random());
        leased(fixture.ask(owner, LeaseId::random(), &BRIEF, Some(&message)).await);
        leased(fixture.ask(owner, over, &TERMS, Some(&message)).await);
        next(fixture.settle_next(owner, over, LeaseEnd::Discard, Some(&message), LeaseId::random()).await);
    }
    assert_eq!(places().await, (0, 1, 4), "no key contains the openid; one field and four leases do");
    let bobs = fixture.stored(&bob).await;
    // Seven, of which one was consumed and one discarded.
    assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), 5);
    assert_eq!(places().await, (0, 0, 0));
    assert_eq!((fixture.stored(&bob).await, fixture.leases().await), (bobs, 4), "other users keep their credentials");
    for name in ["open", "held", "over"] {
        assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&request(name, 1))).await, Leased::Lost);
    }
    let done = fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&request("done", 1))).await;
    assert_eq!(done, Leased::Finished(b"ok".to_vec()));
    fixture.assert_sound().await;
    fixture.advance(1).await;
    assert_eq!(fixture.reap(&TERMS).await, Reaped { pinned: 2, suspect: 1, ..Reaped::default() }, "only leases of Bob");
    assert_eq!(places().await, (0, 0, 0));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn erasure_removes_leased_grants_and_the_send_lock() {
    for uses in [GrantUses::Count(40), GrantUses::LongTerm] {
        for verdict in [LeaseEnd::Consume, LeaseEnd::Unknown, LeaseEnd::Return, LeaseEnd::Void] {
            let (fixture, anna) = (Fixture::new().await, user("oAnna"));
            fixture.grant(&anna, "t1", uses, None).await;
            let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
            let all = if uses == GrantUses::LongTerm { 1 } else { 40 };
            assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), all);
            assert_eq!(fixture.store.users(&fixture.app).await.unwrap(), 0, "the send lock is removed too");
            fixture.grant(&anna, "t1", GrantUses::Count(1), None).await;
            let other = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
            let before = fixture.everything().await;
            assert_eq!(fixture.settle(&anna, lease.id, verdict).await, SettleReply::Stale);
            assert_eq!(fixture.everything().await, before);
            fixture.settle(&anna, other.id, LeaseEnd::Consume).await;
            let ledger = fixture.store.ledger(&fixture.app).await.unwrap();
            assert_eq!((ledger.erased, ledger.consumed, ledger.available()), (all.into(), 1, 0), "{verdict:?}");
            fixture.assert_sound().await;
        }
    }
}
