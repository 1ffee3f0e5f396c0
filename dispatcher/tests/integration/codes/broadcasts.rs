//! Every code by a broadcast to three users.

use std::time::Duration;

use dispatcher::wechat::message::Delivery;
use futures_util::future::join_all;
use server::proto::{
    self, BroadcastInfo, BroadcastRequest, BroadcastState, BroadcastTally, GetBroadcastRequest, ResumeBroadcastRequest,
};
use testing::eventually;

use super::{Case, LATER, QUOTA, TEMPLATE, Then, cases, fixture_of};
use crate::broadcast::{assert_adds_up, tally, to_list};
use crate::fixture::{Fixture, Running};
use crate::subscription::data;

const USERS: [&str; 3] = ["oUser0", "oUser1", "oUser2"];

/// Reason, errcode and number of failed messages.
type Failed<'a> = Vec<(&'a str, Option<i32>, u64)>;

/// Numbers of users: delivered, refused by the user, unknown, left, and failed.
fn endings(tally: &BroadcastTally) -> (u64, u64, u64, u64, Failed<'_>) {
    let failed = tally.failed.iter().map(|one| (one.reason.as_str(), one.errcode, one.count)).collect();
    (tally.delivered, tally.refused_by_user, tally.unknown, tally.left, failed)
}

impl Case {
    pub(super) async fn broadcast(&self, dispatcher: &Running, users: &[&str], retry_unknown: bool) -> String {
        let request = BroadcastRequest {
            app_id: self.app.to_string(),
            template_id: TEMPLATE.into(),
            data: data("thing1", "hello"),
            delivery: proto::Delivery::from(self.delivery).into(),
            retry_unknown,
            ..to_list(users)
        };
        dispatcher.broadcast(request).await.unwrap().broadcast_id
    }

    async fn look(&self, dispatcher: &Running, broadcast_id: &str) -> BroadcastInfo {
        let request = GetBroadcastRequest { app_id: self.app.to_string(), broadcast_id: broadcast_id.into() };
        let info = dispatcher.client.clone().get_broadcast(request).await.unwrap().into_inner().broadcast.unwrap();
        assert_adds_up(&info);
        info
    }

    /// Waits until the broadcast is in this state and nothing of it is in flight.
    pub(super) async fn until(&self, dispatcher: &Running, id: &str, state: BroadcastState) -> BroadcastInfo {
        eventually(&format!("{state:?} after {}", self.errcode), Duration::from_secs(60), async || {
            self.look(dispatcher, id).await.state() == state
        })
        .await;
        self.look(dispatcher, id).await
    }

    pub(super) async fn resume_broadcast(&self, dispatcher: &Running, id: &str) -> BroadcastInfo {
        // At midnight, a broadcast that waits for the quota resumes by itself.
        if self.then != QUOTA {
            let request = ResumeBroadcastRequest { app_id: self.app.to_string(), broadcast_id: id.into() };
            dispatcher.client.clone().resume_broadcast(request).await.unwrap();
        }
        self.until(dispatcher, id, BroadcastState::Done).await
    }

    /// Sends a broadcast whose messages meet the code. Returns its id.
    async fn meet_by_broadcast(&self, fixture: &Fixture, dispatcher: &Running) -> String {
        for openid in USERS {
            self.give(fixture, openid, self.kind(), TEMPLATE).await;
        }
        self.answer(fixture, if matches!(self.then, Then::Again | Then::Next | Then::Stop(..)) { 1 } else { 1000 });
        let id = self.broadcast(dispatcher, &USERS, false).await;
        if let Then::Stop(.., why) = self.then {
            let paused = self.until(dispatcher, &id, BroadcastState::Paused).await;
            assert_eq!((paused.pause_reason(), paused.errcode), (why, Some(self.errcode)), "{self:?}");
            assert!(!paused.rid.is_empty(), "{self:?}");
            self.assert_settled(fixture).await;
            // No user's message ended, and nothing was spent.
            let paused = self.look(dispatcher, &id).await;
            assert_eq!(endings(tally(&paused)), (0, 0, 0, 3, vec![]), "{self:?}");
            assert_eq!((self.books(fixture).calls, self.ledger(fixture).await.available()), (1, 3), "{self:?}");
            return id;
        }
        let done = self.until(dispatcher, &id, BroadcastState::Done).await;
        let failed = |reason, count| vec![(reason, Some(self.errcode), count)];
        let (expected, available) = match self.then {
            Then::Again => ((3, 0, 0, 0, vec![]), 0),
            Then::Next => ((2, 0, 0, 0, failed("CREDENTIALS_DEAD", 1)), 0),
            Then::Refuse("USER_REFUSED") if self.errcode != 40003 => ((0, 3, 0, 0, vec![]), 3),
            Then::Refuse(reason) => ((0, 0, 0, 0, failed(reason, 3)), 3),
            Then::Busy => ((0, 0, 0, 0, failed("WECHAT_BUSY", 3)), 3),
            Then::Unknown => ((0, 0, 3, 0, vec![]), 0),
            Then::Stop(..) => unreachable!("see above"),
        };
        assert_eq!(endings(tally(&done)), expected, "{self:?}");
        assert_eq!(self.ledger(fixture).await.available(), available, "{self:?}");
        if self.then == Then::Unknown {
            // WeChat sends them by itself.
            eventually("the reviews have ended", Duration::from_secs(20), async || self.books(fixture).delivered == 3)
                .await;
        }
        id
    }
}

async fn meet_all(delivery: Delivery) {
    let cases = cases(delivery);
    let fixture = fixture_of(&cases).await;
    let (dispatcher, clock) = fixture.dispatcher_and_clock(&[]).await;
    let ids = join_all(cases.iter().map(|case| case.meet_by_broadcast(&fixture, &dispatcher))).await;
    clock.set_ahead(LATER);
    join_all(cases.iter().zip(&ids).map(async |(case, id)| {
        if let Then::Stop(..) = case.then {
            let done = case.resume_broadcast(&dispatcher, id).await;
            assert_eq!(endings(tally(&done)), (3, 0, 0, 0, vec![]), "{case:?}");
        }
        case.assert_settled(&fixture).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_code_has_its_effect_on_a_broadcast_of_template_messages() {
    meet_all(Delivery::FormId).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_code_has_its_effect_on_a_broadcast_of_subscription_messages() {
    meet_all(Delivery::Subscription).await;
}
