//! The broadcast RPCs: what they refuse, and how they answer repeated requests.

use std::collections::HashMap;
use std::time::Duration;

use super::{CALLS, assert_refused, look, recipient, tally, to_all, to_list, value};
use crate::fixture::{APP, Fixture, fields};
use domain::OpenId;
use prost_types::Timestamp;
use server::proto::broadcast_request::Audience;
use server::proto::{
    AddRecipientsRequest, BroadcastRequest, BroadcastState, ListBroadcastsRequest, ListUndeliveredRequest, Recipients,
    WatchBroadcastRequest,
};
use tonic::Code;

/// An id that no broadcast has.
const NOBODYS: &str = "0192a3b4c5d-01234567";

#[tokio::test]
async fn all_invalid_fields_are_reported_together() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let bad = BroadcastRequest {
        app_id: "no such app!".into(),
        request_id: "with space".into(),
        template_id: String::new(),
        data: HashMap::from([("keyword1".into(), value("bell\u{7}"))]),
        page: "p".repeat(1025),
        emphasis_keyword: "keyword9.DATA".into(),
        name: "n".repeat(129),
        audience: None,
        exclude: vec!["oA".into(), "o B".into()],
        not_before: Some(Timestamp { seconds: 1, nanos: -1 }),
        messages_per_second: 1_000_001,
        min_interval: Some(prost_types::Duration { seconds: 7 * 24 * 3600 + 1, nanos: 0 }),
        ..BroadcastRequest::default()
    };
    let status = dispatcher.answer(bad).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "INVALID_FIELDS");
    let expected = [
        "app_id",
        "request_id",
        "template_id",
        "page",
        "data.keyword1.value",
        "emphasis_keyword",
        "name",
        "messages_per_second",
        "audience",
        "exclude[1]",
        "not_before",
        "min_interval",
    ];
    assert_eq!(fields(&status), expected);
    for interval in [(-1, 0), (0, -1), (i64::MAX, 0)] {
        let min_interval = Some(prost_types::Duration { seconds: interval.0, nanos: interval.1 });
        let status = dispatcher.answer(BroadcastRequest { min_interval, ..to_all() }).await.unwrap_err();
        assert_eq!(fields(&status), ["min_interval"], "{interval:?}");
    }
}

#[tokio::test]
async fn list_without_a_good_recipient_is_refused_and_names_all() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let mut list: Vec<_> = ["", "oC", "oD"].map(recipient).to_vec();
    list[1].data.insert("no key".into(), value("x"));
    list[2].data.insert("keyword1".into(), value(&"x".repeat(5000)));
    let expected = [".openid", ".data", ".data.keyword1.value"];
    let named = |list: &str| -> Vec<String> {
        expected.iter().zip(0..).map(|(field, at)| format!("{list}[{at}]{field}")).collect()
    };
    let audience = Some(Audience::Recipients(Recipients { list: list.clone() }));
    let status = dispatcher.answer(BroadcastRequest { audience, ..to_all() }).await.unwrap_err();
    assert_eq!(fields(&status), named("recipients.list"));
    let request = AddRecipientsRequest {
        app_id: APP.into(),
        broadcast_id: "none".into(),
        recipients: list,
        exclude: vec!["o o".into()],
    };
    let status = dispatcher.client.clone().add_recipients(request).await.unwrap_err();
    let all = [vec!["broadcast_id".to_owned()], named("recipients"), vec!["exclude[0]".to_owned()]].concat();
    assert_eq!(fields(&status), all);
}

#[tokio::test]
async fn list_in_a_call_is_limited_to_ten_thousand_users() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let openids: Vec<String> = (0..10_001).map(|user| format!("oUser{user}")).collect();
    let all: Vec<&str> = openids.iter().map(String::as_str).collect();
    let status = dispatcher.answer(to_list(&all)).await.unwrap_err();
    assert_eq!(fields(&status), ["recipients.list"]);
    let status = dispatcher.answer(BroadcastRequest { exclude: openids.clone(), ..to_all() }).await.unwrap_err();
    assert_eq!(fields(&status), ["exclude"]);
    let held = BroadcastRequest { hold: true, ..to_list(&all[1..]) };
    let held = dispatcher.broadcast(held).await.unwrap();
    assert_eq!(tally(&held).audience, 10_000);
    let status = dispatcher.add(&held.broadcast_id, &all, &[]).await.unwrap_err();
    assert_eq!(fields(&status), ["recipients"]);
    let added = dispatcher.add(&held.broadcast_id, &all[..10_000], &[]).await.unwrap();
    assert_eq!((added.added, added.duplicates), (1, 9_999));
}

