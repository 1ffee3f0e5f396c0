//! Bytes of Redis memory for a form id, with everything that is stored for it.

use deadpool_redis::redis::{self, Client};
use shared::credential::AppId;
use shared::store::credentials::MAX_COLLECT;
use shared::store::{RedisConfig, Store, StoreConfig};
use testing::Redis;

use crate::setup::{APP, form_id, packed};
use crate::table::{Bar, Table};

/// How many users are stored.
const USERS: usize = 100_000;

/// Measures at 10 and at 3 form ids a user.
pub async fn measure(table: &mut Table) {
    for (each, bar) in [(10, 32.0), (3, 56.0)] {
        let bytes = bytes_for_each(each).await;
        table.figure(&format!("Redis memory a form id, {each} a user"), "bytes", bytes, Bar::AtMost(bar));
    }
}

async fn bytes_for_each(each: usize) -> f64 {
    let redis = Redis::start();
    let config = RedisConfig { url: redis.url(), connections: 2, timeout: std::time::Duration::from_secs(10) };
    let store = Store::new(&StoreConfig { redis: config, buckets: 512, cap: 120 }).unwrap();
    store.prepare().await.unwrap();
    let before = used(&redis).await;
    let app = AppId::parse(APP).unwrap();
    let mut buckets = vec![Vec::new(); 512];
    for user in 0..USERS {
        for _ in 0..each {
            let credential = packed(user, &form_id());
            buckets[usize::from(store.bucket_of(&credential.openid).0)].push(credential);
        }
    }
    for bucket in store.buckets() {
        for credentials in buckets[usize::from(bucket.0)].chunks(MAX_COLLECT) {
            store.collect(&app, bucket, credentials).await.unwrap();
        }
    }
    (used(&redis).await - before) / (USERS * each) as f64
}

/// Everything Redis has allocated, in bytes.
async fn used(redis: &Redis) -> f64 {
    let mut connection = Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await.unwrap();
    info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
}
