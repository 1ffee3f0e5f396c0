//! A redis-server of the test's own: own port, own folder, gone with the test.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use shared::store::{RedisConfig, Store, StoreConfig};
use tempfile::TempDir;

use crate::process::{Process, free_port};

/// How long a redis-server may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

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
        let start = Instant::now();
        // Another test may take the port first.
        while !redis.try_to_start() {
            assert!(start.elapsed() < PATIENCE, "redis-server does not start");
            redis.port = free_port();
        }
        redis
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same port and folder; waits until it answers.
    pub fn resume(&mut self) {
        let start = Instant::now();
        // The system gives the port to connections too, for a moment.
        while !self.try_to_start() {
            assert!(start.elapsed() < PATIENCE, "redis-server does not start again");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// False when it ended at once, as it does when somebody else has the port.
    fn try_to_start(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--dir"]).arg(self.folder.path());
        command.args(["--logfile", "redis.log"]).args(&self.settings);
        let mut process = Process::start(&mut command);
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let start = Instant::now();
        while !answers(address, process.id()) {
            if process.ended() {
                return false;
            }
            assert!(start.elapsed() < PATIENCE, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.process = Some(process);
        true
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
    StoreConfig { redis: RedisConfig { url, connections: 2, timeout: Duration::from_secs(10) }, buckets: 4, cap: 120 }
}

/// Whether this very Redis answers PONG: one that is still loading its file does not, and another test's is none of ours.
fn answers(address: SocketAddr, process: u32) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut answer = String::new();
    let asked = stream.write_all(b"PING\r\nINFO server\r\nQUIT\r\n").is_ok();
    asked
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("+PONG")
        && answer.lines().any(|line| line == format!("process_id:{process}"))
}
