//! Recipient lists: duplicates, lists in several calls, and users who were not reached.

use super::{assert_refused, recipient, tally, to_all, to_list, value};
use crate::fixture::{APP, Fixture, fields};
use domain::OpenId;
use server::proto::broadcast_request::Audience;
use server::proto::{BroadcastRequest, BroadcastState, ListUndeliveredRequest, Recipients};
use store::broadcast::{BroadcastId, audience};
use tonic::Code;

#[tokio::test]
async fn user_listed_twice_gets_one_message_and_counts_as_a_duplicate() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    for openid in ["oA", "oB", "oC"] {
        fixture.submit(openid, 3).await;
    }
    let request = BroadcastRequest { exclude: vec!["oC".into(); 2], ..to_list(&["oA", "oB", "oA", "oC", "oA"]) };
    let answer = dispatcher.answer(request).await.unwrap();
    assert_eq!(answer.duplicates, 2);
    let done = dispatcher.until(&answer.broadcast.unwrap().broadcast_id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered), (2, 2));
    assert_eq!((fixture.left("oA").await, fixture.left("oB").await, fixture.left("oC").await), (2, 2, 3));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn list_is_added_in_several_calls_and_then_started() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..6).await;
    let held = BroadcastRequest { hold: true, exclude: vec!["oUser5".into()], ..to_list(&[]) };
    let held = dispatcher.broadcast(held).await.unwrap();
    let id = held.broadcast_id.as_str();
    assert_eq!((held.state(), tally(&held).audience), (BroadcastState::Pending, 0));
    let status = dispatcher.call("StartBroadcast", APP, id).await.unwrap_err();
    assert_refused(&status, Code::FailedPrecondition, "EMPTY_AUDIENCE");

    let counts = |answer: server::proto::AddRecipientsResponse| (answer.added, answer.duplicates, answer.excluded);
    let first = dispatcher.add(id, &["oUser0", "oUser1", "oUser0", "oUser5"], &[]).await.unwrap();
    assert_eq!(counts(first), (2, 1, 1));
    // A repeated call changes nothing.
    let again = dispatcher.add(id, &["oUser0", "oUser1", "oUser0", "oUser5"], &[]).await.unwrap();
    assert_eq!(counts(again), (0, 3, 1));
    let second = dispatcher.add(id, &["oUser1", "oUser2", "oUser3", "oNobody"], &["oUser3"]).await.unwrap();
    assert_eq!(counts(second), (2, 1, 1));
    let third = dispatcher.add(id, &[], &["oUser0", "oNobodyElse"]).await.unwrap();
    assert_eq!(counts(third), (0, 0, 0));
    assert_eq!(tally(&dispatcher.look(id).await).audience, 3, "oUser1, oUser2 and oNobody");
    assert_eq!(fixture.calls(), 0, "nothing is sent before the broadcast is started");

    dispatcher.done("StartBroadcast", id).await;
    let done = dispatcher.until(id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered, tally(&done).no_credential), (3, 2, 1));
    assert_eq!(fixture.received().keys().collect::<Vec<_>>(), ["oUser1", "oUser2"]);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn held_broadcast_to_all_accepts_exclusions_but_no_recipients() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..5).await;
    let held = dispatcher.broadcast(BroadcastRequest { hold: true, ..to_all() }).await.unwrap();
    let id = held.broadcast_id.as_str();
    let status = dispatcher.add(id, &["oUser1"], &[]).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&status), ["recipients"]);
    dispatcher.add(id, &[], &["oUser1", "oUser2"]).await.unwrap();
    dispatcher.done("StartBroadcast", id).await;
    let done = dispatcher.until(id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered), (3, 3));
    assert_eq!(fixture.received().keys().collect::<Vec<_>>(), ["oUser0", "oUser3", "oUser4"]);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn data_of_a_recipient_overrides_the_common_data() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..3).await;
    let mut list = ["oUser0", "oUser1"].map(recipient).to_vec();
    list[1].data.insert("keyword2".into(), value("your own"));
    list[1].data.insert("keyword3".into(), value("yours alone"));
    let mut request = BroadcastRequest {
        audience: Some(Audience::Recipients(Recipients { list })),
        hold: true,
        page: "pages/index?a=b".into(),
        emphasis_keyword: "keyword1.DATA".into(),
        ..to_all()
    };
    request.data.insert("keyword2".into(), value("everyone's"));
    let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    let mut late = recipient("oUser2");
    late.data.insert("keyword1".into(), value("late"));
    let add = server::proto::AddRecipientsRequest {
        app_id: APP.into(),
        broadcast_id: id.clone(),
        recipients: vec![late],
        exclude: Vec::new(),
    };
    dispatcher.client.clone().add_recipients(add).await.unwrap();
    dispatcher.done("StartBroadcast", &id).await;
    dispatcher.until(&id, BroadcastState::Done).await;
    let mut deliveries = fixture.sandbox.deliveries(APP, &sandbox::Reading::default()).unwrap();
    deliveries.sort_by(|a, b| a.openid.cmp(&b.openid));
    let texts: Vec<Vec<&str>> =
        deliveries.iter().map(|one| one.data.values().map(|keyword| keyword.value.as_str()).collect()).collect();
    assert_eq!(
        texts,
        [vec!["hello", "everyone's"], vec!["hello", "your own", "yours alone"], vec!["late", "everyone's"]]
    );
    assert!(deliveries.iter().all(|one| one.page.as_deref() == Some("pages/index?a=b")));
    assert!(deliveries.iter().all(|one| one.emphasis_keyword.as_deref() == Some("keyword1.DATA")));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn undelivered_users_are_listed_with_a_reason_until_erased() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oReached", 1).await;
    fixture.submit("oRefused", 1).await;
    fixture.submit("oStranger", 1).await;
    // WeChat knows these users but not their form ids.
    let known = sandbox::Submission::form("oDead");
    fixture.sandbox.submit(APP, vec![known]).unwrap();
    fixture.collect_dead("oDead", 2).await;
    for (openid, errcode) in [("oRefused", 43101), ("oStranger", 40003)] {
        let mut rule = sandbox::Rule { errcode: Some(errcode), ..sandbox::Rule::new(sandbox::FaultKind::Answer) };
        rule.matching.openid = Some(openid.into());
        fixture.sandbox.add_faults(vec![rule]).unwrap();
    }
    let mut openids: Vec<String> = (0..20).map(|user| format!("oNobody{user}")).collect();
    openids.extend(["oReached", "oRefused", "oStranger", "oDead"].map(String::from));
    let request = to_list(&openids.iter().map(String::as_str).collect::<Vec<_>>());
    let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    let counted = tally(&done);
    assert_eq!((counted.audience, counted.delivered, counted.no_credential), (24, 1, 20));
    assert_eq!(counted.refused_by_user, 1);
    let mut failed: Vec<_> = counted.failed.iter().map(|one| (one.reason.as_str(), one.errcode, one.count)).collect();
    failed.sort_unstable();
    assert_eq!(failed, [("CREDENTIALS_DEAD", Some(41028), 1), ("USER_REFUSED", Some(40003), 1)]);

    let listed = dispatcher.undelivered(&id).await;
    assert_eq!(listed.len(), 23);
    assert_eq!(listed["oRefused"], ("USER_REFUSED".into(), Some(43101)));
    assert_eq!(listed["oStranger"], ("USER_REFUSED".into(), Some(40003)));
    assert_eq!(listed["oDead"], ("CREDENTIALS_DEAD".into(), Some(41028)));
    assert_eq!(listed["oNobody7"], ("NO_CREDENTIAL".into(), None));
    // The same list in pages.
    let (mut paged, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListUndeliveredRequest { app_id: APP.into(), broadcast_id: id.clone(), page_size: 5, page_token };
        let page = dispatcher.client.clone().list_undelivered(request).await.unwrap().into_inner();
        assert!(page.undelivered.len() <= 5);
        paged.extend(page.undelivered.into_iter().map(|one| one.openid));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    paged.sort_unstable();
    assert_eq!(paged, listed.keys().cloned().collect::<Vec<_>>());

    for openid in ["oRefused", "oNobody7"] {
        fixture.store.erase(&fixture.app(), &OpenId::parse(openid).unwrap()).await.unwrap();
    }
    let rest = dispatcher.undelivered(&id).await;
    assert_eq!((rest.len(), rest.contains_key("oRefused"), rest.contains_key("oNobody7")), (21, false, false));
    assert_eq!(dispatcher.look(&id).await, done, "erasing does not change the tally");
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn late_call_sends_no_second_message_and_loses_no_user() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let openids = ["oA", "oB", "oC", "oD"];
    for openid in openids {
        fixture.submit(openid, 3).await;
    }
    let request = BroadcastRequest { limit: 2, ..to_list(&openids) };
    let id = dispatcher.broadcast(request).await.unwrap().broadcast_id;
    let paused = dispatcher.until(&id, BroadcastState::Paused).await;
    fixture.no_lease_left().await;
    // A replica answered AddRecipients while the broadcast was PENDING, but executes it only now.
    let of = BroadcastId::parse(&id).unwrap();
    for openid in openids.map(|openid| OpenId::parse(openid).unwrap()) {
        let bucket = fixture.store.bucket_of(&openid);
        let late = [audience::Recipient { openid: openid.clone(), data: Vec::new() }];
        let added = fixture.store.part(&fixture.app(), &of, bucket).add_recipients(&late, &[]).await.unwrap();
        assert_eq!(added, audience::Added { late: true, ..audience::Added::default() });
    }
    assert_eq!(dispatcher.look(&id).await, paused);
    // A replica that saw no message in flight must not close a bucket that still has an audience.
    let mut left = 0;
    for bucket in fixture.store.buckets() {
        left += u32::from(!fixture.store.part(&fixture.app(), &of, bucket).close(false).await.unwrap());
    }
    assert!((1..=2).contains(&left), "{left} buckets");
    dispatcher.done("ResumeBroadcast", &id).await;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered), (4, 4));
    assert_eq!(fixture.received().values().max(), Some(&1));
    fixture.assert_settled(0).await;
}
