//! The sweep and GetStock.

use domain::{Credential, CredentialId, Kind, OpenId};
use jiff::Timestamp;
use jiff::tz::Offset;
use server::proto::{CredentialKind, GetStockRequest, GetStockResponse};
use store::Store;
use store::credentials::Packed;
use testing::{Redis, eventually};

use crate::fixture::*;

const DAY: i64 = 24 * 3600;

async fn stock(client: &mut Client) -> GetStockResponse {
    client.get_stock(GetStockRequest { app_id: APP.into() }).await.unwrap().into_inner()
}

/// Stores a form id that expires in this many seconds, as if it had been collected long ago.
async fn store_expiring(store: &Store, openid: &str, seconds_left: i64) {
    let openid = OpenId::parse(openid).unwrap();
    let expiry = (testing::now() + seconds_left) as u32;
    let credential = Credential { kind: Kind::FormId, id: CredentialId::parse("old").unwrap(), uses: 1, expiry };
    let bucket = store.bucket_of(&openid);
    store.collect(&app(), bucket, &[Packed::new(openid, &credential)]).await.unwrap();
}

#[tokio::test]
async fn stock_agrees_with_the_ledger() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    let now = testing::now();
    for day in 0..5 {
        let of = |n: i64| (format!("o{n}"), format!("{day}x{n}"));
        let forms = (0..30).map(of).map(|(openid, id)| aged(form(&openid, &id), day * DAY));
        let prepays = (0..10).map(of).map(|(openid, id)| aged(prepay(&openid, &format!("wx{id}")), day * DAY));
        collect(&mut client, forms.chain(prepays).collect()).await.unwrap();
    }
    let stock = stock(&mut client).await;
    let ledger = stock.ledger.unwrap();
    assert_eq!(stock.reachable_users, 30);
    assert_eq!(ledger.collected, 5 * (30 + 10 * 3));
    assert_eq!(stock.days.iter().map(|day| day.messages).sum::<u64>(), ledger.available);
    assert_eq!(stock.days.iter().map(|day| day.credentials).sum::<u64>(), 5 * (30 + 10));
    assert!(stock.counted_at.unwrap().seconds >= now);

    let days: Vec<_> = stock.days.iter().map(|day| (day.day.as_str(), day.kind())).collect();
    assert!(days.is_sorted_by_key(|(day, _)| *day), "{days:?}");
    let expiry = Timestamp::from_second(now + 7 * DAY).unwrap();
    let expected = Offset::constant(8).to_datetime(expiry).date().to_string();
    for kind in [CredentialKind::FormId, CredentialKind::PrepayId] {
        // At the very end of a day, the newest credentials may expire a day later.
        assert!(days.iter().rev().take(4).any(|day| *day == (expected.as_str(), kind)), "{expected} in {days:?}");
    }
}

#[tokio::test]
async fn large_app_is_counted_by_the_sweep() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &["--small-app-users", "0", "--sweep-period", "1s"]).await;
    let users = 40;
    for n in 0..users {
        collect(&mut client, vec![form(&format!("o{n}"), "f")]).await.unwrap();
    }
    eventually("the sweep counts all users", SOON, async || stock(&mut client).await.reachable_users == users).await;
}

#[tokio::test]
async fn sweep_deletes_expired_credentials() {
    let redis = Redis::start();
    let store = redis.store().await;
    let (_collector, mut client) = collector(&redis, &["--sweep-period", "1s"]).await;
    store_expiring(&store, "oOld", 2).await;
    collect(&mut client, vec![form("oNew", "f")]).await.unwrap();
    eventually("the sweep deletes the expired credential", SOON, async || {
        store.ledger(&app()).await.unwrap().expired == 1
    })
    .await;
    assert!(stored(&store, "oOld").await.is_empty());
    assert_eq!(stored(&store, "oNew").await, ["f"]);
    assert_eq!(stock(&mut client).await.ledger.unwrap().available, 1);
}

#[tokio::test]
async fn credential_within_the_lease_margin_is_not_available() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    store_expiring(&redis.store().await, "oUser", 30).await;
    let request = server::proto::GetInventoryRequest { app_id: APP.into(), openid: "oUser".into() };
    assert_eq!(client.get_inventory(request).await.unwrap().into_inner().messages, 0);
}
