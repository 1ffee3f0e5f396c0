//! Grants of subscription messages: collecting them, counting them, and WeChat's events about them.

use domain::dependency::Dependency as _;
use domain::{OpenId, TemplateId};
use server::proto::credential::Right;
use server::proto::{
    CollectStatus, Credential, CredentialKind, EraseUserRequest, EventAction, GetInventoryRequest,
    GetInventoryResponse, GetStockRequest, Grant, KindInventory, RefusalReason, ReportEventsRequest,
    ReportEventsResponse,
};
use store::Store;
use store::eligibility::Eligibility;
use store::leases::{LeaseEnd, LeaseId, LeaseTerms, Leased, NewLease, Settle};
use testing::{Redis, store_config};
use tonic::{Code, Status};

use crate::fixture::{
    APP, Client, app, bad_fields, batch, collect, collector, form, popup, reason, request, signature,
};

fn grant(openid: &str, template: &str, count: u32) -> Credential {
    keyed(openid, template, count, "")
}

fn keyed(openid: &str, template: &str, count: u32, key: &str) -> Credential {
    let grant = Grant { template_id: template.into(), count, unlimited: false, grant_key: key.into() };
    Credential { openid: openid.into(), right: Some(Right::Grant(grant)), obtained_at: None }
}

fn unlimited(openid: &str, template: &str, count: u32) -> Credential {
    let grant = Grant { template_id: template.into(), count, unlimited: true, grant_key: String::new() };
    Credential { openid: openid.into(), right: Some(Right::Grant(grant)), obtained_at: None }
}

async fn inventory(client: &mut Client, openid: &str) -> GetInventoryResponse {
    let request = GetInventoryRequest { app_id: APP.into(), openid: openid.into() };
    client.get_inventory(request).await.unwrap().into_inner()
}

async fn report(client: &mut Client, body: &str) -> Result<ReportEventsResponse, Status> {
    let request = ReportEventsRequest { app_id: APP.into(), body: body.into(), ..ReportEventsRequest::default() };
    client.report_events(request).await.map(tonic::Response::into_inner)
}

fn actions(response: &ReportEventsResponse) -> Vec<(EventAction, u32)> {
    response.results.iter().map(|result| (result.action(), result.messages)).collect()
}

#[tokio::test]
async fn grants_add_up_by_template() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let credentials = vec![
        form("oUser", "f1"),
        grant("oUser", "t1", 0),
        grant("oUser", "t1", 40),
        grant("oUser", "t2", 2),
        unlimited("oUser", "t3", 0),
        unlimited("oUser", "t3", 0),
    ];
    use CollectStatus::{Duplicate, Stored};
    let statuses = collect(&mut client, credentials).await.unwrap();
    assert_eq!(statuses, [Stored, Stored, Stored, Stored, Stored, Duplicate]);
    let stored = inventory(&mut client, "oUser").await;
    let grants: Vec<_> = stored.kinds.iter().filter(|kind| kind.kind() == CredentialKind::Grant).collect();
    let told: Vec<_> = grants.iter().map(|kind| (kind.template_id.as_str(), kind.messages, kind.unlimited)).collect();
    assert_eq!(told, [("t1", 41, false), ("t2", 2, false), ("t3", 1, true)]);
    assert!(grants.iter().all(|KindInventory { soonest_expiry, latest_expiry, .. }| {
        soonest_expiry.is_none() && latest_expiry.is_none()
    }));
    assert_eq!(stored.messages, 45);

    let stock = client.get_stock(GetStockRequest { app_id: APP.into() }).await.unwrap().into_inner();
    let templates: Vec<_> = stock
        .templates
        .iter()
        .map(|one| (one.template_id.as_str(), one.users, one.messages, one.unlimited_users))
        .collect();
    assert_eq!(templates, [("t1", 1, 41, 0), ("t2", 1, 2, 0), ("t3", 1, 1, 1)]);
    assert_eq!((stock.reachable_users, stock.days.len()), (1, 1));
    assert_eq!(stock.ledger.unwrap().available, 45);

    let erased = client.erase_user(EraseUserRequest { app_id: APP.into(), openid: "oUser".into() }).await.unwrap();
    assert_eq!(erased.into_inner().messages, 45);
    assert_eq!(inventory(&mut client, "oUser").await, GetInventoryResponse::default());
}

