//! The Redis of `deploy/kubernetes/components/redis`: its scripts run here as they run in the pods. Each pod is a folder
//! and an address of the loopback network, so that all of them have the ports of the pods.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use deadpool_redis::redis::{self, Cmd, FromRedisValue, RedisResult};
use domain::AppId;
use domain::dependency::Dependency as _;
use store::credentials::Packed;
use store::keys::BucketKeys;
use store::{RedisConfig, RedisUrl, Store, StoreConfig};
use tempfile::TempDir;
use testing::{Process, eventually, store_config};

use crate::fixture::{form_id, user};

/// Longer than it takes to choose a new master.
const FAILOVER: Duration = Duration::from_secs(40);

struct Pod {
    host: String,
    folder: TempDir,
    /// Redis and its Sentinel.
    running: Vec<Process>,
}

/// Three pods and their secret.
struct Set {
    pods: Vec<Pod>,
    shared: TempDir,
    passwords: [&'static str; 2],
}

fn script(name: &str) -> PathBuf {
    testing::readme::root().join("deploy/kubernetes/components/redis").join(name)
}

impl Set {
    fn new() -> Self {
        // Other addresses than those of other tests.
        let random = RandomState::new().hash_one(0);
        let pod = |number| Pod {
            host: format!("127.{}.{}.{number}", 1 + random % 254, (random >> 8) % 255),
            folder: tempfile::tempdir().unwrap(),
            running: Vec::new(),
        };
        let mut set =
            Self { pods: (1..=3).map(pod).collect(), shared: tempfile::tempdir().unwrap(), passwords: [""; 2] };
        set.set_passwords(["services-1", "admin-1"]);
        std::fs::create_dir(set.backups()).unwrap();
        set
    }

