//! 43101: the first one rests the grants of the user and the template, and one after the rest revokes them.

use std::time::Duration;

use sandbox::{Endpoint, FaultKind, Rule, Subscription};
use server::proto::{BroadcastRequest, BroadcastState, Outcome, PauseReason, SendTemplateRequest};
use testing::{eventually, now};

use super::{TEMPLATE, by_form_id, data, message, request};
use crate::broadcast::{tally, to_all, to_list};
use crate::fixture::{APP, Fixture, fact, reason};

fn spring() -> BroadcastRequest {
    BroadcastRequest { template_id: TEMPLATE.into(), data: data("thing1", "spring"), ..to_all() }
}

/// Nine in ten calls are refused although no user refuses.
fn wave(fixture: &Fixture) {
    let rule = Rule {
        name: Some("wave".into()),
        errcode: Some(43101),
        probability: Some(0.9),
        endpoint: Endpoint::Subscribe,
        ..Rule::new(FaultKind::Answer)
    };
    fixture.sandbox.add_faults(vec![rule]).unwrap();
}

/// A fixture whose grants rest for a second.
async fn brief() -> Fixture {
    let mut fixture = Fixture::subscribing().await;
    fixture.app_settings.push_str("refused_rest = \"1s\"\n");
    fixture
}

async fn until_rested(fixture: &Fixture, openid: &str) {
    eventually("the rest is over", Duration::from_secs(20), async || fixture.resting(openid).await.0 == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wave_of_refusals_pauses_the_broadcast_and_loses_no_grant() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept_crowd(0..600, TEMPLATE, 3).await;
    wave(&fixture);
    let id = dispatcher.broadcast(spring()).await.unwrap().broadcast_id;
    let paused = dispatcher.until(&id, BroadcastState::Paused).await;
    assert_eq!((paused.pause_reason(), paused.errcode), (PauseReason::UserRefusals, Some(43101)));
    fixture.no_lease_left().await;
    let paused = dispatcher.look(&id).await;
    let (calls, refused) = (fixture.calls(), tally(&paused).refused_by_user);
    assert!((100..=200).contains(&calls), "{calls} calls");
    assert_eq!((refused + tally(&paused).delivered, tally(&paused).failed.len()), (calls, 0));
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.discarded, ledger.available()), (0, 1800 - fixture.delivered()));
    let stock = fixture.store.stock(&fixture.app(), now(), u64::MAX).await.unwrap();
    let granted = stock.templates.values().next().unwrap();
    assert_eq!((granted.resting_users, granted.resting, stock.reachable), (refused, 3 * refused, 600 - refused));

    // The wave is over. Users who rest are not part of a new audience.
    fixture.sandbox.clear_faults();
    dispatcher.done("ResumeBroadcast", &id).await;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).delivered, tally(&done).refused_by_user), (600 - refused, refused));
    assert_eq!(dispatcher.preview(spring()).await.reachable, 600 - refused);
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn share_of_refusals_that_pauses_can_be_set() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher_with(&["--broadcast-refusals", "100"]).await;
    fixture.accept_crowd(0..300, TEMPLATE, 1).await;
    wave(&fixture);
    let id = dispatcher.broadcast(spring()).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!(tally(&done).refused_by_user + tally(&done).delivered, 300);
    assert_eq!(fixture.store.ledger(&fixture.app()).await.unwrap().discarded, 0);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn single_false_refusal_costs_a_rest_and_nothing_else() {
    let fixture = Fixture::subscribing().await;
    let (one, other) = (fixture.dispatcher().await, fixture.dispatcher().await);
    fixture.accept("oUser", TEMPLATE, 3).await;
    fixture.accept("oUser", "another", 1).await;
    fixture.submit("oUser", 1).await;
    fixture.answer(43101, 1);
    let refused = one.send(request("oUser", "x", "r1")).await.unwrap_err();
    assert_eq!((reason(&refused), fact(&refused, "errcode")), ("USER_REFUSED".into(), Some("43101".into())));
    let (messages, until) = fixture.resting("oUser").await;
    assert!(messages == 3 && i64::from(until).abs_diff(now() + 24 * 3600) < 600);
    // No replica sends with these grants, and the error says until when.
    for dispatcher in [&one, &other] {
        let resting = dispatcher.send(message("oUser", "y")).await.unwrap_err();
        assert_eq!(reason(&resting), "NO_CREDENTIAL");
        let expected = prost_types::Timestamp { seconds: until.into(), nanos: 0 }.to_string();
        assert_eq!(fact(&resting, "resting_until"), Some(expected.clone()));
        assert!(resting.message().contains(&expected), "{}", resting.message());
    }
    assert_eq!(fixture.calls(), 1);
    let list = BroadcastRequest { template_id: TEMPLATE.into(), data: data("thing1", "z"), ..to_list(&["oUser"]) };
    let id = other.broadcast(list).await.unwrap().broadcast_id;
    let done = other.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).no_credential, fixture.calls()), (1, 1));
    // Other templates and the other generation are not affected, and what rests is not among the messages left.
    let another = SendTemplateRequest { template_id: "another".into(), ..message("oUser", "z") };
    assert_eq!(other.send(another).await.unwrap().messages_left, 1);
    assert_eq!(other.send(by_form_id(message("oUser", "z"))).await.unwrap().messages_left, 0);
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.consumed, ledger.discarded, ledger.available()), (2, 0, 3));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn delivered_message_after_the_rest_ends_the_matter() {
    let fixture = brief().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 3).await;
    for left in [2, 1] {
        fixture.answer(43101, 1);
        assert_eq!(reason(&dispatcher.send(message("oUser", "x")).await.unwrap_err()), "USER_REFUSED");
        until_rested(&fixture, "oUser").await;
        assert_eq!(dispatcher.send(message("oUser", &format!("{left}"))).await.unwrap().messages_left, left);
    }
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn user_who_refuses_loses_the_grants_after_the_rest() {
    let fixture = brief().await;
    let dispatcher = fixture.dispatcher().await;
    for (openid, count) in [("oUser", 3), ("oOther", 40)] {
        fixture.accept(openid, TEMPLATE, count).await;
        fixture.sandbox.reject(APP, vec![Subscription::new(openid, TEMPLATE)]).unwrap();
    }
    assert_eq!(reason(&dispatcher.send(message("oUser", "x")).await.unwrap_err()), "USER_REFUSED");
    until_rested(&fixture, "oUser").await;
    assert_eq!(fixture.granted("oUser", TEMPLATE).await, 3);
    assert_eq!(reason(&dispatcher.send(message("oUser", "x")).await.unwrap_err()), "USER_REFUSED");
    assert_eq!((fixture.granted("oUser", TEMPLATE).await, fixture.resting("oUser").await), (0, (0, 0)));
    let gone = dispatcher.send(message("oUser", "x")).await.unwrap_err();
    assert_eq!((reason(&gone), fact(&gone, "resting_until")), ("NO_CREDENTIAL".into(), None));
    // The same by broadcasts.
    for rest in [true, false] {
        let list = BroadcastRequest { template_id: TEMPLATE.into(), data: data("thing1", "z"), ..to_list(&["oOther"]) };
        let id = dispatcher.broadcast(list).await.unwrap().broadcast_id;
        let done = dispatcher.until(&id, BroadcastState::Done).await;
        assert_eq!(tally(&done).refused_by_user, 1);
        assert_eq!(dispatcher.undelivered(&id).await["oOther"], ("USER_REFUSED".into(), Some(43101)));
        until_rested(&fixture, "oOther").await;
        assert_eq!(fixture.granted("oOther", TEMPLATE).await, if rest { 40 } else { 0 });
    }
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.discarded, ledger.available()), (43, 0));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn accept_ends_the_rest() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    fixture.answer(43101, 1);
    dispatcher.send(message("oUser", "x")).await.unwrap_err();
    assert_eq!(fixture.resting("oUser").await.0, 1);
    fixture.accept("oUser", TEMPLATE, 1).await;
    assert_eq!((fixture.resting("oUser").await.0, fixture.granted("oUser", TEMPLATE).await), (0, 2));
    assert_eq!(dispatcher.send(message("oUser", "y")).await.unwrap().messages_left, 1);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn without_a_rest_the_first_refusal_revokes() {
    let mut fixture = Fixture::subscribing().await;
    fixture.app_settings.push_str("refused_rest = 0\n");
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 3).await;
    fixture.answer(43101, 1);
    assert_eq!(reason(&dispatcher.send(message("oUser", "x")).await.unwrap_err()), "USER_REFUSED");
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.discarded, ledger.available(), fixture.resting("oUser").await.0), (3, 0, 0));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn refusal_after_a_lost_answer_spends_one_use_and_rests_the_others() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 3).await;
    fixture.fault(FaultKind::CutAfter, 1);
    fixture.answer(43101, 1);
    let bold = SendTemplateRequest { retry_unknown: true, ..request("oUser", "x", "r1") };
    let answer = dispatcher.send(bold).await.unwrap();
    assert_eq!((answer.outcome(), answer.attempts, answer.messages_left), (Outcome::Unknown, 2, 0));
    assert_eq!(fixture.resting("oUser").await.0, 2);
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.consumed, ledger.unknown, ledger.discarded), (1, 1, 0));
    fixture.assert_settled(0).await;
}