#[tokio::test]
async fn grant_with_key_counts_once_without_key_each_time() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    for number in 0..3 {
        let credentials = vec![keyed("oUser", "t", 2, "k1"), keyed("oOther", "t", 2, "k1"), grant("oUser", "other", 1)];
        use CollectStatus::{Duplicate, Stored};
        let expected = if number == 0 { [Stored; 3] } else { [Duplicate, Duplicate, Stored] };
        assert_eq!(collect(&mut client, credentials).await.unwrap(), expected);
    }
    let messages: Vec<_> = inventory(&mut client, "oUser").await.kinds.iter().map(|kind| kind.messages).collect();
    assert_eq!(messages, [3, 2]);
    // The same in a stream.
    let batches = tokio_stream::iter([batch(7, vec![keyed("oUser", "t", 2, "k1"), keyed("oUser", "t", 1, "k2")])]);
    let mut answers = client.collect_stream(batches).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.sequence, answer.stored, answer.duplicates), (7, 1, 1));
}

#[tokio::test]
async fn bad_grants_are_refused_and_others_are_stored() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let credentials = vec![
        grant("oUser", "", 1),
        grant("oUser", &"t".repeat(65), 1),
        grant("oUser", "t", 1001),
        unlimited("oUser", "t", 1),
        keyed("oUser", "t", 1, "with space"),
        grant("oUser", "t", 1000),
    ];
    let answer = client.collect(request(credentials)).await.unwrap().into_inner();
    let reasons: Vec<_> = answer.results.iter().map(|result| result.reason()).collect();
    use RefusalReason::{BadCount, BadGrantKey, BadTemplateId, Unspecified};
    assert_eq!(reasons, [BadTemplateId, BadTemplateId, BadCount, BadCount, BadGrantKey, Unspecified]);
    assert_eq!(answer.results[2].message, "grant.count must be at most 1000, and 0 beside unlimited");
    assert_eq!(inventory(&mut client, "oUser").await.messages, 1000);
}

#[tokio::test]
async fn each_item_of_an_event_is_processed_once() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    use EventAction::{Duplicate, Granted, Refused, Voided};
    let start = testing::now() - 60;
    let popup = |second, items: &[(&str, &str)]| popup(start + second, items);
    let first = popup(10, &[("t1", "accept"), ("t2", "accept"), ("t3", "reject"), ("t4", "maybe")]);
    let told = report(&mut client, &first).await.unwrap();
    assert_eq!(told.event, "subscribe_msg_popup_event");
    assert_eq!(actions(&told), [(Granted, 1), (Granted, 1), (Voided, 0), (Refused, 0)]);
    assert!(told.results[3].message.contains("SubscribeStatusString"), "{told:?}");
    let again = report(&mut client, &first).await.unwrap();
    assert_eq!(actions(&again), [(Duplicate, 0), (Duplicate, 0), (Duplicate, 0), (Refused, 0)]);
    report(&mut client, &popup(11, &[("t1", "accept")])).await.unwrap();
    assert_eq!(inventory(&mut client, "oUser").await.messages, 3);
    let voided = report(&mut client, &popup(12, &[("t1", "reject")])).await.unwrap();
    assert_eq!(actions(&voided), [(Voided, 2)]);
    // The same rejection, reported again later, does not revoke grants that came after it.
    report(&mut client, &popup(13, &[("t1", "accept")])).await.unwrap();
    assert_eq!(actions(&report(&mut client, &popup(12, &[("t1", "reject")])).await.unwrap()), [(Duplicate, 0)]);
    assert_eq!(inventory(&mut client, "oUser").await.messages, 2);
}

#[tokio::test]
async fn delivery_failure_of_a_message_is_recorded_once() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let created = testing::now();
    let sent = |msgid: u64, code: i32| {
        format!(
            "<xml><ToUserName>gh_1</ToUserName><FromUserName><![CDATA[oUser]]></FromUserName><CreateTime>{created}</CreateTime>\
             <MsgType>event</MsgType><Event>subscribe_msg_sent_event</Event><SubscribeMsgSentEvent><List>\
             <TemplateId>t1</TemplateId><MsgID>{msgid}</MsgID><ErrorCode>{code}</ErrorCode>\
             <ErrorStatus>user refuse</ErrorStatus></List></SubscribeMsgSentEvent></xml>"
        )
    };
    use EventAction::{Delivered, Duplicate, FailureRecorded};
    let told = report(&mut client, &sent(u64::MAX, 0)).await.unwrap();
    assert_eq!((actions(&told), told.results[0].msgid), (vec![(Delivered, 0)], u64::MAX));
    for expected in [FailureRecorded, Duplicate] {
        assert_eq!(actions(&report(&mut client, &sent(5, 43101)).await.unwrap()), [(expected, 0)]);
    }
}

#[tokio::test]
async fn unrelated_events_are_ignored() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let body = r#"{"FromUserName":"oUser","CreateTime":1,"MsgType":"event","Event":"user_enter_tempsession"}"#;
    let told = report(&mut client, body).await.unwrap();
    assert_eq!((told.event.as_str(), told.results.len()), ("user_enter_tempsession", 0));
}

