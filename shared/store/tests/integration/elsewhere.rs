//! The store on other kinds of Redis than one plain server with full permissions: a cluster, Sentinels, TLS, a Redis
//! user with few permissions. Also the loss of a master.

use std::time::Duration;

use deadpool_redis::redis::{self, Cmd};
use domain::GrantUses;
use domain::dependency::Dependency as _;
use store::credentials::{OnceKey, Packed};
use store::keys::BucketKeys;
use store::leases::LeaseId;
use store::{Error, RedisConfig, RedisUrl, Store, StoreConfig};
use testing::tls::Authority;
use testing::{Redis, eventually, store_config};

use crate::broadcast::Broadcast;
use crate::fixture::{Fixture, TERMS, form_id, user};
use crate::redis::a_whole_life;
use crate::twice;

/// How long Redis may take to answer before the store looks for another connection.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Longer than a replica takes to become the master.
const FAILOVER: Duration = Duration::from_secs(20);

#[tokio::test]
async fn everything_works_on_a_cluster() {
    let fixture = Fixture::on(Redis::cluster(), 120).await;
    a_whole_life(&fixture).await;
    // Both commands go to all masters.
    fixture.raw::<()>(redis::cmd("SCRIPT").arg("FLUSH")).await;
    fixture.raw::<()>(&redis::cmd("FLUSHALL")).await;
    a_whole_life(&fixture).await;
}

#[tokio::test]
async fn everything_works_with_sentinels() {
    a_whole_life(&Fixture::on(Redis::sentinel(), 120).await).await;
}

#[tokio::test]
async fn command_sent_twice_changes_nothing_the_second_time() {
    let mut fixture = Fixture::new().await;
    fixture.store = Store::new(&store_config(twice::before(&fixture.redis).await)).unwrap();
    fixture.store.prepare().await.unwrap();
    // Also a grant without a dedup key.
    let eve = user("oEve");
    assert!(fixture.grant(&eve, "t1", GrantUses::Count(3), None).await);
    let inventory = fixture.store.inventory(&fixture.app, &eve, 0, 0).await.unwrap();
    assert_eq!(inventory.values().map(|available| available.messages).collect::<Vec<_>>(), [3]);
    a_whole_life(&fixture).await;
    assert!(fixture.store.permit_forced_token(&fixture.app, FAILOVER).await.unwrap());
    assert!(!fixture.store.permit_forced_token(&fixture.app, FAILOVER).await.unwrap());
    assert!(fixture.store.lock_token(&fixture.app, "me", FAILOVER).await.unwrap());
    assert!(!fixture.store.lock_token(&fixture.app, "you", FAILOVER).await.unwrap());
}

#[tokio::test]
async fn grant_without_a_key_counts_once_for_each_packing() {
    let fixture = Fixture::new().await;
    let eve = user("oEve");
    let grant = domain::Grant { template: crate::fixture::template("t1"), uses: GrantUses::Count(2) };
    let packed = [Packed::grant(eve.clone(), &grant, None), Packed::grant(eve.clone(), &grant, None)];
    let bucket = fixture.store.bucket_of(&eve);
    let collect = async || fixture.store.collect(&fixture.app, bucket, &packed).await.unwrap();
    assert_eq!((collect().await, collect().await), (vec![], vec![0, 1]));
    fixture.grant(&eve, "t1", GrantUses::Count(2), Some(OnceKey([1; 16]))).await;
    let inventory = fixture.store.inventory(&fixture.app, &eve, 0, 0).await.unwrap();
    assert_eq!(inventory.values().map(|available| available.messages).sum::<u32>(), 6);
    fixture.assert_sound().await;
}

/// The commands in shared/README.md that create the Redis user of the services.
fn acl(kind: &str) -> Vec<Cmd> {
    let readme = testing::readme::text("shared/README.md");
    let lines: Vec<_> = readme.lines().filter(|line| line.starts_with("ACL SETUSER formid ")).collect();
    let lines = lines.into_iter().filter(|line| line.split('#').nth(1).is_none_or(|of| of.trim() == kind));
    let lines = lines.map(|line| line.split('#').next().unwrap());
    lines
        .map(|line| line.split_whitespace().fold(Cmd::new(), |mut command, word| command.arg(word).to_owned()))
        .collect()
}

#[tokio::test]
async fn the_user_of_the_readme_is_enough_for_everything() {
    for (kind, redis) in [("", Redis::alone()), ("a cluster", Redis::cluster()), ("by Sentinel", Redis::sentinel())] {
        let mut fixture = Fixture::on(redis, 120).await;
        let commands = acl(kind);
        assert_eq!(commands.len(), 1 + usize::from(!kind.is_empty()), "{kind}");
        for server in fixture.redis.servers().iter().filter(|server| !server.ask(&["ROLE"]).contains("sentinel")) {
            let client = redis::Client::open(server.url()).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            for command in &commands {
                let _: () = command.query_async(&mut connection).await.unwrap();
            }
        }
        let url = fixture.redis.url().replacen("://", "://formid:PASSWORD@", 1);
        fixture.store = Store::new(&store_config(url)).unwrap();
        fixture.store.prepare().await.unwrap();
        fixture.store.ping().await.unwrap();
        a_whole_life(&fixture).await;
        let url = fixture.redis.url().replacen("://", "://formid:wrong@", 1);
        assert!(Store::new(&store_config(url)).unwrap().prepare().await.is_err(), "{kind}");
    }
}

