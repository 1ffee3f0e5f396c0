//! A redis-server process with its own ports and directory.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::patience::Wait;
use crate::process::Process;
use crate::resp;
use crate::tls::{Authority, Pair};

/// How long a redis-server takes at most to start, and a set of them to connect to each other, on a machine that is not
/// busy.
const USUAL: Duration = Duration::from_secs(20);

/// How many sets of ports are tried, if a redis-server exits immediately.
const TRIES: usize = 20;

/// A redis-server, which can be stopped and restarted.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    pub(crate) port: u16,
    /// The port for TLS, if there is one.
    pub(crate) tls_port: Option<u16>,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Server {
    /// A server that is not started yet. The arguments are those of redis-server without port and directory.
    pub(crate) fn new(port: u16, arguments: Vec<String>) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), port, tls_port: None, arguments, process: None }
    }

    /// Adds a second port with TLS.
    pub(crate) fn encrypted(mut self, tls_port: u16, authority: &Authority) -> Self {
        let Pair { cert, key } = authority.server();
        for (flag, name, text) in
            [("ca-cert", "ca.pem", &authority.pem), ("cert", "certificate.pem", &cert), ("key", "key.pem", &key)]
        {
            self.write(name, text);
            self.arguments.extend([format!("--tls-{flag}-file"), name.to_owned()]);
        }
        let port = tls_port.to_string();
        self.arguments.extend(["--tls-port", &port, "--tls-auth-clients", "no"].map(str::to_owned));
        Self { tls_port: Some(tls_port), ..self }
    }

    /// Writes a file into its directory.
    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Starts the process and does not wait until it answers; see [`Server::is_up`].
    pub(crate) fn spawn(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(&self.arguments).args(["--bind", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--logfile", "redis.log", "--dir", "."]).current_dir(self.folder.path());
        self.process = Some(Process::start(&mut command));
    }

    /// Whether this process answers. A Redis that is still loading its file does not. A Redis of another test that has
    /// the port is recognized by its process id.
    pub(crate) fn is_up(&self) -> bool {
        let Some(process) = &self.process else { return false };
        let answer = self.ask(&["PING", "INFO server"]);
        let mine = format!("process_id:{}", process.id());
        answer.starts_with("+PONG") && answer.lines().any(|line| line == mine)
    }

    /// Whether it exited by itself. It exits immediately if its port is taken.
    pub(crate) fn ended(&mut self) -> bool {
        self.process.as_mut().is_none_or(Process::ended)
    }

    /// Whether it was started and not killed since.
    pub(crate) fn is_there(&self) -> bool {
        self.process.is_some()
    }

    /// The URL of this server alone, without TLS.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Whether it is the master of a key.
    pub fn is_master_of(&self, key: &str) -> bool {
        let answer = self.ask(&[&format!("EXISTS {key}"), "ROLE"]);
        answer.starts_with(':') && answer.contains("\r\nmaster\r\n")
    }

    /// Stops replication: writes from now on are lost if this server is lost.
    pub fn cut_off_replicas(&self) {
        for command in ["ACL SETUSER default -psync -sync", "CLIENT KILL TYPE replica"] {
            let answer = self.ask(&[command]);
            assert!(answer.starts_with(['+', ':']), "{command}: {answer}");
        }
    }

    /// Whether a replica has all writes so far. `key` is any key that belongs to this server.
    pub(crate) fn is_replicated(&self, key: &str) -> bool {
        // WAIT covers only the writes of its own connection, but replicas apply all writes in order.
        self.ask(&[&format!("SET {key}:passed 1 PX 1000"), "WAIT 1 500"]).starts_with("+OK\r\n:1")
    }

    /// Whether a replica is online, so that it has (almost) all writes.
    pub(crate) fn has_replica(&self) -> bool {
        self.ask(&["INFO replication"]).contains("state=online")
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Suspends the process: its connections stay open, but it does not answer.
    pub fn hang(&self) {
        self.process.as_ref().expect("the server is down").signal("STOP");
    }

    /// Resumes the process after [`Server::hang`].
    pub fn go_on(&self) {
        self.process.as_ref().expect("the server is down").signal("CONT");
    }

    /// The replies to some commands in wire format; empty if it does not answer.
    pub fn ask(&self, commands: &[&str]) -> String {
        let Ok(mut stream) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port))) else {
            return String::new();
        };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.write_all(format!("{}\r\n", commands.join("\r\n")).as_bytes());
        let (mut answers, mut piece) = (Vec::new(), [0; 4096]);
        let all_there = |answers: &[u8]| {
            commands.iter().try_fold(0, |at, _| Some(at + resp::length(answers.get(at..)?)?)).is_some()
        };
        while !all_there(&answers) {
            match stream.read(&mut piece) {
                Ok(count @ 1..) => answers.extend_from_slice(&piece[..count]),
                _ => return String::new(),
            }
        }
        String::from_utf8_lossy(&answers).into_owned()
    }
}

/// Starts servers together. If one of them exits immediately, kills all and returns false.
pub(crate) fn start_all(servers: &mut [Server]) -> bool {
    servers.iter_mut().for_each(Server::spawn);
    let mut wait = Wait::new("redis-server answers", USUAL);
    while !servers.iter().all(Server::is_up) {
        if servers.iter_mut().any(Server::ended) {
            servers.iter_mut().for_each(Server::kill);
            return false;
        }
        wait.check();
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Creates servers on free ports and starts them. Tries other ports if another test took one of them.
pub(crate) fn start_on_free_ports<const PORTS: usize>(make: impl Fn([u16; PORTS]) -> Vec<Server>) -> Vec<Server> {
    for _ in 0..TRIES {
        let mut servers = make(free_ports());
        if start_all(&mut servers) {
            return servers;
        }
    }
    panic!("redis-server exited immediately, {TRIES} times");
}

/// Waits without a timeout until a condition holds.
pub(crate) fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let mut wait = Wait::new(what, USUAL);
    while !holds() {
        wait.check();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Different ports that were free a moment ago.
fn free_ports<const PORTS: usize>() -> [u16; PORTS] {
    let taken = [(); PORTS].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    taken.map(|listener| listener.local_addr().unwrap().port())
}
