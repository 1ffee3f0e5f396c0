//! The audience of a broadcast, the credentials that it may spend, and its start time.

use std::time::Duration;

use super::{assert_refused, tally, to_all, to_list};
use crate::fixture::{APP, Fixture, fields, message};
use prost_types::Timestamp;
use serde_json::json;
use server::proto::{BroadcastPreview, BroadcastRequest, BroadcastState};
use testing::{eventually, now};
use tonic::Code;

fn an_hour() -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: 3600, nanos: 0 })
}

#[tokio::test]
async fn recently_messaged_users_are_skipped_and_keep_their_form_ids() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    for openid in ["oSent", "oListed", "oQuiet"] {
        fixture.submit(openid, 3).await;
    }
    dispatcher.send(message("oSent", "single")).await.unwrap();
    let earlier = dispatcher.broadcast(to_list(&["oListed"])).await.unwrap();
    dispatcher.until(&earlier.broadcast_id, BroadcastState::Done).await;
    let id = {
        let request = BroadcastRequest { min_interval: an_hour(), template_id: "template-2".into(), ..to_all() };
        dispatcher.broadcast(request).await.unwrap().broadcast_id
    };
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered, tally(&done).recently_messaged), (3, 1, 2));
    let listed = dispatcher.undelivered(&id).await;
    assert_eq!(listed.keys().collect::<Vec<_>>(), ["oListed", "oSent"]);
    assert!(listed.values().all(|why| *why == ("RECENTLY_MESSAGED".to_owned(), None)));
    for openid in ["oSent", "oListed", "oQuiet"] {
        assert_eq!(fixture.left(openid).await, 2, "{openid}");
    }
    // Without an interval every user gets the message.
    let request = BroadcastRequest { template_id: "template-3".into(), ..to_all() };
    let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    assert_eq!(tally(&dispatcher.until(&id, BroadcastState::Done).await).delivered, 3);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn preview_spends_nothing_and_matches_the_broadcast() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..30).await;
    fixture.submit_crowd(0..30).await;
    for user in 0..4 {
        dispatcher.send(message(&format!("oUser{user}"), "single")).await.unwrap();
    }
    let exclude: Vec<String> = ["oUser0", "oUser10", "oUser11", "oNobody3"].map(String::from).to_vec();
    let base = BroadcastRequest { min_interval: an_hour(), exclude, messages_per_second: 20, ..to_all() };
    let openids: Vec<String> =
        (0..12).map(|user| format!("oUser{user}")).chain((0..5).map(|user| format!("oNobody{user}"))).collect();
    let list = to_list(&openids.iter().map(String::as_str).collect::<Vec<_>>());
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    let cases = [
        (BroadcastRequest { audience: list.audience, ..base.clone() }, (13, 6, 4, 3, 4)),
        (base.clone(), (27, 24, 0, 3, 3)),
    ];
    for (request, expected) in cases {
        let seen = dispatcher.preview(request.clone()).await;
        let BroadcastPreview { audience, reachable, no_credential, recently_messaged, excluded, .. } = seen;
        assert_eq!((audience, reachable, no_credential, recently_messaged, excluded), expected, "{seen:?}");
        assert_eq!(seen.credentials, reachable);
        assert_eq!(
            seen.duration.unwrap(),
            prost_types::Duration::try_from(Duration::from_secs_f64(reachable as f64 / 20.0)).unwrap()
        );
        let canary = dispatcher.preview(BroadcastRequest { limit: 5, messages_per_second: 0, ..request }).await;
        assert_eq!((canary.reachable, canary.credentials, canary.duration), (reachable, 5, None));
    }
    assert_eq!(fixture.store.ledger(&fixture.app()).await.unwrap(), ledger);
    assert!(
        dispatcher
            .client
            .clone()
            .list_broadcasts(server::proto::ListBroadcastsRequest { app_id: APP.into(), ..Default::default() })
            .await
            .unwrap()
            .into_inner()
            .broadcasts
            .is_empty()
    );
    let all = BroadcastRequest { messages_per_second: 0, ..base };
    let expected = dispatcher.preview(all.clone()).await;
    let id = dispatcher.broadcast(all).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    let counted = tally(&done);
    assert_eq!(
        (counted.audience, counted.delivered, counted.recently_messaged),
        (expected.audience, expected.reachable, expected.recently_messaged)
    );
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn broadcast_spends_only_what_the_apps_file_permits() {
    let mut fixture = Fixture::patient().await;
    fixture.app_settings = "broadcast_credentials = [\"form_id\"]\n".into();
    let dispatcher = fixture.dispatcher().await;
    fixture.pay("oBoth", now() - 600).await;
    fixture.submit("oBoth", 1).await;
    fixture.pay("oPayer", now() - 600).await;
    fixture.submit("oForm", 1).await;
    let everyone = dispatcher.preview(to_all()).await;
    assert_eq!((everyone.audience, everyone.reachable), (2, 2));
    let listed = to_list(&["oBoth", "oPayer", "oForm"]);
    assert_eq!(dispatcher.preview(listed.clone()).await.no_credential, 1);
    for (request, no_credential) in
        [(to_all(), 0), (BroadcastRequest { template_id: "template-2".into(), ..listed }, 3)]
    {
        let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
        let done = dispatcher.until(&id, BroadcastState::Done).await;
        assert_eq!((tally(&done).no_credential, tally(&done).failed.len()), (no_credential, 0));
    }
    assert_eq!(fixture.received().keys().collect::<Vec<_>>(), ["oBoth", "oForm"]);
    assert_eq!((fixture.left("oBoth").await, fixture.left("oPayer").await), (3, 3));
    // Single messages may use credentials that broadcasts may not use.
    dispatcher.send(message("oPayer", "single")).await.unwrap();
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn broadcast_can_spend_a_prepay_id() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    for user in 0..20 {
        fixture.pay(&format!("oPayer{user}"), now() - 600).await;
    }
    let id = dispatcher.broadcast(to_all()).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered), (20, 20));
    assert_eq!(fixture.left("oPayer7").await, 2);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn broadcast_starts_by_itself_at_its_start_time() {
    let fixture = Fixture::patient().await;
    let (dispatcher, clock) = fixture.dispatcher_and_clock(&[]).await;
    fixture.submit_crowd(0..40).await;
    let at = Timestamp { seconds: now() + 3600, nanos: 0 };
    let waiting = BroadcastRequest { not_before: Some(at), request_id: "r1".into(), ..to_all() };
    let id = dispatcher.broadcast(waiting.clone()).await.unwrap().broadcast_id;
    let held = BroadcastRequest { not_before: Some(at), hold: true, ..to_list(&["oUser1", "oNobody"]) };
    let held = dispatcher.broadcast(held).await.unwrap().broadcast_id;
    dispatcher.done("StartBroadcast", &held).await;
    let pending = dispatcher.look(&id).await;
    assert_eq!((pending.state(), pending.not_before, pending.start_time), (BroadcastState::Pending, Some(at), None));
    assert_eq!((tally(&pending).estimated, tally(&pending).left), (true, 40));
    // Other broadcasts run meanwhile. A repeated request starts nothing.
    let other = dispatcher.broadcast(to_list(&["oNobody"])).await.unwrap().broadcast_id;
    dispatcher.until(&other, BroadcastState::Done).await;
    assert_eq!(dispatcher.broadcast(waiting).await.unwrap(), pending);
    assert_eq!(fixture.calls(), 0);

    clock.set_ahead(Duration::from_secs(3601));
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    let listed = dispatcher.until(&held, BroadcastState::Done).await;
    // oUser1 is in both audiences and gets the message of the broadcast that takes the form id first.
    assert_eq!(tally(&done).delivered + tally(&listed).delivered, 40);
    assert_eq!(fixture.delivered(), 40);
    // A start time in the past does not delay the broadcast.
    fixture.submit("oLate", 1).await;
    let late = BroadcastRequest { not_before: Some(at), ..to_list(&["oLate"]) };
    let late = dispatcher.broadcast(late).await.unwrap().broadcast_id;
    assert_eq!(tally(&dispatcher.until(&late, BroadcastState::Done).await).delivered, 1);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn start_time_after_the_whole_stock_expires_is_refused() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 1).await;
    let in_days = |days: i64| Some(Timestamp { seconds: now() + days * 24 * 3600, nanos: 0 });
    for validate_only in [true, false] {
        let late = BroadcastRequest { not_before: in_days(8), validate_only, ..to_all() };
        let status = dispatcher.answer(late).await.unwrap_err();
        assert_refused(&status, Code::FailedPrecondition, "NOTHING_LIVES_THEN");
        assert_eq!(fields(&status), ["not_before"]);
    }
    let soon = BroadcastRequest { not_before: in_days(6), ..to_all() };
    assert_eq!(dispatcher.broadcast(soon).await.unwrap().state(), BroadcastState::Pending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn form_ids_collected_during_a_broadcast_are_kept_and_not_used() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..600).await;
    fixture.change(json!({"latency_ms": 5}));
    let request = BroadcastRequest { messages_per_second: 200, ..to_all() };
    let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    dispatcher.until_delivered(&id, 50).await;
    fixture.submit_crowd(0..600).await;
    assert_eq!(dispatcher.look(&id).await.state(), BroadcastState::Running);
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered), (600, 600));
    let received = fixture.received();
    assert_eq!((received.len(), received.values().max()), (600, Some(&1)));
    let stock = fixture.store.stock(&fixture.app(), now(), u64::MAX).await.unwrap();
    assert_eq!(stock.reachable, 600);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn user_erased_during_a_broadcast_counts_as_erased() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..50).await;
    let id = dispatcher.broadcast(BroadcastRequest { limit: 10, ..to_all() }).await.unwrap().broadcast_id;
    dispatcher.until(&id, BroadcastState::Paused).await;
    fixture.no_lease_left().await;
    let received = fixture.received();
    let waiting: Vec<String> =
        (0..50).map(|user| format!("oUser{user}")).filter(|openid| !received.contains_key(openid)).take(5).collect();
    for openid in &waiting {
        fixture.store.erase(&fixture.app(), &domain::OpenId::parse(openid.clone()).unwrap()).await.unwrap();
    }
    dispatcher.done("ResumeBroadcast", &id).await;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    // A user who is erased before the bucket is snapshotted was never in the audience.
    let counted = tally(&done);
    assert_eq!((counted.delivered, counted.audience - counted.erased), (45, 45));
    assert!(fixture.received().keys().all(|openid| !waiting.contains(openid)));
    eventually("no credential of an erased user is left", Duration::from_secs(5), async || {
        fixture.left(&waiting[0]).await == 0
    })
    .await;
    fixture.assert_settled(0).await;
}
