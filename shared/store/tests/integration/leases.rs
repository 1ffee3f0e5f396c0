//! The guarantees of a lease: one credential for one message, also for repeated and late calls.

use store::leases::{LeaseEnd, LeaseId, Leased, Settle, SettleReply};

use crate::fixture::{BRIEF, Fixture, TERMS, form_id, leased, next, prepay_id, request, user};

const VERDICTS: [LeaseEnd; 4] = [LeaseEnd::Consume, LeaseEnd::Return, LeaseEnd::Suspect, LeaseEnd::Discard];

#[tokio::test]
async fn form_id_is_leased_once_and_removed_when_it_is_consumed() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 1)]).await;
    let lease = fixture.lease(&anna).await;
    assert_eq!((lease.credential.as_str(), lease.messages_left), ("f1", 0));
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, None).await, Leased::None);
    assert_eq!(fixture.stored(&anna).await, [("f1".to_owned(), 0, false)], "known while it is in flight");
    assert_eq!(fixture.settle(&anna, lease.id, LeaseEnd::Consume).await, SettleReply::Done { messages_left: 0 });
    assert_eq!(fixture.stored(&anna).await, []);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn prepay_id_is_leased_as_often_as_it_has_uses() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    for uses in [1, 3, 31] {
        fixture.collect(&anna, &[prepay_id("p1", uses, 1)]).await;
        let mut leases = Vec::new();
        for left in (0..uses).rev() {
            let lease = fixture.lease(&anna).await;
            assert_eq!((lease.credential.as_str(), lease.messages_left), ("p1", u32::from(left)));
            leases.push(lease.id);
        }
        assert_eq!(fixture.ask(&anna, LeaseId::random(), &TERMS, None).await, Leased::None);
        for id in leases {
            fixture.settle(&anna, id, LeaseEnd::Consume).await;
            fixture.assert_sound().await;
        }
        assert_eq!(fixture.stored(&anna).await, []);
    }
}

#[tokio::test]
async fn soonest_to_expire_goes_first_unless_within_the_margin() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let credentials = [form_id("f5", 5), form_id("f1", 1), prepay_id("p3", 2, 3), form_id("f9", 9), form_id("f0", 0)];
    fixture.collect(&anna, &credentials).await;
    let order: Vec<_> = fixture.stored(&anna).await.into_iter().map(|(id, ..)| id).collect();
    assert_eq!(order, ["f0", "f1", "p3", "f5", "f9"]);
    // f0 has half an hour left.
    let terms = store::leases::LeaseTerms { margin: std::time::Duration::from_secs(40 * 60), ..TERMS };
    for id in ["f1", "p3", "p3", "f5", "f9"] {
        assert_eq!(leased(fixture.ask(&anna, LeaseId::random(), &terms, None).await).credential.as_str(), id);
    }
    assert_eq!(fixture.ask(&anna, LeaseId::random(), &terms, None).await, Leased::None);
    assert_eq!(fixture.lease(&anna).await.credential.as_str(), "f0");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn expired_credential_is_not_leased_and_counts_as_expired() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[prepay_id("p1", 3, 1), form_id("f1", 2)]).await;
    let in_flight = fixture.lease(&anna).await;
    fixture.advance(2).await;
    assert_eq!(fixture.lease(&anna).await.credential.as_str(), "f1");
    assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap().expired, 2, "only the uses that were not in flight");
    fixture.settle(&anna, in_flight.id, LeaseEnd::Return).await;
    assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap().expired, 3);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn repeated_lease_returns_the_same_and_changes_nothing() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 1), form_id("f2", 2)]).await;
    for request in [None, Some(request("r1", 1))] {
        let id = LeaseId::random();
        let first = leased(fixture.ask(&anna, id, &TERMS, request.as_ref()).await);
        let before = fixture.everything().await;
        let second = leased(fixture.ask(&anna, id, &TERMS, request.as_ref()).await);
        assert_eq!((second.credential, second.messages_left), (first.credential, first.messages_left));
        assert_eq!(fixture.everything().await, before);
    }
}

