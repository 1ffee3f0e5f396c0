//! What WeChat's texts name: the key that it refuses, and the address that it saw.

use std::time::Duration;

use sandbox::{Endpoint, FaultKind, Rule};
use serde_json::json;
use server::proto::{BroadcastRequest, BroadcastState, ListUndeliveredRequest, PauseReason};
use testing::eventually;

use crate::broadcast::to_all;
use crate::fixture::{APP, Fixture, fact, message, reason, request};
use crate::subscription;

impl Fixture {
    /// The next `times` calls are answered with this errcode, and a text that names `detail`.
    fn answer_naming(&self, endpoint: Endpoint, (errcode, detail): (i32, &str), times: u64) {
        let detail = Some(detail.to_owned());
        let rule = Rule { errcode: Some(errcode), detail, times: Some(times), ..Rule::new(FaultKind::Answer) };
        self.sandbox.add_faults(vec![Rule { endpoint, ..rule }]).unwrap();
    }
}

#[tokio::test]
async fn refused_key_is_named_also_if_the_message_lacks_it() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", subscription::TEMPLATE, 1).await;
    for (number, (detail, field)) in [
        ("data.number2.value is empty", Some("data.number2.value")),
        ("data.thing1.value invalid", Some("data.thing1.value")),
        ("data.character_string12.value is empty", Some("data.character_string12.value")),
        // Not a key of a template: it may be anything.
        ("data.oAbCdEfGhIjKlMnOpQrStUv.value", None),
        ("data.5ec2e7ca9a275ec2e7ca9a27.value", None),
        ("miniprogram_state", None),
    ]
    .into_iter()
    .enumerate()
    {
        fixture.answer_naming(Endpoint::Subscribe, (47003, detail), 1);
        let send = || dispatcher.send(subscription::request("oUser", "ready", &format!("r{number}")));
        let (first, again) = (send().await.unwrap_err(), send().await.unwrap_err());
        for refused in [first, again] {
            let told = (reason(&refused), fact(&refused, "field"));
            assert_eq!(told, ("MESSAGE_REFUSED".into(), field.map(str::to_owned)), "{detail}");
        }
    }
    assert_eq!(fixture.left("oUser").await, 1);
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_that_pauses_names_the_refused_key() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept_crowd(0..20, subscription::TEMPLATE, 1).await;
    fixture.answer_naming(Endpoint::Subscribe, (47003, "data.number2.value is empty"), 1000);
    let data = subscription::data("thing1", "hello");
    let spring = BroadcastRequest { template_id: subscription::TEMPLATE.into(), data, ..to_all() };
    let id = dispatcher.broadcast(spring).await.unwrap().broadcast_id;
    let paused = dispatcher.until(&id, BroadcastState::Paused).await;
    let why = (paused.pause_reason(), paused.errcode, paused.field.as_str());
    assert_eq!(why, (PauseReason::MessageRefused, Some(47003), "data.number2.value"));
    fixture.no_lease_left().await;
    // So does each user's entry; the tally counts them together.
    let request = ListUndeliveredRequest { app_id: APP.into(), broadcast_id: id.clone(), ..Default::default() };
    let listed = dispatcher.client.clone().list_undelivered(request).await.unwrap().into_inner().undelivered;
    let failed = dispatcher.look(&id).await.tally.unwrap().failed;
    assert!(listed.len() >= 5 && listed.iter().all(|one| one.field == "data.number2.value"), "{listed:?}");
    assert!(listed.iter().all(|one| one.errcode == Some(47003)), "{listed:?}");
    assert_eq!(failed.iter().map(|one| one.count).collect::<Vec<_>>(), [listed.len() as u64], "{failed:?}");
    fixture.sandbox.clear_faults();
    dispatcher.done("ResumeBroadcast", &id).await;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((done.errcode, done.field.as_str()), (None, ""));
}

#[tokio::test]
async fn refused_address_is_shown_by_every_replica() {
    for (errcode, detail, address) in [
        (40164, "203.0.113.7", Some("203.0.113.7")),
        (61004, "2001:db8::7", Some("2001:db8::7")),
        (45035, "203.0.113.7", Some("203.0.113.7")),
        (40164, "5ec2e7ca9a275ec2e7ca9a275ec2e7ca", None),
    ] {
        let fixture = Fixture::patient().await;
        let (first, second) = (fixture.dispatcher().await, fixture.dispatcher().await);
        fixture.submit("oUser", 1).await;
        fixture.answer_naming(Endpoint::Send, (errcode, detail), 1);
        let stopped = first.send(request("oUser", "x", "r1")).await.unwrap_err();
        let expected = ("APP_STOPPED".to_owned(), address.map(str::to_owned));
        assert_eq!((reason(&stopped), fact(&stopped, "address")), expected, "{detail}");
        assert!(address.is_none_or(|address| stopped.message().contains(address)), "{}", stopped.message());
        assert!(stopped.message().contains("IP list") && !stopped.message().contains("5ec2"), "{}", stopped.message());
        eventually("the other replica knows the address", Duration::from_secs(20), async || {
            let stopped = second.send(message("oNobody", "x")).await.unwrap_err();
            (reason(&stopped), fact(&stopped, "address")) == expected
        })
        .await;
    }
}

#[tokio::test]
async fn refused_address_of_a_token_is_shown() {
    let fixture = Fixture::patient().await;
    fixture.answer_naming(Endpoint::Token, (61004, "203.0.113.7"), 1000);
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 1).await;
    let refused = dispatcher.send(message("oUser", "x")).await.unwrap_err();
    let told = (reason(&refused), fact(&refused, "errcode"), fact(&refused, "address"));
    assert_eq!(told, ("TOKEN_REFUSED".into(), Some("61004".into()), Some("203.0.113.7".into())));
    assert!(refused.message().ends_with("WeChat saw 203.0.113.7"), "{}", refused.message());
    assert_eq!(fixture.left("oUser").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_of_a_banned_template_pauses_and_others_go_on() {
    let fixture = Fixture::patient().await;
    let (dispatcher, clock) = fixture.dispatcher_and_clock(&[]).await;
    fixture.submit_crowd(0..20).await;
    fixture.change(json!({"banned_templates": ["template-1"]}));
    let banned = dispatcher.broadcast(to_all()).await.unwrap().broadcast_id;
    let paused = dispatcher.until(&banned, BroadcastState::Paused).await;
    assert_eq!((paused.pause_reason(), paused.errcode), (PauseReason::TemplateStopped, Some(43116)));
    fixture.no_lease_left().await;
    let other = BroadcastRequest { template_id: "template-2".into(), limit: 10, ..to_all() };
    let id = dispatcher.broadcast(other).await.unwrap().broadcast_id;
    assert_eq!(dispatcher.until(&id, BroadcastState::Paused).await.pause_reason(), PauseReason::Canary);
    assert_eq!((fixture.delivered(), fixture.sandbox.books(None).unwrap().answers[&43116]), (10, 1));
    // The ban ends, and so does the stop.
    fixture.change(json!({"banned_templates": []}));
    clock.set_ahead(Duration::from_secs(3600));
    dispatcher.done("ResumeBroadcast", &banned).await;
    let done = dispatcher.until(&banned, BroadcastState::Done).await;
    assert_eq!(done.tally.map(|tally| (tally.delivered, tally.no_credential)), Some((10, 10)));
    fixture.assert_settled(0).await;
}
