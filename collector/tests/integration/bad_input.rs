//! Invalid requests: the error names every invalid field.

use domain::{CredentialId, Grant, GrantUses, Kind, OpenId, TemplateId};
use prost_types::Timestamp;
use server::proto::{
    CollectRequest, CollectStatus, Credential, CredentialKind, EraseUserRequest, GetInventoryRequest, GetStockRequest,
    RefusalReason,
};
use store::credentials::Packed;
use testing::Redis;
use tonic::Code;

use crate::fixture::*;

const DAY: i64 = 24 * 3600;

#[tokio::test]
async fn bad_credentials_are_refused_and_good_ones_are_stored() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let obtained =
        |seconds, nanos| Credential { obtained_at: Some(Timestamp { seconds, nanos }), ..form("oUser", "f") };
    let long = |length| "x".repeat(length);
    let bad = [
        (form("", "f"), RefusalReason::BadOpenid),
        (form(&long(65), "f"), RefusalReason::BadOpenid),
        (form("o User", "f"), RefusalReason::BadOpenid),
        (form("oUser\u{7}", "f"), RefusalReason::BadOpenid),
        (form("oÜser", "f"), RefusalReason::BadOpenid),
        (form("undefined", "f"), RefusalReason::BadOpenid),
        (prepay("null", "wx1"), RefusalReason::BadOpenid),
        (form("[object Object]", "f"), RefusalReason::BadOpenid),
        (form("oUser", "undefined"), RefusalReason::NoValue),
        (form("oUser", "null"), RefusalReason::NoValue),
        (prepay("oUser", "NaN"), RefusalReason::NoValue),
        (form("oUser", "[object Object]"), RefusalReason::NoValue),
        (prepay("oUser", "prepay_id="), RefusalReason::EmptyId),
        (prepay("oUser", "prepay_id=undefined"), RefusalReason::NoValue),
        (prepay("oUser", "requestFormId:fail"), RefusalReason::RequestFailed),
        (form("oUser", ""), RefusalReason::EmptyId),
        (prepay("oUser", ""), RefusalReason::EmptyId),
        (Credential { right: None, ..form("oUser", "") }, RefusalReason::EmptyId),
        (form("oUser", &long(129)), RefusalReason::IdTooLong),
        (prepay("oUser", &long(129)), RefusalReason::IdTooLong),
        (form("oUser", "f\n"), RefusalReason::BadCharacters),
        (form("oUser", "f f"), RefusalReason::BadCharacters),
        (prepay("oUser", "表单"), RefusalReason::BadCharacters),
        (form("oUser", "the formId is a mock one"), RefusalReason::MockFormId),
        (
            form("oUser", "the formId is no longer available in develop or trial version of this mini program"),
            RefusalReason::DevelopVersion,
        ),
        (form("oUser", "requestFormId:fail timeout"), RefusalReason::RequestFailed),
        (obtained(testing::now(), -1), RefusalReason::BadTime),
        (obtained(i64::MAX, 0), RefusalReason::BadTime),
        (aged(form("oUser", "f"), -3600), RefusalReason::InTheFuture),
        (aged(form("oUser", "f"), 7 * DAY), RefusalReason::TooOld),
        (aged(form("oUser", "f"), 7 * DAY - 30), RefusalReason::TooOld),
        (obtained(0, 0), RefusalReason::TooOld),
    ];
    // A valid credential before each invalid one.
    let credentials = bad.iter().zip(0..).flat_map(|((bad, _), n)| [form("oGood", &format!("g{n}")), bad.clone()]);
    let results = client.collect(request(credentials.collect())).await.unwrap().into_inner().results;
    assert_eq!(results.len(), 2 * bad.len());
    for (pair, (bad, reason)) in results.chunks(2).zip(&bad) {
        assert_eq!(pair[0].status(), CollectStatus::Stored);
        assert_eq!((pair[1].status(), pair[1].reason()), (CollectStatus::Refused, *reason), "{bad:?}");
        assert!(!pair[1].message.is_empty(), "{bad:?}");
    }
    let store = redis.store().await;
    assert_eq!(stored(&store, "oGood").await.len(), bad.len());
    assert!(stored(&store, "oUser").await.is_empty());
}

#[tokio::test]
async fn refused_text_for_a_missing_value_is_named() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let credentials = vec![form("undefined", "f"), form("oUser", "null")];
    let results = client.collect(request(credentials)).await.unwrap().into_inner().results;
    let messages: Vec<_> = results.iter().map(|result| result.message.as_str()).collect();
    let expected = [
        "openid must not be \"undefined\", which programs write for a missing value",
        "the id must not be \"null\", which programs write for a missing value",
    ];
    assert_eq!(messages, expected);
}