    /// Changes the secret, before any pod is started.
    fn set_passwords(&mut self, passwords: [&'static str; 2]) {
        self.passwords = passwords;
        for (key, password) in ["password", "admin-password"].iter().zip(passwords) {
            std::fs::write(self.shared.path().join(key), password).unwrap();
        }
    }

    fn backups(&self) -> PathBuf {
        self.shared.path().join("backups")
    }

    fn log(&self, pod: usize) -> PathBuf {
        self.shared.path().join(format!("{pod}.log"))
    }

    /// A script in the environment of a pod.
    fn command(&self, pod: usize, name: &str) -> Command {
        let hosts: Vec<_> = self.pods.iter().map(|pod| pod.host.as_str()).collect();
        let Pod { host, folder, .. } = &self.pods[pod];
        let mut command = Command::new("sh");
        command.arg(script(name)).env("REDIS_HOSTS", hosts.join(" ")).env("REDIS_ME", host).env("REDIS_LISTEN", host);
        command.env("REDIS_DATA", folder.path().join("data")).env("REDIS_RUN", folder.path().join("run"));
        command.env("REDIS_SECRETS", self.shared.path()).env("BACKUPS", self.backups());
        command
    }

    /// Runs a script to its end.
    fn run(&self, name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        self.command(0, name).args(arguments).envs(environment.iter().copied()).output().unwrap()
    }

    fn start(&mut self, pod: usize) {
        std::fs::create_dir_all(self.data(pod)).unwrap();
        let start = |name| Process::start_printing(&mut self.command(pod, name), &self.log(pod));
        self.pods[pod].running = vec![start("sentinel.sh"), start("redis.sh")];
    }

    fn start_all(&mut self) {
        (0..3).for_each(|pod| self.start(pod));
    }

    /// Kills both processes of a pod, as the loss of its node would.
    fn kill(&mut self, pod: usize) {
        self.pods[pod].running.clear();
    }

    fn kill_all(&mut self) {
        (0..3).for_each(|pod| self.kill(pod));
    }

    fn data(&self, pod: usize) -> PathBuf {
        self.pods[pod].folder.path().join("data")
    }

    fn is_ready(&self, pod: usize) -> bool {
        ["redis", "sentinel"].iter().all(|part| {
            let mut ready = self.command(pod, "ready.sh");
            ready.arg(part).output().unwrap().status.success()
        })
    }

    async fn until_ready(&self) {
        eventually("all pods are ready", FAILOVER, async || (0..3).all(|pod| self.is_ready(pod))).await;
    }

    /// Sends a command to the Redis of a pod, as the user who may do everything.
    async fn ask<T: FromRedisValue>(&self, pod: usize, command: &Cmd) -> RedisResult<T> {
        let client = redis::Client::open(format!("redis://:{}@{}:6379", self.passwords[1], self.pods[pod].host))?;
        command.query_async(&mut client.get_multiplexed_async_connection().await?).await
    }

    /// The pod that is the master. Waits until exactly one is, and the others follow it.
    async fn master(&self) -> usize {
        let mut found = Vec::new();
        eventually("there is one master with two replicas", FAILOVER, async || {
            found.clear();
            for pod in 0..3 {
                let info: RedisResult<String> = self.ask(pod, redis::cmd("INFO").arg("replication")).await;
                match info {
                    Ok(info) if info.contains("role:master") && info.matches("state=online").count() == 2 => {
                        found.push(pod);
                    }
                    Ok(info) if info.contains("master_link_status:up") => {}
                    _ => return false,
                }
            }
            found.len() == 1
        })
        .await;
        found[0]
    }

    /// Waits until all pods have all writes, in their files too: a replica writes its file anew after it has received
    /// everything, and has nothing of it on disk until then.
    async fn replicate(&self) {
        let master = self.master().await;
        let client = redis::Client::open(format!("redis://:{}@{}:6379", self.passwords[1], self.pods[master].host));
        let mut connection = client.unwrap().get_multiplexed_async_connection().await.unwrap();
        // WAIT covers the writes of its own connection, but replicas apply all writes in order.
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg("passed").arg(1).ignore().cmd("DEL").arg("passed").ignore().cmd("WAIT").arg(2).arg(100);
        eventually("both replicas have all writes", FAILOVER, async || {
            pipe.query_async::<(u32,)>(&mut connection).await.is_ok_and(|(replicas,)| replicas == 2)
        })
        .await;
        let written = ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0", "aof_buffer_length:0"];
        for pod in 0..3 {
            eventually("the writes are on disk", FAILOVER, async || {
                let info: RedisResult<String> = self.ask(pod, redis::cmd("INFO").arg("persistence")).await;
                info.is_ok_and(|info| written.iter().all(|line| info.contains(line)))
            })
            .await;
        }
    }

    /// A store with the URL that the component gives the services.
    async fn store(&self) -> Store {
        let patch = testing::readme::text("deploy/kubernetes/components/redis/dispatcher.yaml");
        let url: String = patch.split("value: \"").nth(1).unwrap().split('"').next().unwrap().split("\\\n").collect();
        let mut url = url.replace("$(REDIS_PASSWORD)", self.passwords[0]).replace(' ', "");
        for (number, pod) in self.pods.iter().enumerate() {
            url = url.replace(&format!("redis-{number}.redis"), &pod.host);
        }
        let url = RedisUrl::parse(&url, None).unwrap();
        let redis = RedisConfig { url, connections: 1, timeout: Duration::from_secs(2) };
        let store = Store::new(&StoreConfig { redis, ..store_config("redis://127.0.0.1".into()) }).unwrap();
        eventually("the services can use it", FAILOVER, async || store.prepare().await.is_ok()).await;
        store
    }
}

fn app() -> AppId {
    AppId::parse("wx1").unwrap()
}

/// Stores a form id for a user, as a collector does: again until it is stored.
async fn collect(store: &Store, name: &str) {
    let packed = [Packed::new(user(name), &form_id(name, 1))];
    let bucket = store.bucket_of(&user(name));
    eventually("the form id is stored", FAILOVER, async || match store.collect(&app(), bucket, &packed).await {
        Ok(_) => true,
        Err(error) if !error.is_lasting() => false,
        Err(error) => panic!("a collector would not repeat this: {error}"),
    })
    .await;
}

/// Waits until the master has a form id for each of these users, and for nobody else.
async fn assert_has(store: &Store, names: &[&str]) {
    eventually("the store answers", FAILOVER, async || store.ledger(&app()).await.is_ok()).await;
    for name in names {
        assert_eq!(store.inventory(&app(), &user(name), 0, 0).await.unwrap().len(), 1, "{name}");
    }
    assert_eq!(store.ledger(&app()).await.unwrap().collected, names.len() as u64);
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// The text of a file that may not exist yet.
fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn the_set_starts_with_one_master_and_outlives_it() {
    let mut set = Set::new();
    // The first pod does not know whether the others have data.
    set.start(0);
    eventually("the first pod waits", FAILOVER, async || text(&set.log(0)).contains("does not answer: waiting")).await;
    assert!(!set.is_ready(0));
    set.start(1);
    set.start(2);
    set.until_ready().await;
    let store = set.store().await;
    collect(&store, "oAnna").await;

    set.replicate().await;
    let lost = set.master().await;
    set.kill(lost);
    collect(&store, "oBob").await;
    set.start(lost);
    set.until_ready().await;
    assert_ne!(set.master().await, lost, "a pod that was away follows the new master");
    assert_has(&store, &["oAnna", "oBob"]).await;

    // A power failure; meanwhile the passwords were changed.
    set.replicate().await;
    set.kill_all();
    set.set_passwords(["services-2", "admin-2"]);
    set.start_all();
    set.until_ready().await;
    let store = set.store().await;
    assert_has(&store, &["oAnna", "oBob"]).await;
    collect(&store, "oCarol").await;
}

#[tokio::test]
async fn the_services_leave_a_master_that_was_cut_off_from_the_others() {
    let mut set = Set::new();
    set.start_all();
    set.until_ready().await;
    let store = set.store().await;
    set.replicate().await;
    let cut_off = set.master().await;
    // Neither its replicas nor the Sentinels can tell it anything any more, but the services can.
    let denied = ["-psync", "-sync", "-replicaof", "-slaveof"];
    let _: () = set.ask(cut_off, redis::cmd("ACL").arg("SETUSER").arg("default").arg(&denied)).await.unwrap();
    let _: u32 = set.ask(cut_off, redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("replica")).await.unwrap();
    let url = format!("redis://:{}@{}:26379", set.passwords[0], set.pods[cut_off].host);
    let mut sentinel = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    eventually("the Sentinel knows a replica to promote", FAILOVER, async || {
        redis::cmd("SENTINEL").arg("FAILOVER").arg("formid").query_async::<()>(&mut sentinel).await.is_ok()
    })
    .await;
    let new = async |pod: usize| {
        let info: RedisResult<String> = set.ask(pod, redis::cmd("INFO").arg("replication")).await;
        pod != cut_off && info.is_ok_and(|info| info.contains("role:master") && info.contains("state=online"))
    };
    eventually("there is another master, with a replica", FAILOVER, async || {
        new(0).await || new(1).await || new(2).await
    })
    .await;
    // Until it counts its replicas as lost, the old one accepts writes.
    eventually("the old master refuses writes", FAILOVER, async || {
        let answer: RedisResult<()> = set.ask(cut_off, redis::cmd("SET").arg("x").arg(1)).await;
        answer.is_err_and(|error| error.code() == Some("NOREPLICAS"))
    })
    .await;
    collect(&store, "oAnna").await;
    for pod in (0..3).filter(|pod| *pod != cut_off) {
        eventually("the other pods have it", FAILOVER, async || {
            set.ask::<u32>(
                pod,
                redis::cmd("EXISTS").arg(BucketKeys::new(&app(), store.bucket_of(&user("oAnna"))).users()),
            )
            .await
            .is_ok_and(|found| found == 1)
        })
        .await;
    }
}

#[tokio::test]
async fn a_master_without_its_volume_copies_the_data_of_the_others() {
    let mut set = Set::new();
    set.start_all();
    set.until_ready().await;
    let store = set.store().await;
    collect(&store, "oAnna").await;
    set.replicate().await;
    let empty = set.master().await;
    set.kill_all();
    std::fs::remove_dir_all(set.data(empty)).unwrap();
    set.start_all();
    set.until_ready().await;
    assert_ne!(set.master().await, empty);
    assert_has(&store, &["oAnna"]).await;
    assert!(text(&set.log(empty)).contains("has no data, and"), "{}", text(&set.log(empty)));
}

#[tokio::test]
async fn the_services_may_not_delete_everything() {
    let mut set = Set::new();
    set.start_all();
    set.until_ready().await;
    let master = &set.pods[set.master().await].host;
    let client = redis::Client::open(format!("redis://formid:{}@{master}:6379", set.passwords[0])).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for command in ["FLUSHALL", "KEYS *", "CONFIG GET requirepass", "SHUTDOWN", "REPLICAOF NO ONE", "GET other"] {
        let words: Vec<_> = command.split(' ').collect();
        let refused = redis::cmd(words[0]).arg(&words[1..]).query_async::<()>(&mut connection).await.unwrap_err();
        assert_eq!(refused.code(), Some("NOPERM"), "{command}: {refused}");
    }
    for host in set.pods.iter().map(|pod| &pod.host) {
        for port in [6379, 26379] {
            let client = redis::Client::open(format!("redis://{host}:{port}")).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let refused = redis::cmd("PING").query_async::<()>(&mut connection).await.unwrap_err();
            assert_eq!(refused.code(), Some("NOAUTH"), "{host}:{port}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_snapshot_of_a_replica_is_restored_into_an_empty_set() {
    let mut set = Set::new();
    set.start_all();
    set.until_ready().await;
    let store = set.store().await;
    // An openid is a part of no key here, but a request id is: keys with spaces and quotes are restored too.
    let odd: Vec<Vec<u8>> = (0..25).map(|number| format!("formid:{{wx1:0}}:\"a b\\'{number}\n").into_bytes()).collect();
    let master = set.master().await;
    for key in &odd {
        let _: () = set.ask(master, redis::cmd("SET").arg(key).arg("x").arg("EX").arg(3600)).await.unwrap();
    }
    collect(&store, "oAnna").await;
    set.replicate().await;
    // An older snapshot, which the next one replaces, and a part of one.
    for old in ["formid-20260101T000000Z.rdb", "formid-20260102T000000Z.rdb", "formid-20260103T000000Z.rdb.part"] {
        File::create(set.backups().join(old)).unwrap();
    }
    let taken = set.run("backup.sh", &[], &[("KEEP", "2")]);
    assert!(taken.status.success(), "{}", printed(&taken));
    let mut snapshots: Vec<_> = std::fs::read_dir(set.backups())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    snapshots.sort();
    assert_eq!((snapshots.len(), snapshots[0].as_str()), (2, "formid-20260102T000000Z.rdb"), "{snapshots:?}");

    let restore = |snapshot: &str| set.run("restore.sh", &[], &[("SNAPSHOT", snapshot)]);
    let refused = restore("");
    assert!(!refused.status.success() && printed(&refused).contains(&snapshots[1]), "{}", printed(&refused));
    let refused = restore(&snapshots[1]);
    assert!(!refused.status.success() && printed(&refused).contains("must be empty"), "{}", printed(&refused));
    collect(&store, "oBob").await;
    let emptied = set.run("ask.sh", &["FLUSHALL"], &[]);
    assert!(emptied.status.success() && printed(&emptied).starts_with("OK"), "{}", printed(&emptied));
    let damaged = restore(&snapshots[0]);
    assert!(!damaged.status.success(), "{}", printed(&damaged));
    let restored = restore(&snapshots[1]);
    assert!(restored.status.success(), "{}", printed(&restored));
    assert!(!printed(&restored).contains(set.passwords[1]), "{}", printed(&restored));
    set.replicate().await;
    assert_has(&store, &["oAnna"]).await;
    for pod in 0..3 {
        for key in &odd {
            let left: i64 = set.ask(pod, redis::cmd("TTL").arg(key)).await.unwrap();
            assert!((1..=3600).contains(&left), "{left}");
        }
    }
}
