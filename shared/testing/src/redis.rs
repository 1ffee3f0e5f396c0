//! A redis-server of the test's own: own port, own folder, gone with the test.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use shared::store::{RedisConfig, Store, StoreConfig};
use tempfile::TempDir;

use crate::process::{Process, free_port};

/// A running redis-server.
#[derive(Debug)]
pub struct Redis {
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    process: Option<Process>,
}

impl Redis {
    /// Starts one that keeps nothing on disk.
    pub fn start() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "no"])
    }

    /// Starts one that survives a kill: append-only, fsync at each write.
    pub fn durable() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
    }

    /// Starts one with settings as redis-server takes them.
    pub fn start_with(settings: &[&str]) -> Self {
        let settings = settings.iter().map(ToString::to_string).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut redis = Self { folder, port: free_port(), settings, process: None };
        redis.resume();
        redis
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same port and folder; waits until it answers.
    pub fn resume(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--dir"]).arg(self.folder.path());
        command.args(["--logfile", "redis.log"]).args(&self.settings);
        self.process = Some(Process::start(&mut command));
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let start = Instant::now();
        while !answers(address) {
            assert!(start.elapsed() < Duration::from_secs(10), "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A store on it with 4 buckets, so that users share them, and the usual cap.
    pub async fn store(&self) -> Store {
        let store = Store::new(&store_config(self.url())).unwrap();
        store.prepare().await.unwrap();
        store
    }
}

/// The settings of [`Redis::store`].
pub fn store_config(url: String) -> StoreConfig {
    StoreConfig { redis: RedisConfig { url, connections: 2, timeout: Duration::from_secs(2) }, buckets: 4, cap: 120 }
}

/// Whether Redis answers PONG: one that is still loading its file does not.
fn answers(address: SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut answer = [0; 5];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"+PONG"
}
