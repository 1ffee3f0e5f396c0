//! A user rejects a template: its grants are revoked, and leased ones end as WeChat answers.

use domain::GrantUses;
use store::credentials::OnceKey;
use store::leases::{LeaseEnd, LeaseId, Leased, SettleReply};
use store::stock::Ledger;

use crate::fixture::{DECIDED, Fixture, TERMS, form_id, leased, template, user};

const KEY: OnceKey = OnceKey([9; 16]);

async fn ledger(fixture: &Fixture) -> Ledger {
    fixture.store.ledger(&fixture.app).await.unwrap()
}

#[tokio::test]
async fn rejection_revokes_all_grants_of_its_template_and_no_other() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bob = fixture.neighbour(&anna);
    for owner in [&anna, &bob] {
        fixture.collect(owner, &[form_id("t1", 9)]).await;
        fixture.grant(owner, "t1", GrantUses::Count(70), None).await;
        fixture.grant(owner, "t1", GrantUses::LongTerm, None).await;
        fixture.grant(owner, "t11", GrantUses::Count(2), None).await;
    }
    let bobs = fixture.stored(&bob).await;
    let void = async |of, key| fixture.store.void(&fixture.app, &anna, &template(of), key, DECIDED).await.unwrap();
    assert_eq!(void("t1", KEY).await, Some(71));
    assert_eq!(fixture.stored(&anna).await, [("t1".to_owned(), 1, false), ("t11".to_owned(), 2, false)]);
    assert_eq!(fixture.stored(&bob).await, bobs);
    assert_eq!(ledger(&fixture).await, Ledger { collected: 148, discarded: 71, ..Ledger::default() });
    fixture.grant(&anna, "t1", GrantUses::Count(1), None).await;
    let before = fixture.everything().await;
    assert_eq!(void("t1", KEY).await, None, "the key is known");
    assert_eq!(fixture.everything().await, before);
    assert_eq!(void("t1", OnceKey([10; 16])).await, Some(1));
    assert_eq!(void("t2", OnceKey([11; 16])).await, Some(0), "there is no such grant");
    fixture.advance(25).await;
    assert_eq!(void("t11", KEY).await, Some(2), "the key is forgotten after a day");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn rejection_removes_a_user_without_other_credentials() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await;
    assert_eq!(fixture.store.void(&fixture.app, &anna, &template("t1"), KEY, DECIDED).await.unwrap(), Some(1));
    assert_eq!(fixture.store.users(&fixture.app).await.unwrap(), 0);
    assert_eq!(fixture.store.void(&fixture.app, &user("oBob"), &template("t1"), KEY, DECIDED).await.unwrap(), Some(0));
    assert_eq!(fixture.store.users(&fixture.app).await.unwrap(), 0);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn leased_grant_of_a_rejected_template_ends_as_wechat_answers() {
    let anna = user("oAnna");
    for (verdict, consumed, discarded, left) in [
        (LeaseEnd::Consume, 1, 39, 0),
        (LeaseEnd::Unknown, 1, 39, 0),
        // It was not sent, so one grant is left that the user has rejected. WeChat refuses it when it is used.
        (LeaseEnd::Return, 0, 39, 1),
        (LeaseEnd::Discard, 0, 40, 0),
        (LeaseEnd::Void, 0, 40, 0),
    ] {
        let fixture = Fixture::new().await;
        fixture.grant(&anna, "t1", GrantUses::Count(40), None).await;
        let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
        assert_eq!(fixture.store.void(&fixture.app, &anna, &template("t1"), KEY, DECIDED).await.unwrap(), Some(39));
        assert_eq!(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await, Leased::None);
        fixture.assert_sound().await;
        let settled = fixture.settle(&anna, lease.id, verdict).await;
        assert_eq!(settled, SettleReply::Done { messages_left: left }, "{verdict:?}");
        let unknown = u64::from(verdict == LeaseEnd::Unknown);
        let wanted = Ledger { collected: 40, consumed, discarded, unknown, ..Ledger::default() };
        assert_eq!(ledger(&fixture).await, wanted, "{verdict:?}");
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn long_term_subscription_rejected_while_leased_stays_revoked() {
    let anna = user("oAnna");
    for again in [false, true] {
        for (verdict, consumed, discarded) in [
            (LeaseEnd::Consume, 1, 0),
            (LeaseEnd::Unknown, 1, 0),
            (LeaseEnd::Return, 0, 1),
            (LeaseEnd::Suspect, 0, 1),
            (LeaseEnd::Discard, 0, 1),
        ] {
            let fixture = Fixture::new().await;
            fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await;
            let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
            assert_eq!(fixture.store.void(&fixture.app, &anna, &template("t1"), KEY, DECIDED).await.unwrap(), Some(0));
            if again {
                assert!(fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await, "accepted again");
            }
            // A discard removes by name, and the new subscription has the same name.
            let (discarded, left) = match (again, verdict) {
                (true, LeaseEnd::Discard) => (2, 0),
                (again, _) => (discarded, u32::from(again)),
            };
            let settled = fixture.settle(&anna, lease.id, verdict).await;
            assert_eq!(settled, SettleReply::Done { messages_left: left }, "{verdict:?}");
            let (unknown, collected) = (u64::from(verdict == LeaseEnd::Unknown), 1 + u64::from(again));
            let wanted = Ledger { collected, consumed, discarded, unknown, ..Ledger::default() };
            assert_eq!(ledger(&fixture).await, wanted, "{verdict:?}");
            fixture.assert_sound().await;
        }
    }
}

#[tokio::test]
async fn refused_message_revokes_all_grants_of_its_template() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    fixture.grant(&anna, "t1", GrantUses::Count(70), None).await;
    fixture.grant(&anna, "t1", GrantUses::LongTerm, None).await;
    fixture.grant(&anna, "t2", GrantUses::Count(2), None).await;
    let lease = leased(fixture.ask_for(&anna, LeaseId::random(), &TERMS, "t1").await);
    assert_eq!(fixture.settle(&anna, lease.id, LeaseEnd::Void).await, SettleReply::Done { messages_left: 2 });
    assert_eq!(fixture.stored(&anna).await, [("t2".to_owned(), 2, false)]);
    assert_eq!(ledger(&fixture).await, Ledger { collected: 73, discarded: 71, ..Ledger::default() });
    assert_eq!(fixture.store.touched(&fixture.app, &anna).await.unwrap(), None, "it was not delivered");
    fixture.assert_sound().await;
}
