//! Broadcasts without failures.

use super::{tally, to_all, to_list};
use crate::fixture::Fixture;
use server::proto::BroadcastState;

#[tokio::test]
async fn every_reachable_user_gets_one_message() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..300).await;
    fixture.submit("oRich", 5).await;
    let started = dispatcher.broadcast(to_all()).await.unwrap();
    let done = dispatcher.until(&started.broadcast_id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered, tally(&done).estimated), (301, 301, false));
    assert_eq!(fixture.delivered(), 301);
    assert_eq!(fixture.left("oRich").await, 4);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn list_reaches_users_with_a_credential_and_counts_those_without() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oA", 1).await;
    fixture.submit("oB", 1).await;
    let started = dispatcher.broadcast(to_list(&["oA", "oNobody", "oA"])).await.unwrap();
    let done = dispatcher.until(&started.broadcast_id, BroadcastState::Done).await;
    let tally = tally(&done);
    assert_eq!((tally.audience, tally.delivered, tally.no_credential), (2, 1, 1));
    assert_eq!((fixture.left("oA").await, fixture.left("oB").await), (0, 1));
    fixture.assert_settled(0).await;
}