#[tokio::test]
async fn prefix_of_the_payment_api_makes_a_prepay_id() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let credentials = vec![
        prepay("oUser", "prepay_id=wx1"),
        form("oUser", "prepay_id=wx2"),
        prepay("oUser", "wx1"),
        form("oUser", "wx2"),
    ];
    use CollectStatus::{Duplicate, Stored};
    assert_eq!(collect(&mut client, credentials).await.unwrap(), [Stored, Stored, Duplicate, Duplicate]);
    let mut ids = stored(&redis.store().await, "oUser").await;
    ids.sort();
    assert_eq!(ids, ["wx1", "wx2"]);
    let kinds = inventory(&mut client, "oUser").await.kinds;
    assert_eq!(kinds.len(), 1);
    assert_eq!((kinds[0].kind(), kinds[0].credentials, kinds[0].messages), (CredentialKind::PrepayId, 2, 6));
}

/// Older releases stored what is refused now. It can be looked at and erased.
#[tokio::test]
async fn user_whom_an_older_release_took_in_can_be_read_and_erased() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let store = redis.store().await;
    let openid = OpenId::existing("undefined").unwrap();
    let old = |id: &str, kind| {
        let id = CredentialId::existing(id).unwrap();
        let expiry = (testing::now() + DAY) as u32;
        Packed::new(openid.clone(), &domain::Credential { kind, id, uses: 1, expiry })
    };
    let grant = Grant { template: TemplateId::existing("null").unwrap(), uses: GrantUses::Count(2) };
    let stored =
        [old("null", Kind::FormId), old("prepay_id=wx1", Kind::PrepayId), Packed::grant(openid.clone(), &grant, None)];
    store.collect(&app(), store.bucket_of(&openid), &stored).await.unwrap();
    assert_eq!(inventory(&mut client, "undefined").await.messages, 4);
    let stock = client.get_stock(GetStockRequest { app_id: APP.into() }).await.unwrap().into_inner();
    assert_eq!((stock.reachable_users, stock.templates[0].template_id.as_str()), (1, "null"));
    let request = EraseUserRequest { app_id: APP.into(), openid: "undefined".into() };
    assert_eq!(client.erase_user(request).await.unwrap().into_inner().messages, 4);
}

#[tokio::test]
async fn longest_openid_and_id_are_stored_unchanged() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let (openid, id) = ("o".repeat(64), "!~".repeat(64));
    assert_eq!(collect(&mut client, vec![form(&openid, &id)]).await.unwrap(), [CollectStatus::Stored]);
    assert_eq!(stored(&redis.store().await, &openid).await, [id]);
}

#[tokio::test]
async fn unknown_app_is_not_found_unless_other_fields_are_bad() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let app_id = || "wxother".to_owned();
    let credentials = vec![form("oUser", "f")];
    let unknown = [
        client.collect(CollectRequest { app_id: app_id(), credentials }).await.unwrap_err(),
        client.get_inventory(GetInventoryRequest { app_id: app_id(), openid: "oUser".into() }).await.unwrap_err(),
        client.get_stock(GetStockRequest { app_id: app_id() }).await.unwrap_err(),
        client.erase_user(EraseUserRequest { app_id: app_id(), openid: "oUser".into() }).await.unwrap_err(),
    ];
    for status in unknown {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "UNKNOWN_APP"));
        assert_eq!(bad_fields(&status), ["app_id"]);
    }
    let status = client.collect(CollectRequest { app_id: app_id(), credentials: Vec::new() }).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
    assert_eq!(bad_fields(&status), ["app_id", "credentials"]);
}

#[tokio::test]
async fn all_bad_fields_are_reported_together() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let long = "x".repeat(65);
    for bad in ["", "with space", "bell\u{7}", "wxé", long.as_str()] {
        let (app_id, openid) = (bad.to_owned(), bad.to_owned());
        let inventory = GetInventoryRequest { app_id: app_id.clone(), openid: openid.clone() };
        let erase = EraseUserRequest { app_id: app_id.clone(), openid };
        let user_fields = vec!["app_id", "openid"];
        for (status, fields) in [
            (client.get_inventory(inventory).await.unwrap_err(), user_fields.clone()),
            (client.erase_user(erase).await.unwrap_err(), user_fields),
            (client.get_stock(GetStockRequest { app_id: app_id.clone() }).await.unwrap_err(), vec!["app_id"]),
            (
                client.collect(CollectRequest { app_id, credentials: Vec::new() }).await.unwrap_err(),
                vec!["app_id", "credentials"],
            ),
        ] {
            assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELDS"), "{bad:?}");
            assert_eq!(bad_fields(&status), fields, "{bad:?}");
        }
    }
}

#[tokio::test]
async fn call_takes_1_to_1000_credentials() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &["--records-per-user", "2000"]).await;
    let of = |count: usize| (0..count).map(|n| form("oUser", &format!("f{n}"))).collect::<Vec<_>>();
    for count in [0, 1001] {
        let status = collect(&mut client, of(count)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
        assert_eq!(bad_fields(&status), ["credentials"]);
    }
    let store = redis.store().await;
    assert!(stored(&store, "oUser").await.is_empty());
    assert_eq!(collect(&mut client, of(1000)).await.unwrap(), [CollectStatus::Stored; 1000]);
    assert_eq!(stored(&store, "oUser").await.len(), 1000);
}