#[tokio::test]
async fn page_sizes_tokens_intervals_and_ids_are_checked_together() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let mut client = dispatcher.client.clone();
    for page_token in ["x", NOBODYS.to_uppercase().as_str()] {
        let list = ListBroadcastsRequest { app_id: "!".into(), page_size: 101, page_token: page_token.into() };
        let status = client.list_broadcasts(list).await.unwrap_err();
        assert_eq!(fields(&status), ["app_id", "page_size", "page_token"]);
    }
    for page_token in ["x", "1", "1.zz", "70000.00", "1.é"] {
        let list = ListUndeliveredRequest {
            app_id: "!".into(),
            broadcast_id: String::new(),
            page_size: 1001,
            page_token: page_token.into(),
        };
        let status = client.list_undelivered(list).await.unwrap_err();
        assert_eq!(fields(&status), ["app_id", "broadcast_id", "page_size", "page_token"]);
    }
    for (seconds, nanos) in [(0, 199_999_999), (60, 1), (-1, 0)] {
        let interval = Some(prost_types::Duration { seconds, nanos });
        let watch = WatchBroadcastRequest { app_id: String::new(), broadcast_id: "b".into(), interval };
        let status = client.watch_broadcast(watch).await.unwrap_err();
        assert_eq!(fields(&status), ["app_id", "broadcast_id", "interval"]);
    }
    for name in CALLS {
        let status = dispatcher.call(name, "", "0192a3b4c5d-0123456g").await.unwrap_err();
        assert_refused(&status, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&status), ["app_id", "broadcast_id"], "{name}");
    }
}

#[tokio::test]
async fn unknown_apps_and_broadcasts_are_refused() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let stranger = "wxfeedfeedfeedfeed";
    let status = dispatcher.answer(BroadcastRequest { app_id: stranger.into(), ..to_all() }).await.unwrap_err();
    assert_refused(&status, Code::NotFound, "UNKNOWN_APP");
    let list = ListBroadcastsRequest { app_id: stranger.into(), ..Default::default() };
    let status = dispatcher.client.clone().list_broadcasts(list).await.unwrap_err();
    assert_refused(&status, Code::NotFound, "UNKNOWN_APP");
    for name in CALLS {
        let status = dispatcher.call(name, stranger, NOBODYS).await.unwrap_err();
        assert_refused(&status, Code::NotFound, "UNKNOWN_APP");
        let status = dispatcher.call(name, APP, NOBODYS).await.unwrap_err();
        assert_refused(&status, Code::NotFound, "BROADCAST_NOT_FOUND");
        assert_eq!(fields(&status), ["broadcast_id"], "{name}");
    }
}

#[tokio::test]
async fn empty_audience_is_refused_and_nothing_is_stored() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let excluding = BroadcastRequest { exclude: vec!["oA".into(), "oB".into()], ..to_list(&["oA", "oB", "oA"]) };
    for request in [to_all(), to_list(&[]), excluding] {
        for validate_only in [true, false] {
            let request = BroadcastRequest { validate_only, ..request.clone() };
            let status = dispatcher.answer(request).await.unwrap_err();
            assert_refused(&status, Code::FailedPrecondition, "EMPTY_AUDIENCE");
        }
    }
    let list = ListBroadcastsRequest { app_id: APP.into(), ..Default::default() };
    assert!(dispatcher.client.clone().list_broadcasts(list).await.unwrap().into_inner().broadcasts.is_empty());
}

