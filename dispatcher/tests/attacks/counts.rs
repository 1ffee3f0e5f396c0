//! Many calls that each read every bucket of an app.

use std::net::SocketAddr;
use std::time::Duration;

use server::proto::{
    AllReachable, BroadcastRequest, GetBroadcastRequest, ListBroadcastsRequest, broadcast_request::Audience,
};
use testing::{Redis, Scrape, eventually};
use tokio::task::JoinSet;

use crate::fixture::{APP, Fixture};

const BUCKETS: u64 = 4;
const CALLS: u64 = 100;

/// Number of times that a command was sent to Redis.
async fn sent(metrics: SocketAddr, command: &str) -> u64 {
    Scrape::of(metrics).await.value("formid_redis_seconds_count", &[("command", command)])
}

#[tokio::test]
async fn concurrent_reads_of_a_broadcast_share_one_tally() {
    let fixture = Fixture::with_buckets(Redis::alone(), BUCKETS as u16).await;
    fixture.submit("oUser", 1).await;
    let dispatcher = fixture.dispatcher_with(&["--redis-timeout", "60s"]).await;
    let mut client = dispatcher.client.clone();
    let audience = Some(Audience::AllReachable(AllReachable {}));
    let request = BroadcastRequest {
        app_id: APP.into(),
        template_id: "t".into(),
        hold: true,
        audience,
        ..BroadcastRequest::default()
    };
    let broadcast_id = client.broadcast(request).await.unwrap().into_inner().broadcast.unwrap().broadcast_id;
    // Only the tally of a broadcast that has not begun counts the users of each bucket (HLEN). No other code sends it
    // here.
    let before = sent(dispatcher.metrics, "HLEN").await;
    fixture.redis.servers()[0].hang();
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let (mut client, broadcast_id) = (client.clone(), broadcast_id.clone());
        calls
            .spawn(async move { client.get_broadcast(GetBroadcastRequest { app_id: APP.into(), broadcast_id }).await });
    }
    eventually("all calls are in flight", Duration::from_secs(20), async || {
        Scrape::of(dispatcher.metrics).await.value("formid_requests_in_flight", &[]) == CALLS
    })
    .await;
    fixture.redis.servers()[0].go_on();
    for broadcast in calls.join_all().await {
        assert_eq!(broadcast.unwrap().into_inner().broadcast.unwrap().tally.unwrap().audience, 1);
    }
    let asked = sent(dispatcher.metrics, "HLEN").await - before;
    assert!(asked <= 2 * BUCKETS, "{asked} commands for {CALLS} calls");

    // A page size above the number of broadcasts returns all of them and no further page.
    let list = ListBroadcastsRequest { app_id: APP.into(), page_size: 100, page_token: String::new() };
    let listed = client.list_broadcasts(list).await.unwrap().into_inner();
    assert_eq!((listed.broadcasts.len(), listed.next_page_token.as_str()), (1, ""));
    assert_eq!(listed.broadcasts[0].broadcast_id, broadcast_id);
}
