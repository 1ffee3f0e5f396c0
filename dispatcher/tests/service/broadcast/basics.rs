//! What a broadcast does when nothing goes wrong.

use super::{tally, to_all, to_list};
use crate::rig::Rig;
use shared::proto::BroadcastState;

#[tokio::test]
async fn everyone_who_can_be_reached_gets_one_message() {
    let rig = Rig::patient().await;
    let dispatcher = rig.dispatcher().await;
    rig.submit_crowd(0..300).await;
    rig.submit("oRich", 5).await;
    let started = dispatcher.broadcast(to_all()).await.unwrap();
    let done = dispatcher.until(&started.broadcast_id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered, tally(&done).estimated), (301, 301, false));
    assert_eq!(rig.delivered(), 301);
    assert_eq!(rig.left("oRich").await, 4);
    rig.assert_settled(0).await;
}

#[tokio::test]
async fn a_list_reaches_who_has_a_credential_and_names_who_has_none() {
    let rig = Rig::patient().await;
    let dispatcher = rig.dispatcher().await;
    rig.submit("oA", 1).await;
    rig.submit("oB", 1).await;
    let started = dispatcher.broadcast(to_list(&["oA", "oNobody", "oA"])).await.unwrap();
    let done = dispatcher.until(&started.broadcast_id, BroadcastState::Done).await;
    let tally = tally(&done);
    assert_eq!((tally.audience, tally.delivered, tally.no_credential), (2, 1, 1));
    assert_eq!((rig.left("oA").await, rig.left("oB").await), (0, 1));
    rig.assert_settled(0).await;
}