#[tokio::test]
async fn invalid_body_is_refused_with_the_bad_field() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    for (body, field) in [
        ("", "body"),
        ("event", "body"),
        ("{", "body"),
        (r#"{"ToUserName":"gh_1","Encrypt":"abc"}"#, "body"),
        (r#"{"MsgType":"event","Event":"subscribe_msg_popup_event","CreateTime":1,"List":[]}"#, "body.FromUserName"),
    ] {
        let refused = report(&mut client, body).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{body}");
        assert_eq!((reason(&refused), bad_fields(&refused)), ("INVALID_FIELDS".into(), vec![field.into()]), "{body}");
    }
}

#[tokio::test]
async fn event_must_be_signed_if_the_app_has_a_token() {
    let redis = Redis::start();
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.toml");
    std::fs::write(&tokens, format!("[callback_tokens]\n{APP} = \"AAAAA\"\n")).unwrap();
    let (_collector, mut client) = collector(&redis, &["--callback-tokens", tokens.to_str().unwrap()]).await;
    let (timestamp, nonce) = (testing::now().to_string(), "1514711492".to_owned());
    let (signature, body) = (signature("AAAAA", &timestamp, &nonce), popup(testing::now(), &[("t1", "accept")]).into());
    let signed = ReportEventsRequest { app_id: APP.into(), body, timestamp, nonce, signature };
    for bad in [
        ReportEventsRequest { signature: String::new(), ..signed.clone() },
        ReportEventsRequest { nonce: "1".into(), ..signed.clone() },
        ReportEventsRequest {
            timestamp: String::new(),
            nonce: String::new(),
            signature: String::new(),
            ..signed.clone()
        },
    ] {
        let refused = client.report_events(bad).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::PermissionDenied, "BAD_SIGNATURE".into()));
    }
    assert_eq!(inventory(&mut client, "oUser").await.messages, 0);
    assert_eq!(actions(&client.report_events(signed).await.unwrap().into_inner()), [(EventAction::Granted, 1)]);
}

/// A dispatcher sends with a grant of the user, and WeChat answers 43101.
async fn refuse(redis: &Redis, openid: &str, template: &str) {
    let store = Store::new(&store_config(redis.url())).unwrap();
    store.prepare().await.unwrap();
    let (openid, seconds) = (OpenId::parse(openid).unwrap(), std::time::Duration::from_secs);
    let terms = LeaseTerms { duration: seconds(60), margin: seconds(60), keep: seconds(60) };
    let wanted = Eligibility::grants(TemplateId::parse(template).unwrap());
    let new = NewLease { id: LeaseId::random(), request: None, wanted: &wanted };
    let leased = store.lease(&app(), &openid, &new, &terms).await.unwrap();
    assert!(matches!(leased, Leased::Lease(_)), "{leased:?}");
    let settle = Settle { id: new.id, request: None, end: LeaseEnd::Rest(3600), outcome: None, next: None };
    store.settle(&app(), &openid, &settle, &terms).await.unwrap();
}

#[tokio::test]
async fn resting_grants_are_shown_apart_until_the_user_accepts_again() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    collect(&mut client, vec![grant("oUser", "t1", 3), unlimited("oUser", "t1", 0)]).await.unwrap();
    refuse(&redis, "oUser", "t1").await;
    let stored = inventory(&mut client, "oUser").await;
    let [of] = &stored.kinds[..] else { panic!("{stored:?}") };
    assert_eq!((stored.messages, of.messages, of.resting_messages, of.unlimited), (0, 0, 4, true));
    assert!(of.resting_until.unwrap().seconds.abs_diff(testing::now() + 3600) < 600);
    assert_eq!((of.soonest_expiry, of.latest_expiry), (None, None));
    let stock = client.get_stock(GetStockRequest { app_id: APP.into() }).await.unwrap().into_inner();
    let of = &stock.templates[0];
    assert_eq!((of.users, of.messages, of.resting_users, of.resting_messages), (0, 0, 1, 4));
    assert_eq!((stock.reachable_users, stock.ledger.unwrap().available), (0, 4));
    // An accept that WeChat reports ends the rest.
    let accepted = report(&mut client, &popup(testing::now(), &[("t1", "accept")])).await.unwrap();
    assert_eq!(actions(&accepted), [(EventAction::Granted, 1)]);
    let stored = inventory(&mut client, "oUser").await;
    assert_eq!((stored.messages, stored.kinds[0].resting_messages, stored.kinds[0].resting_until), (5, 0, None));
}
