//! Bytes of Redis memory per form id, including everything stored for it.

use deadpool_redis::redis::{self, Client};
use testing::Redis;

use crate::setup::{fill, form_id, packed};
use crate::table::{Bar, Table};

/// Number of users stored.
const USERS: usize = 100_000;

/// Measures with 10 and with 3 form ids per user.
pub async fn measure(table: &mut Table) {
    for (each, bar) in [(10, 32.0), (3, 56.0)] {
        let bytes = bytes_for_each(each).await;
        table.figure(&format!("Redis memory per form id, {each} per user"), "bytes", bytes, Bar::AtMost(bar));
    }
}

async fn bytes_for_each(each: usize) -> f64 {
    let redis = Redis::alone();
    // The scripts are loaded before the first reading, because their memory does not belong to the form ids.
    fill(&redis, std::iter::empty()).await;
    let before = used(&redis).await;
    fill(&redis, (0..USERS * each).map(|number| packed(number / each, &form_id()))).await;
    (used(&redis).await - before) / (USERS * each) as f64
}

/// Memory that Redis has allocated, in bytes.
async fn used(redis: &Redis) -> f64 {
    let mut connection = Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await.unwrap();
    info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
}