#[tokio::test]
async fn repeated_request_is_the_same_broadcast_even_after_its_end() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oA", 2).await;
    fixture.submit("oB", 2).await;
    let to_both = BroadcastRequest { template_id: "template-2".into(), ..to_list(&["oA", "oB"]) };
    for (request_id, request) in [("r1", to_all()), ("r2", to_both)] {
        let request = BroadcastRequest { request_id: request_id.into(), ..request };
        let first = dispatcher.broadcast(request.clone()).await.unwrap();
        let done = dispatcher.until(&first.broadcast_id, BroadcastState::Done).await;
        assert_eq!(dispatcher.broadcast(request.clone()).await.unwrap(), done);
        for other in [
            BroadcastRequest { page: "pages/other".into(), ..request.clone() },
            BroadcastRequest { exclude: vec!["oC".into()], ..request.clone() },
            BroadcastRequest { limit: 7, ..request.clone() },
            BroadcastRequest { hold: true, ..request.clone() },
            BroadcastRequest { audience: to_list(&["oA"]).audience, ..request.clone() },
        ] {
            let status = dispatcher.answer(other).await.unwrap_err();
            assert_refused(&status, Code::InvalidArgument, "REQUEST_ID_REUSED");
            assert_eq!(fields(&status), ["request_id"]);
        }
    }
    assert_eq!(fixture.delivered(), 4);
    // A request that was answered once gets the same answer, although no user is left to send to.
    let again = BroadcastRequest { request_id: "r1".into(), ..to_all() };
    for openid in ["oA", "oB"] {
        fixture.store.erase(&fixture.app(), &OpenId::parse(openid).unwrap()).await.unwrap();
    }
    assert_refused(&dispatcher.answer(to_all()).await.unwrap_err(), Code::FailedPrecondition, "EMPTY_AUDIENCE");
    assert_eq!(dispatcher.broadcast(again).await.unwrap().state(), BroadcastState::Done);
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_repeated_requests_are_one_broadcast() {
    let fixture = Fixture::patient().await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    // Two form ids for each user, so that a second message would be possible.
    for _ in 0..2 {
        fixture.submit_crowd(0..1500).await;
    }
    let openids: Vec<String> = (0..1500).map(|user| format!("oUser{user}")).collect();
    let request = to_list(&openids.iter().map(String::as_str).collect::<Vec<_>>());
    let request = BroadcastRequest { request_id: "r1".into(), ..request };
    let calls = (0..12).map(|number| {
        let (mut client, request) = (dispatchers[number % 2].client.clone(), request.clone());
        tokio::spawn(async move {
            // Some calls arrive while the first ones store the broadcast, and others while it is being sent.
            tokio::time::sleep(Duration::from_millis(number as u64 * 15)).await;
            client.broadcast(request).await.unwrap().into_inner().broadcast.unwrap().broadcast_id
        })
    });
    let mut ids = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        ids.push(call.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let done = dispatchers[0].until(&ids[0], BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered), (1500, 1500));
    assert_eq!(fixture.delivered(), 1500);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn broadcasts_are_listed_in_pages_newest_first() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let mut made = Vec::new();
    for number in 0..25 {
        let request = BroadcastRequest { hold: true, name: format!("number {number}"), ..to_list(&["oA"]) };
        made.insert(0, dispatcher.broadcast(request).await.unwrap().broadcast_id);
        // Ids sort by their time in milliseconds.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for (page_size, pages) in [(0, 2), (10, 3), (25, 1), (100, 1)] {
        let (mut found, mut page_token, mut asked) = (Vec::new(), String::new(), 0);
        loop {
            let list = ListBroadcastsRequest { app_id: APP.into(), page_size, page_token };
            let page = dispatcher.client.clone().list_broadcasts(list).await.unwrap().into_inner();
            asked += 1;
            assert!(page.broadcasts.iter().all(|info| info.tally.is_none() && info.template_id == "template-1"));
            found.extend(page.broadcasts.into_iter().map(|info| info.broadcast_id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!((&found, asked), (&made, pages), "{page_size}");
    }
}

#[tokio::test]
async fn watch_ends_with_the_broadcast_and_hanging_up_changes_nothing() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..100).await;
    fixture.change(serde_json::json!({"latency_ms": 20}));
    let id =
        dispatcher.broadcast(BroadcastRequest { messages_per_second: 100, ..to_all() }).await.unwrap().broadcast_id;
    let watch = WatchBroadcastRequest { app_id: APP.into(), broadcast_id: id.clone(), interval: None };
    let mut hasty = dispatcher.client.clone().watch_broadcast(watch).await.unwrap().into_inner();
    assert_eq!(hasty.message().await.unwrap().unwrap().broadcast.unwrap().state(), BroadcastState::Running);
    drop(hasty);
    let watch = WatchBroadcastRequest {
        app_id: APP.into(),
        broadcast_id: id.clone(),
        interval: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
    };
    let mut patient = dispatcher.client.clone().watch_broadcast(watch).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(update) = patient.message().await.unwrap() {
        seen.push(update.broadcast.unwrap());
    }
    let delivered: Vec<u64> = seen.iter().map(|info| tally(info).delivered).collect();
    assert!(delivered.is_sorted() && delivered.len() > 2, "{delivered:?}");
    let last = seen.last().unwrap();
    assert_eq!((last.state(), tally(last).delivered), (BroadcastState::Done, 100));
    assert_eq!(&look(&mut dispatcher.client.clone(), &id).await.unwrap(), last);
    assert!(last.end_time.is_some() && last.start_time.is_some());
    fixture.assert_settled(0).await;
}