#[tokio::test]
async fn repeated_settle_changes_nothing() {
    for verdict in VERDICTS {
        let (fixture, anna) = (Fixture::new().await, user("oAnna"));
        fixture.collect(&anna, &[form_id("f1", 1), prepay_id("p1", 3, 2), form_id("f3", 3)]).await;
        for request in [None, Some(request("r1", 1))] {
            let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, request.as_ref()).await);
            let settle = async || {
                let (app, request) = (&fixture.app, request.as_ref());
                let settle = Settle { id: lease.id, request, end: verdict, outcome: Some(b"ok"), next: None };
                fixture.store.settle(app, &anna, &settle, &TERMS).await.unwrap()
            };
            assert!(matches!(settle().await, SettleReply::Done { .. }));
            let before = fixture.everything().await;
            assert_eq!(settle().await, SettleReply::Stale);
            assert_eq!(fixture.everything().await, before, "{verdict:?}");
        }
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn repeated_settle_returns_the_same_next_lease() {
    for verdict in VERDICTS {
        let (fixture, anna) = (Fixture::new().await, user("oAnna"));
        fixture.collect(&anna, &[form_id("f1", 1), prepay_id("p1", 2, 2), form_id("f3", 3), form_id("f4", 4)]).await;
        for request in [None, Some(request("r1", 1))] {
            let lease = leased(fixture.ask(&anna, LeaseId::random(), &TERMS, request.as_ref()).await);
            let following = LeaseId::random();
            let first = next(fixture.settle_next(&anna, lease.id, verdict, request.as_ref(), following).await);
            let before = fixture.everything().await;
            let second = next(fixture.settle_next(&anna, lease.id, verdict, request.as_ref(), following).await);
            assert_eq!((second.credential, second.messages_left), (first.credential, first.messages_left));
            assert_eq!(fixture.everything().await, before, "{verdict:?}");
            fixture.settle(&anna, following, LeaseEnd::Return).await;
        }
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn repeated_collect_changes_nothing() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let credentials = [form_id("f2", 2), form_id("f1", 1), prepay_id("p1", 3, 1), form_id("00ff", 3)];
    assert!(fixture.collect(&anna, &credentials).await.is_empty());
    fixture.lease(&anna).await;
    let before = fixture.everything().await;
    assert_eq!(fixture.collect(&anna, &credentials).await, [0, 1, 2, 3]);
    assert_eq!(fixture.collect(&anna, &credentials[1..2]).await, [0]);
    assert_eq!(fixture.everything().await, before);
}

#[tokio::test]
async fn same_credential_twice_in_one_call_is_stored_once() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    assert_eq!(fixture.collect(&anna, &[form_id("f1", 1), form_id("f1", 2), form_id("f1", 1)]).await, [1, 2]);
    assert_eq!(fixture.stored(&anna).await, [("f1".to_owned(), 1, false)]);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn stale_lease_id_changes_nothing() {
    let anna = user("oAnna");
    let message = request("r1", 1);
    for why in ["never", "settled", "reaped", "erased", "taken over"] {
        let fixture = Fixture::new().await;
        fixture.collect(&anna, &[form_id("f1", 1), form_id("f2", 2)]).await;
        let id = LeaseId::random();
        match why {
            "never" => {}
            "taken over" => {
                leased(fixture.ask(&anna, id, &BRIEF, Some(&message)).await);
                leased(fixture.ask(&anna, LeaseId::random(), &TERMS, Some(&message)).await);
            }
            _ => {
                leased(fixture.ask(&anna, id, &BRIEF, None).await);
            }
        }
        match why {
            "settled" => assert!(matches!(fixture.settle(&anna, id, LeaseEnd::Return).await, SettleReply::Done { .. })),
            "reaped" => assert_eq!(fixture.reap(&TERMS).await.suspect, 1),
            "erased" => assert_eq!(fixture.store.erase(&fixture.app, &anna).await.unwrap(), 2),
            _ => {}
        }
        let before = fixture.everything().await;
        for verdict in VERDICTS.into_iter().chain([LeaseEnd::Hold]) {
            // Only a message with a request id can be held.
            let without = (verdict != LeaseEnd::Hold).then_some(None);
            for request in without.into_iter().chain([Some(&message)]) {
                let next = LeaseId::random();
                assert_eq!(fixture.settle_next(&anna, id, verdict, request, next).await, SettleReply::Stale, "{why}");
            }
        }
        assert_eq!(fixture.everything().await, before, "{why}");
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn each_lease_end_has_its_effect_on_a_prepay_id() {
    let anna = user("oAnna");
    for (verdict, uses, suspect) in [
        (LeaseEnd::Consume, 2, false),
        (LeaseEnd::Return, 3, false),
        (LeaseEnd::Suspect, 3, true),
        (LeaseEnd::Discard, 0, false),
        (LeaseEnd::Unknown, 2, false),
        (LeaseEnd::UnknownDiscard, 0, false),
        (LeaseEnd::UnknownVoid, 0, false),
    ] {
        let fixture = Fixture::new().await;
        fixture.collect(&anna, &[prepay_id("p1", 3, 1)]).await;
        let lease = fixture.lease(&anna).await;
        assert_eq!(fixture.settle(&anna, lease.id, verdict).await, SettleReply::Done { messages_left: uses.into() });
        let left = if uses == 0 { vec![] } else { vec![("p1".to_owned(), uses, suspect)] };
        assert_eq!(fixture.stored(&anna).await, left, "{verdict:?}");
        if uses > 0 {
            assert_eq!(fixture.lease(&anna).await.suspect, suspect);
        }
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn cap_spares_a_form_id_in_flight_and_drops_the_soonest_other() {
    let (fixture, anna) = (Fixture::with_cap(3).await, user("oAnna"));
    fixture.collect(&anna, &[form_id("f1", 1), form_id("f2", 2), form_id("f3", 3)]).await;
    let lease = fixture.lease(&anna).await;
    fixture.collect(&anna, &[form_id("f4", 4)]).await;
    let ids = async || fixture.stored(&anna).await.into_iter().map(|(id, ..)| id).collect::<Vec<_>>();
    assert_eq!(ids().await, ["f1", "f3", "f4"]);
    assert_eq!(fixture.collect(&anna, &[form_id("f1", 1)]).await, [0], "a form id in flight is a duplicate");
    fixture.collect(&anna, &[form_id("f2", 2)]).await;
    assert_eq!(ids().await, ["f1", "f3", "f4"], "the soonest to expire is the new one");
    fixture.settle(&anna, lease.id, LeaseEnd::Return).await;
    fixture.collect(&anna, &[form_id("f5", 5)]).await;
    assert_eq!(ids().await, ["f3", "f4", "f5"]);
    assert_eq!(fixture.store.ledger(&fixture.app).await.unwrap().dropped, 3);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn returned_use_does_not_overflow_a_full_record() {
    let (fixture, anna) = (Fixture::with_cap(1).await, user("oAnna"));
    fixture.collect(&anna, &[prepay_id("p1", 31, 1)]).await;
    let lease = fixture.lease(&anna).await;
    fixture.collect(&anna, &[form_id("f2", 2)]).await;
    assert_eq!(fixture.stored(&anna).await, [("f2".to_owned(), 1, false)], "the cap dropped its remaining uses");
    fixture.collect(&anna, &[prepay_id("p1", 31, 3)]).await;
    fixture.settle(&anna, lease.id, LeaseEnd::Suspect).await;
    assert_eq!(fixture.stored(&anna).await, [("p1".to_owned(), 31, true)]);
    fixture.assert_sound().await;
}
