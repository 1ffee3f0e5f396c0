//! The programs a measurement needs, and the users and form ids it works on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use shared::credential::{AppId, Credential, CredentialId, Kind, LIFETIME, OpenId};
use shared::store::credentials::{MAX_COLLECT, Packed};
use shared::store::{RedisConfig, Store, StoreConfig};
use testing::{Process, Redis, eventually};
use tonic::transport::{Channel, Endpoint};

pub use crate::bare::{APP, SECRET};

/// A program of this workspace, built beside the benchmark itself.
pub fn program(name: &str) -> Command {
    let path: PathBuf = std::env::current_exe().unwrap().with_file_name(name);
    assert!(path.exists(), "{} is missing: deploy/bench.sh builds it", path.display());
    let mut command = Command::new(path);
    command.env("FORMID_LOG", "warn").env("SANDBOX_LOG", "warn");
    command
}

/// A 32-digit hex form id, never the same twice.
pub fn form_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The openid of a user by number, as long as WeChat's are.
pub fn openid(user: usize) -> String {
    format!("oBENCH-{user:021}")
}

/// A form id as the collector would store it.
pub fn packed(user: usize, form_id: &str) -> Packed {
    let expiry = (testing::now() as u64 + LIFETIME.as_secs()) as u32;
    let id = CredentialId::parse(form_id).unwrap();
    Packed::new(OpenId::parse(openid(user)).unwrap(), &Credential { kind: Kind::FormId, id, uses: 1, expiry })
}

/// Stores credentials as the collector does, with its usual settings.
pub async fn fill(redis: &Redis, credentials: impl Iterator<Item = Packed>) {
    let config = RedisConfig { url: redis.url(), connections: 2, timeout: Duration::from_secs(10) };
    let store = Store::new(&StoreConfig { redis: config, buckets: 512, cap: 120 }).unwrap();
    store.prepare().await.unwrap();
    let app = AppId::parse(APP).unwrap();
    let mut buckets = BTreeMap::<_, Vec<_>>::new();
    for credential in credentials {
        buckets.entry(store.bucket_of(&credential.openid)).or_default().push(credential);
    }
    for (bucket, credentials) in buckets {
        for part in credentials.chunks(MAX_COLLECT) {
            store.collect(&app, bucket, part).await.unwrap();
        }
    }
}

/// Connections to a service that has just been started.
pub async fn channels(port: u16, count: usize) -> Vec<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().tcp_nodelay(true);
    eventually("the service listens", Duration::from_secs(20), async || endpoint.connect().await.is_ok()).await;
    let mut channels = Vec::new();
    for _ in 0..count {
        channels.push(endpoint.connect().await.unwrap());
    }
    channels
}

/// Starts a program that lives as long as what is returned.
pub fn start(mut command: Command) -> Process {
    Process::start(&mut command)
}
