//! Invalid requests: the error names every invalid field.

use prost_types::Timestamp;
use server::proto::{
    CollectRequest, CollectStatus, Credential, EraseUserRequest, GetInventoryRequest, GetStockRequest, RefusalReason,
};
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
