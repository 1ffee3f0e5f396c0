//! Collecting: each credential is stored once.

use server::proto::{CollectStatus, CredentialKind, EraseUserRequest, GetInventoryRequest};
use testing::Redis;

use crate::fixture::*;

const WEEK: i64 = 7 * 24 * 3600;

#[tokio::test]
async fn credential_collected_again_is_a_duplicate() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    use CollectStatus::{Duplicate, Stored};
    let twice = vec![form("oA", "f1"), form("oB", "f1"), form("oA", "f1"), form("oA", "f2")];
    assert_eq!(collect(&mut client, twice.clone()).await.unwrap(), [Stored, Stored, Duplicate, Stored]);
    assert_eq!(collect(&mut client, twice).await.unwrap(), [Duplicate; 4]);
    let ledger = redis.store().await.ledger(&app()).await.unwrap();
    assert_eq!(ledger.collected, 3);
}

#[tokio::test]
async fn second_occurrence_is_the_duplicate_across_scripts() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &["--records-per-user", "1000"]).await;
    let once: Vec<_> = (0..500).map(|n| form("oUser", &format!("f{n}"))).collect();
    let twice = once.iter().chain(&once).cloned().collect();
    let statuses = collect(&mut client, twice).await.unwrap();
    assert_eq!(statuses[..500], [CollectStatus::Stored; 500]);
    assert_eq!(statuses[500..], [CollectStatus::Duplicate; 500]);
}

#[tokio::test]
async fn inventory_counts_both_kinds_and_shows_no_credential() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &["--prepay-uses", "5"]).await;
    let now = testing::now();
    let credentials =
        vec![aged(form("oUser", "f1"), 3600), aged(form("oUser", "f2"), 60), aged(prepay("oUser", "wx1"), 7200)];
    collect(&mut client, credentials).await.unwrap();
    let request = |openid: &str| GetInventoryRequest { app_id: APP.into(), openid: openid.into() };
    let inventory = client.get_inventory(request("oUser")).await.unwrap().into_inner();
    assert_eq!(inventory.messages, 7);
    let [forms, prepays] = inventory.kinds.as_slice() else { panic!("{:?}", inventory.kinds) };
    assert_eq!((forms.kind(), forms.credentials, forms.messages), (CredentialKind::FormId, 2, 2));
    assert_eq!((prepays.kind(), prepays.credentials, prepays.messages), (CredentialKind::PrepayId, 1, 5));
    let near = |time: Option<prost_types::Timestamp>, age: i64| (time.unwrap().seconds - (now - age + WEEK)).abs() <= 2;
    assert!(near(forms.soonest_expiry, 3600) && near(forms.latest_expiry, 60), "{forms:?}");
    assert!(near(prepays.soonest_expiry, 7200) && near(prepays.latest_expiry, 7200), "{prepays:?}");

    let nobody = client.get_inventory(request("oNobody")).await.unwrap().into_inner();
    assert!(nobody.kinds.is_empty() && nobody.messages == 0);
}

#[tokio::test]
async fn erase_deletes_one_user_and_keeps_others() {
    let redis = Redis::start();
    let (_collector, mut client) = collector(&redis, &[]).await;
    collect(&mut client, vec![form("oUser", "f1"), prepay("oUser", "wx1"), form("oOther", "f1")]).await.unwrap();
    let erase = || EraseUserRequest { app_id: APP.into(), openid: "oUser".into() };
    assert_eq!(client.erase_user(erase()).await.unwrap().into_inner().messages, 4);
    assert_eq!(client.erase_user(erase()).await.unwrap().into_inner().messages, 0);
    let store = redis.store().await;
    assert!(stored(&store, "oUser").await.is_empty());
    assert_eq!(stored(&store, "oOther").await, ["f1"]);
    let ledger = store.ledger(&app()).await.unwrap();
    assert_eq!((ledger.collected, ledger.erased, ledger.available()), (5, 4, 1));
}

/// 8 tasks with a connection each collect 500 form ids for one user, 25 in each call.
async fn eight_tasks_collect_for_one_user(collector: &Collector) {
    let mut tasks = Vec::new();
    for task in 0..8 {
        let mut client = collector.client().await;
        tasks.push(tokio::spawn(async move {
            for call in 0..20 {
                let ids = (0..25).map(|n| form("oUser", &format!("{task:016x}{:016x}", call * 25 + n)));
                assert_eq!(collect(&mut client, ids.collect()).await.unwrap(), [CollectStatus::Stored; 25]);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_collecting_keeps_the_ledger_balanced() {
    let redis = Redis::start();
    let (collector, _client) = collector(&redis, &[]).await;
    eight_tasks_collect_for_one_user(&collector).await;
    let store = redis.store().await;
    let ledger = store.ledger(&app()).await.unwrap();
    assert_eq!((ledger.collected, ledger.dropped, ledger.available()), (4000, 3880, 120));
    assert_eq!(stored(&store, "oUser").await.len(), 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_collecting_keeps_everything_below_the_cap() {
    let redis = Redis::start();
    let (collector, _client) = collector(&redis, &["--records-per-user", "5000"]).await;
    eight_tasks_collect_for_one_user(&collector).await;
    let store = redis.store().await;
    let mut ids = stored(&store, "oUser").await;
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4000);
    let ledger = store.ledger(&app()).await.unwrap();
    assert_eq!((ledger.collected, ledger.dropped, ledger.available()), (4000, 0, 4000));
}
