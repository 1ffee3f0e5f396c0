//! Broadcasts that spend grants.

use std::time::Duration;

use domain::{OpenId, TemplateId};
use sandbox::Subscription;
use server::proto::{BroadcastRequest, BroadcastState, Delivery, PauseReason};
use store::delivery_failures::{LateFailure, MsgId};
use store::eligibility::Eligibility;
use store::leases::{LeaseId, NewLease};
use testing::eventually;

use super::{TEMPLATE, data};
use crate::broadcast::{tally, to_all, to_list};
use crate::fixture::{APP, Fixture};

fn spring() -> BroadcastRequest {
    BroadcastRequest { template_id: TEMPLATE.into(), data: data("thing1", "spring"), ..to_all() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audience_is_the_users_with_a_grant_of_the_template() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept_crowd(0..150, TEMPLATE, 2).await;
    fixture.accept_crowd(100..200, "another", 1).await;
    fixture.submit_crowd(150..250).await;
    let preview = dispatcher.preview(spring()).await;
    assert_eq!((preview.audience - preview.no_credential, preview.reachable), (150, 150));
    let id = dispatcher.broadcast(spring()).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((done.delivery(), tally(&done).audience, tally(&done).delivered), (Delivery::Subscription, 150, 150));
    assert!(fixture.received().values().all(|count| *count == 1));
    // Each user has one grant left. A listed user without a grant is reported as undelivered.
    let list = BroadcastRequest {
        data: data("thing1", "again"),
        template_id: TEMPLATE.into(),
        ..to_list(&["oUser0", "oUser160"])
    };
    let id = dispatcher.broadcast(list).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).no_credential), (1, 1));
    assert_eq!(dispatcher.undelivered(&id).await["oUser160"], ("NO_CREDENTIAL".into(), None));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn user_refusal_is_no_failure_and_rests_the_grants() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept_crowd(0..10, TEMPLATE, 3).await;
    fixture.sandbox.reject(APP, vec![Subscription::new("oUser3", TEMPLATE)]).unwrap();
    let id = dispatcher.broadcast(spring()).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).refused_by_user), (9, 1));
    assert_eq!(dispatcher.undelivered(&id).await["oUser3"], ("USER_REFUSED".into(), Some(43101)));
    assert_eq!((fixture.granted("oUser3", TEMPLATE).await, fixture.granted("oUser4", TEMPLATE).await), (0, 2));
    assert_eq!(fixture.resting("oUser3").await.0, 3);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn locked_user_gets_the_message_when_the_send_lock_ends() {
    let fixture = Fixture::new().await.subscribed();
    let dispatcher = fixture.dispatcher().await;
    fixture.accept_crowd(0..20, TEMPLATE, 2).await;
    // A dispatcher that took the send lock of one user, and died.
    let user = OpenId::parse("oUser7").unwrap();
    let wanted = Eligibility::grants(TemplateId::parse(TEMPLATE).unwrap());
    let terms = fixture.settings(&["--lease", "2s"]).limits.terms;
    let new = NewLease { id: LeaseId::random(), request: None, wanted: &wanted };
    fixture.store.lease(&fixture.app(), &user, &new, &terms).await.unwrap();
    let id = dispatcher.broadcast(spring()).await.unwrap().broadcast_id;
    dispatcher.until_delivered(&id, 19).await;
    assert_eq!(tally(&dispatcher.look(&id).await).left, 1);
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!(tally(&done).delivered, 20);
    eventually("the lease of the dead dispatcher has expired", Duration::from_secs(10), async || {
        fixture.store.ledger(&fixture.app()).await.unwrap().leased == 0
    })
    .await;
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn delivery_failure_moves_from_delivered_to_failed_once() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept_crowd(0..10, TEMPLATE, 1).await;
    let id = dispatcher.broadcast(spring()).await.unwrap().broadcast_id;
    dispatcher.until(&id, BroadcastState::Done).await;
    let message = fixture.sandbox.deliveries(APP, &sandbox::Reading::default()).unwrap().remove(4);
    let (user, msgid) = (OpenId::parse(message.openid.as_str()).unwrap(), MsgId(message.msgid.unwrap()));
    let failure = LateFailure { errcode: 43101, status: "user refuse".into() };
    for first in [true, false] {
        assert_eq!(fixture.store.fail_late(&fixture.app(), &user, msgid, &failure).await.unwrap(), first);
        let info = dispatcher.look(&id).await;
        let failed: Vec<_> =
            tally(&info).failed.iter().map(|one| (one.reason.as_str(), one.errcode, one.count)).collect();
        assert_eq!((tally(&info).delivered, failed), (9, vec![("FAILED_LATER", Some(43101), 1)]));
    }
    let undelivered = dispatcher.undelivered(&id).await;
    assert_eq!(undelivered.into_iter().collect::<Vec<_>>(), [(message.openid, ("FAILED_LATER".into(), Some(43101)))]);
}

#[tokio::test]
async fn broadcast_with_retired_form_ids_pauses_and_spends_nothing() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..50).await;
    fixture.answer(45103, u64::MAX);
    let id = dispatcher.broadcast(to_all()).await.unwrap().broadcast_id;
    let paused = dispatcher.until(&id, BroadcastState::Paused).await;
    assert_eq!((paused.pause_reason(), paused.errcode), (PauseReason::AppStopped, Some(45103)));
    fixture.no_lease_left().await;
    assert_eq!(fixture.store.ledger(&fixture.app()).await.unwrap().available(), 50);
    // The app can continue immediately with subscription messages.
    fixture.accept_crowd(0..5, TEMPLATE, 1).await;
    let now = BroadcastRequest { delivery: Delivery::Subscription.into(), ..spring() };
    let id = dispatcher.broadcast(now).await.unwrap().broadcast_id;
    assert_eq!(tally(&dispatcher.until(&id, BroadcastState::Done).await).delivered, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_generation_has_its_own_daily_quota() {
    let fixture = Fixture::subscribing().await;
    fixture.change(serde_json::json!({"subscribe_daily_quota": 100, "daily_quota": 1000}));
    let dispatcher = fixture.dispatcher().await;
    fixture.accept_crowd(0..150, TEMPLATE, 1).await;
    fixture.submit_crowd(0..150).await;
    let id = dispatcher.broadcast(spring()).await.unwrap().broadcast_id;
    let paused = dispatcher.until(&id, BroadcastState::Paused).await;
    // Four fifths of the quota: the rest is reserved for single messages.
    assert_eq!((paused.pause_reason(), paused.errcode), (PauseReason::Quota, None));
    fixture.no_lease_left().await;
    assert_eq!(fixture.delivered(), 80);
    let by_form_id = BroadcastRequest { delivery: Delivery::FormId.into(), ..to_all() };
    let id = dispatcher.broadcast(by_form_id).await.unwrap().broadcast_id;
    assert_eq!(tally(&dispatcher.until(&id, BroadcastState::Done).await).delivered, 150);
    fixture.assert_settled(0).await;
}
