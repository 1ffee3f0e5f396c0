//! Every code by SendTemplate with a request id.

use std::time::Duration;

use dispatcher::wechat::message::Delivery;
use domain::Kind;
use futures_util::future::join_all;
use server::proto::SendTemplateResponse;
use testing::eventually;
use tonic::Status;

use super::{Case, LATER, OTHER_TEMPLATE, Scope, TEMPLATE, Then, cases, fixture_of};
use crate::fixture::{Fixture, Running, fact, reason};

/// What a send shows to its caller: the outcome or the reason, and the errcode.
fn shown(result: &Result<SendTemplateResponse, Status>) -> (String, Option<String>) {
    match result {
        Ok(sent) => (format!("{:?}", sent.outcome()), sent.errcode.map(|errcode| errcode.to_string())),
        Err(status) => (reason(status), fact(status, "errcode")),
    }
}

fn delivered() -> (String, Option<String>) {
    ("Delivered".into(), Some("0".into()))
}

impl Case {
    /// The same case with messages of the other generation.
    fn of_the_other_generation(&self) -> Self {
        let other = if self.delivery == Delivery::FormId { Delivery::Subscription } else { Delivery::FormId };
        Self { delivery: other, ..self.clone() }
    }

    /// Sends the first message of an app, which meets the code, and others that the code must not affect.
    async fn meet(&self, fixture: &Fixture, dispatcher: &Running) {
        for (kind, template) in [(Kind::FormId, TEMPLATE), (Kind::Grant, TEMPLATE), (Kind::Grant, OTHER_TEMPLATE)] {
            self.give(fixture, "oUser", kind, template).await;
        }
        self.give(fixture, "oOther", self.kind(), TEMPLATE).await;
        let before = self.left(fixture, "oUser", self.kind()).await;
        let send = async || dispatcher.send(self.message("oUser", TEMPLATE, "r1")).await;
        let spent = async || before - self.left(fixture, "oUser", self.kind()).await;
        let errcode = Some(self.errcode.to_string());
        let is_token = self.then == Then::Again && [40001, 40014, 41001, 42001].contains(&self.errcode);
        let times = if self.then == Then::Again && !is_token { 2 } else { 1 };
        self.answer(fixture, times);
        let first = send().await;
        match self.then {
            Then::Again => {
                assert_eq!(shown(&first), delivered(), "{self:?}");
                assert_eq!((u64::from(first.unwrap().attempts), spent().await), (times + 1, 1), "{self:?}");
            }
            Then::Next => {
                assert_eq!(shown(&first), ("CREDENTIALS_DEAD".into(), errcode), "{self:?}");
                assert_eq!((spent().await, self.ledger(fixture).await.discarded), (1, 1), "{self:?}");
                // The request id is free: the next form id is used.
                self.give(fixture, "oUser", Kind::FormId, TEMPLATE).await;
                assert_eq!(shown(&send().await), delivered(), "{self:?}");
            }
            Then::Refuse(why) => {
                assert_eq!((shown(&first), spent().await), ((why.into(), errcode), 0), "{self:?}");
                let calls = self.books(fixture).calls;
                let again = send().await;
                assert_eq!((shown(&again), self.books(fixture).calls), (shown(&first), calls), "{self:?}");
            }
            Then::Busy => {
                assert_eq!((shown(&first), spent().await), (("USER_BUSY".into(), errcode), 0), "{self:?}");
                assert_eq!(shown(&send().await), delivered(), "{self:?}");
            }
            Then::Unknown => {
                assert_eq!((shown(&first), spent().await), (("Unknown".into(), errcode), 1), "{self:?}");
                let again = send().await;
                assert_eq!((shown(&again), again.unwrap().repeated), (shown(&first), true), "{self:?}");
                assert_eq!(self.ledger(fixture).await.unknown, 1);
                // WeChat sends it by itself.
                eventually("the review has ended", Duration::from_secs(20), async || {
                    self.books(fixture).delivered == 1
                })
                .await;
            }
            Then::Stop(scope, why, _) => {
                assert_eq!((shown(&first), spent().await), ((why.into(), errcode.clone()), 0), "{self:?}");
                // Prepay ids are not stopped, but the user has none.
                let form_ids_only = [41032, 41034].contains(&self.errcode);
                let expected = if form_ids_only { ("NO_CREDENTIAL".into(), None) } else { (why.to_owned(), errcode) };
                let calls = self.books(fixture).calls;
                assert_eq!((shown(&send().await), self.books(fixture).calls), (expected.clone(), calls), "{self:?}");
                self.assert_unharmed(fixture, dispatcher, scope, expected).await;
            }
        }
        if !matches!(self.then, Then::Stop(..)) {
            // Nothing was stopped.
            let other = dispatcher.send(self.message("oOther", TEMPLATE, "r2")).await;
            assert_eq!(shown(&other), delivered(), "{self:?}");
        }
    }

    /// Asserts that only messages of the scope are stopped.
    async fn assert_unharmed(
        &self,
        fixture: &Fixture,
        dispatcher: &Running,
        scope: Scope,
        stopped: (String, Option<String>),
    ) {
        let other = self.of_the_other_generation();
        // For form ids, the other template would spend the form id of the stopped message.
        let user = if self.kind() == Kind::Grant { "oUser" } else { "oOther" };
        for (message, is_stopped) in [
            (self.message(user, OTHER_TEMPLATE, "r3"), scope != Scope::Template),
            (other.message("oUser", TEMPLATE, "r4"), scope != Scope::Generation),
        ] {
            let expected = if is_stopped { stopped.clone() } else { delivered() };
            assert_eq!(shown(&dispatcher.send(message).await), expected, "{self:?}");
        }
        assert_eq!(self.ledger(fixture).await.leased, 0);
    }

    /// Sends the first message again, after the end of the stop.
    async fn resume(&self, fixture: &Fixture, dispatcher: &Running) {
        if let Then::Stop(..) = self.then {
            let sent = dispatcher.send(self.message("oUser", TEMPLATE, "r1")).await;
            assert_eq!(shown(&sent), delivered(), "{self:?}");
            assert!(!sent.unwrap().repeated, "{self:?}");
        }
        self.assert_settled(fixture).await;
    }
}

async fn meet_all(delivery: Delivery) {
    let cases = cases(delivery);
    let fixture = fixture_of(&cases).await;
    let (dispatcher, clock) = fixture.dispatcher_and_clock(&[]).await;
    join_all(cases.iter().map(|case| case.meet(&fixture, &dispatcher))).await;
    clock.set_ahead(LATER);
    join_all(cases.iter().map(|case| case.resume(&fixture, &dispatcher))).await;
}

#[tokio::test]
async fn every_code_has_its_effect_on_a_template_message() {
    meet_all(Delivery::FormId).await;
}

#[tokio::test]
async fn every_code_has_its_effect_on_a_subscription_message() {
    meet_all(Delivery::Subscription).await;
}