#[tokio::test]
async fn tls_redis_is_used_only_with_a_trusted_certificate() {
    let (ours, other) = (Authority::new("ours"), Authority::new("another"));
    for redis in [Redis::encrypted(&ours), Redis::encrypted_cluster(&ours)] {
        let store = |ca: Option<&str>| {
            let (redis_url, url) = (redis.url(), RedisUrl::parse(&redis.url(), ca.map(str::as_bytes)).unwrap());
            let redis = RedisConfig { url, connections: 1, timeout: TIMEOUT };
            Store::new(&StoreConfig { redis, ..store_config(redis_url) }).unwrap()
        };
        let trusting = store(Some(&ours.pem));
        trusting.prepare().await.unwrap();
        let (fixture, anna) = (domain::AppId::parse("wx1").unwrap(), user("oAnna"));
        let packed = [Packed::new(anna.clone(), &form_id("f1", 1))];
        trusting.collect(&fixture, trusting.bucket_of(&anna), &packed).await.unwrap();
        assert_eq!(trusting.records(&fixture, &anna).await.unwrap().len(), 1);
        // The root certificates of the machine do not include the authority either.
        for ca in [Some(&*other.pem), None] {
            let refused = store(ca).prepare().await.unwrap_err();
            assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
            assert!(refused.to_string().to_lowercase().contains("certificate"), "{refused}");
        }
    }
}

/// A fixture with a short timeout, for a Redis whose masters fail.
async fn impatient(redis: Redis) -> Fixture {
    let mut fixture = Fixture::on(redis, 120).await;
    let config = store_config(fixture.redis.url());
    let redis = RedisConfig { timeout: TIMEOUT, ..config.redis };
    fixture.store = Store::new(&StoreConfig { redis, ..config }).unwrap();
    fixture.store.prepare().await.unwrap();
    fixture
}

/// Stores a form id of a user, with retries until it succeeds.
async fn store_patiently(fixture: &Fixture, openid: &str, id: &str) {
    let openid = user(openid);
    let packed = [Packed::new(openid.clone(), &form_id(id, 1))];
    eventually("the form id is stored", FAILOVER, async || {
        fixture.store.collect(&fixture.app, fixture.store.bucket_of(&openid), &packed).await.is_ok()
    })
    .await;
}

fn users_key(fixture: &Fixture, openid: &str) -> String {
    BucketKeys::new(&fixture.app, fixture.store.bucket_of(&user(openid))).users()
}

/// A user of a bucket that belongs to another master.
async fn user_elsewhere(fixture: &mut Fixture, openid: &str) -> String {
    let port = fixture.redis.master(&users_key(fixture, openid)).url();
    let mut users = (0..).map(|number| format!("oElse{number}"));
    users.find(|other| fixture.redis.master(&users_key_of(&fixture.store, &fixture.app, other)).url() != port).unwrap()
}

fn users_key_of(store: &Store, app: &domain::AppId, openid: &str) -> String {
    BucketKeys::new(app, store.bucket_of(&user(openid))).users()
}

