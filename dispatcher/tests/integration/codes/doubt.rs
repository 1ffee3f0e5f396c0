//! Codes that answer the repetition of an attempt whose answer was lost.

use dispatcher::wechat::message::Delivery;
use domain::Kind;
use futures_util::future::join_all;
use sandbox::{FaultKind, Rule};
use serde_json::json;
use server::proto::{BroadcastState, Outcome, SendTemplateRequest};

use super::{Case, LATER, TEMPLATE, Then, cases, fixture_of};
use crate::broadcast::tally;
use crate::fixture::{Fixture, Running, reason};

/// A case and the kind of credential that its message spends.
type Doubt = (Case, Kind);

/// Every code that stops something, with each kind of credential.
fn doubts(kinds: &[Kind]) -> Vec<Doubt> {
    let both = [Delivery::FormId, Delivery::Subscription].into_iter().flat_map(cases);
    let stops = both.filter(|case| matches!(case.then, Then::Stop(..)));
    let mut all = Vec::new();
    for case in stops {
        for kind in kinds.iter().filter(|kind| Delivery::of(**kind) == case.delivery) {
            let app = domain::AppId::parse(format!("{}-{}", case.app.as_str(), kind.name())).unwrap();
            all.push((Case { app, ..case.clone() }, *kind));
        }
    }
    all
}

async fn fixture_of_doubts(doubts: &[Doubt]) -> Fixture {
    fixture_of(&doubts.iter().map(|(case, _)| case.clone()).collect::<Vec<_>>()).await
}

impl Case {
    fn bold(&self) -> SendTemplateRequest {
        SendTemplateRequest { retry_unknown: true, ..self.message("oUser", TEMPLATE, "r1") }
    }

    /// Loses the answer to the next send, and answers the one after it with the case's code.
    fn lose_then_answer(&self, fixture: &Fixture) {
        self.script(fixture, Rule::new(FaultKind::CutBefore), 1);
        self.answer(fixture, 1);
    }
}

#[tokio::test]
async fn stop_after_a_lost_answer_ends_no_request() {
    let doubts = doubts(&[Kind::FormId, Kind::PrepayId, Kind::Grant]);
    let fixture = fixture_of_doubts(&doubts).await;
    let (dispatcher, clock) = fixture.dispatcher_and_clock(&[]).await;
    join_all(doubts.iter().map(async |(case, kind)| {
        case.give(&fixture, "oUser", *kind, TEMPLATE).await;
        case.lose_then_answer(&fixture);
        for _ in 0..2 {
            let status = dispatcher.send(case.bold()).await.unwrap_err();
            assert_eq!(reason(&status), "IN_DOUBT", "{case:?}");
        }
        // The credential stays with its message.
        assert_eq!((case.ledger(&fixture).await.leased, case.books(&fixture).calls), (1, 2), "{case:?}");
    }))
    .await;
    clock.set_ahead(LATER);
    join_all(doubts.iter().map(async |(case, _)| {
        let sent = dispatcher.send(case.bold()).await.unwrap();
        assert_eq!((sent.outcome(), sent.repeated), (Outcome::Delivered, false), "{case:?}");
        assert_eq!(case.books(&fixture).delivered, 1);
        case.assert_settled(&fixture).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_after_a_lost_answer_ends_no_user_of_a_broadcast() {
    let doubts = doubts(&[Kind::FormId, Kind::Grant]);
    let fixture = fixture_of_doubts(&doubts).await;
    let (dispatcher, clock) = fixture.dispatcher_and_clock(&[]).await;
    let ids = join_all(doubts.iter().map(async |(case, kind)| {
        case.give(&fixture, "oUser", *kind, TEMPLATE).await;
        case.lose_then_answer(&fixture);
        let id = case.broadcast(&dispatcher, &["oUser"], true).await;
        let paused = case.until(&dispatcher, &id, BroadcastState::Paused).await;
        assert_eq!((paused.errcode, tally(&paused).left), (Some(case.errcode), 1), "{case:?}");
        id
    }))
    .await;
    clock.set_ahead(LATER);
    join_all(doubts.iter().zip(&ids).map(async |((case, _), id)| {
        let done = case.resume_broadcast(&dispatcher, id).await;
        assert_eq!((tally(&done).delivered, case.books(&fixture).delivered), (1, 1), "{case:?}");
        case.assert_settled(&fixture).await;
    }))
    .await;
}

/// A case of 40241 with each kind of credential.
fn repeats() -> [Doubt; 3] {
    [Kind::FormId, Kind::PrepayId, Kind::Grant].map(|kind| {
        let app = domain::AppId::parse(format!("wx-{}", kind.name())).unwrap();
        (Case { errcode: 40241, then: Then::Refuse("MESSAGE_REFUSED"), delivery: Delivery::of(kind), app }, kind)
    })
}

async fn fixture_of_repeats(doubts: &[Doubt]) -> (Fixture, Running) {
    let fixture = fixture_of_doubts(doubts).await;
    fixture.change(json!({"same_message_seconds": 60}));
    let dispatcher = fixture.dispatcher().await;
    (fixture, dispatcher)
}

#[tokio::test]
async fn same_message_after_a_lost_answer_proves_the_delivery() {
    let repeats = repeats();
    let (fixture, dispatcher) = fixture_of_repeats(&repeats).await;
    for (case, kind) in &repeats {
        case.give(&fixture, "oUser", *kind, TEMPLATE).await;
        let before = case.left(&fixture, "oUser", *kind).await;
        case.script(&fixture, Rule::new(FaultKind::CutAfter), 1);
        let sent = dispatcher.send(case.bold()).await.unwrap();
        assert_eq!((sent.outcome(), sent.errcode, sent.attempts), (Outcome::Delivered, Some(40241), 2), "{kind:?}");
        assert_eq!((case.books(&fixture).delivered, case.left(&fixture, "oUser", *kind).await), (1, before - 1));
        case.assert_settled(&fixture).await;
    }
}

#[tokio::test]
async fn same_message_without_a_lost_answer_fails_and_spends_nothing() {
    let repeats = repeats();
    let (fixture, dispatcher) = fixture_of_repeats(&repeats).await;
    for (case, kind) in &repeats {
        case.give(&fixture, "oUser", *kind, TEMPLATE).await;
        dispatcher.send(case.message("oUser", TEMPLATE, "r1")).await.unwrap();
        case.give(&fixture, "oUser", *kind, TEMPLATE).await;
        let before = case.left(&fixture, "oUser", *kind).await;
        let again = SendTemplateRequest { request_id: "r2".into(), ..case.message("oUser", TEMPLATE, "r1") };
        assert_eq!(reason(&dispatcher.send(again).await.unwrap_err()), "MESSAGE_REFUSED");
        assert_eq!((case.books(&fixture).delivered, case.left(&fixture, "oUser", *kind).await), (1, before));
        case.assert_settled(&fixture).await;
    }
}