#[tokio::test]
async fn replica_of_a_dead_master_is_found_and_gets_the_scripts() {
    for redis in [Redis::cluster(), Redis::sentinel()] {
        let mut fixture = impatient(redis).await;
        store_patiently(&fixture, "oAnna", "f1").await;
        let key = users_key(&fixture, "oAnna");
        fixture.redis.replicated_master(&key);
        fixture.redis.master(&key).kill();
        store_patiently(&fixture, "oAnna", "f2").await;
        assert_eq!(fixture.store.records(&fixture.app, &user("oAnna")).await.unwrap().len(), 2);
        // The old master returns as a replica, and no command goes to it.
        fixture.redis.resume();
        store_patiently(&fixture, "oAnna", "f3").await;
        assert_eq!(fixture.store.records(&fixture.app, &user("oAnna")).await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn hanging_master_is_replaced_although_its_connections_stay() {
    for redis in [Redis::cluster(), Redis::sentinel()] {
        let fixture = impatient(redis).await;
        store_patiently(&fixture, "oAnna", "f1").await;
        let key = users_key(&fixture, "oAnna");
        let hanging = fixture.redis.servers().iter().position(|server| server.is_master_of(&key)).unwrap();
        fixture.redis.servers()[hanging].hang();
        store_patiently(&fixture, "oAnna", "f2").await;
        fixture.redis.servers()[hanging].go_on();
        store_patiently(&fixture, "oAnna", "f3").await;
    }
}

#[tokio::test]
async fn other_masters_of_a_cluster_serve_while_one_is_down() {
    let mut fixture = impatient(Redis::cluster_that_goes_on()).await;
    let other = user_elsewhere(&mut fixture, "oAnna").await;
    for openid in ["oAnna", &other] {
        store_patiently(&fixture, openid, "f1").await;
    }
    let key = users_key(&fixture, "oAnna");
    // No replica takes over until the master returns.
    fixture.redis.everywhere("CONFIG SET cluster-replica-no-failover yes");
    fixture.redis.master(&key).kill();
    for id in ["f2", "f3"] {
        store_patiently(&fixture, &other, id).await;
        let packed = [Packed::new(user("oAnna"), &form_id(id, 1))];
        let stored = fixture.store.collect(&fixture.app, fixture.store.bucket_of(&user("oAnna")), &packed).await;
        assert!(matches!(stored, Err(Error::Unavailable(_) | Error::Redis(_))), "{stored:?}");
        eventually("the store is ready", FAILOVER, async || fixture.store.ping().await.is_ok()).await;
    }
    fixture.redis.resume();
    store_patiently(&fixture, "oAnna", "f4").await;
}

#[tokio::test]
async fn store_recovers_after_the_whole_cluster_was_down() {
    let mut fixture = impatient(Redis::cluster()).await;
    store_patiently(&fixture, "oAnna", "f1").await;
    fixture.redis.kill();
    assert!(fixture.store.ping().await.is_err());
    fixture.redis.resume();
    store_patiently(&fixture, "oAnna", "f2").await;
    fixture.store.ping().await.unwrap();
}

#[tokio::test]
async fn slot_that_moves_to_another_master_is_followed() {
    let mut fixture = impatient(Redis::cluster()).await;
    let other = user_elsewhere(&mut fixture, "oAnna").await;
    store_patiently(&fixture, "oAnna", "f1").await;
    let (key, other) = (users_key(&fixture, "oAnna"), users_key(&fixture, &other));
    let slot = fixture.redis.master(&key).ask(&[&format!("CLUSTER KEYSLOT {key}")]);
    let slot = slot.trim_start_matches(':').lines().next().unwrap().to_owned();
    let [from, to] = [&key, &other].map(|key| {
        let id = fixture.redis.master(key).ask(&["CLUSTER MYID"]).lines().nth(1).unwrap().to_owned();
        (fixture.redis.master(key).url(), id)
    });
    let ask = |url: &str, command: String| {
        let servers = fixture.redis.servers();
        let answer = servers.iter().find(|server| server.url() == url).unwrap().ask(&[&command]);
        assert!(!answer.starts_with('-'), "{command}: {answer}");
        answer
    };
    ask(&to.0, format!("CLUSTER SETSLOT {slot} IMPORTING {}", from.1));
    ask(&from.0, format!("CLUSTER SETSLOT {slot} MIGRATING {}", to.1));
    let port = to.0.rsplit(':').next().unwrap();
    let keys = ask(&from.0, format!("CLUSTER GETKEYSINSLOT {slot} 100"));
    let keys: Vec<_> = keys.lines().filter(|line| line.starts_with("formid:")).collect();
    assert!(!keys.is_empty());
    // The keys of a script are split between two masters. Until all have moved, it fails and changes nothing.
    ask(&from.0, format!("MIGRATE 127.0.0.1 {port} {} 0 5000", keys[0]));
    let packed = [Packed::new(user("oAnna"), &form_id("f2", 1))];
    let bucket = fixture.store.bucket_of(&user("oAnna"));
    assert!(fixture.store.collect(&fixture.app, bucket, &packed).await.is_err());
    for key in &keys[1..] {
        ask(&from.0, format!("MIGRATE 127.0.0.1 {port} {key} 0 5000"));
    }
    for url in [&to.0, &from.0] {
        ask(url, format!("CLUSTER SETSLOT {slot} NODE {}", to.1));
    }
    assert!(fixture.collect(&user("oAnna"), &[form_id("f2", 1)]).await.is_empty());
    assert_eq!(fixture.store.records(&fixture.app, &user("oAnna")).await.unwrap().len(), 2);
}

#[tokio::test]
async fn no_page_is_taken_before_the_snapshot_is_complete() {
    let fixture = Fixture::new().await;
    let bucket = fixture.store.bucket_of(&user("oAnna"));
    let crowd = fixture.crowd(bucket, 300).await;
    let broadcast = Broadcast::new(&fixture, true).await;
    assert!(!broadcast.snapshot(bucket).await, "one call scans only a part");
    let early = broadcast.take(bucket, LeaseId::random(), 64, &TERMS).await;
    assert_eq!((early.taken, early.ready.len()), (0, 0));
    while !broadcast.snapshot(bucket).await {}
    let mut taken = 0;
    while taken < crowd.len() {
        taken += broadcast.take(bucket, LeaseId::random(), 64, &TERMS).await.ready.len();
    }
    assert_eq!(taken, crowd.len());
}
