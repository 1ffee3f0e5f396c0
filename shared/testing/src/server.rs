//! One redis-server as a process: own ports, own folder.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::patience::Wait;
use crate::process::Process;
use crate::resp;
use crate::tls::{Authority, Pair};

/// How long a redis-server takes at most to start, and a set of them to find together, on a machine that is not busy.
const USUAL: Duration = Duration::from_secs(20);

/// How often other ports are tried where a redis-server ended at once.
const TRIES: usize = 20;

/// A redis-server, which may be down for a while.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    pub(crate) port: u16,
    /// Where it is encrypted, if it is.
    pub(crate) tls_port: Option<u16>,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Server {
    /// One that is still to be started, with the arguments of redis-server but for its port and folder.
    pub(crate) fn new(port: u16, arguments: Vec<String>) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), port, tls_port: None, arguments, process: None }
    }

    /// The same, encrypted on another port beside.
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

    /// Puts a file into its folder.
    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Begins to start it; see [`Server::is_up`].
    pub(crate) fn spawn(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(&self.arguments).args(["--bind", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--logfile", "redis.log", "--dir", "."]).current_dir(self.folder.path());
        self.process = Some(Process::start(&mut command));
    }

    /// Whether this very Redis answers: one that is still loading its file does not, and another test's is none of ours.
    pub(crate) fn is_up(&self) -> bool {
        let Some(process) = &self.process else { return false };
        let answer = self.ask(&["PING", "INFO server"]);
        let mine = format!("process_id:{}", process.id());
        answer.starts_with("+PONG") && answer.lines().any(|line| line == mine)
    }

    /// Whether it ended by itself, as it does at once when somebody else has the port.
    pub(crate) fn ended(&mut self) -> bool {
        self.process.as_mut().is_none_or(Process::ended)
    }

    /// Whether it is meant to run.
    pub(crate) fn is_there(&self) -> bool {
        self.process.is_some()
    }

    /// Where it is by itself, in the clear.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Whether it takes commands for a key.
    pub fn is_master_of(&self, key: &str) -> bool {
        let answer = self.ask(&[&format!("EXISTS {key}"), "ROLE"]);
        answer.starts_with(':') && answer.contains("\r\nmaster\r\n")
    }

    /// From now on its replicas learn nothing more of it: what it does is lost when it is.
    pub fn cut_off_replicas(&self) {
        for command in ["ACL SETUSER default -psync -sync", "CLIENT KILL TYPE replica"] {
            let answer = self.ask(&[command]);
            assert!(answer.starts_with(['+', ':']), "{command}: {answer}");
        }
    }

    /// Whether a replica has all that was written so far; `key` is one that lies here.
    pub(crate) fn is_replicated(&self, key: &str) -> bool {
        // WAIT is about the writes of its own connection, and replicas take all writes in turn.
        self.ask(&[&format!("SET {key}:passed 1 PX 1000"), "WAIT 1 500"]).starts_with("+OK\r\n:1")
    }

    /// Whether a replica is up to date with it, or as good as.
    pub(crate) fn has_replica(&self) -> bool {
        self.ask(&["INFO replication"]).contains("state=online")
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops it where it is: connections stay open, and nobody answers.
    pub fn hang(&self) {
        self.process.as_ref().expect("it is down").signal("STOP");
    }

    /// Lets it go on after [`Server::hang`].
    pub fn go_on(&self) {
        self.process.as_ref().expect("it is down").signal("CONT");
    }

    /// What it answers to some commands, as it comes over the wire; empty while it does not.
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

/// Starts some of them together; false when one ended at once, and then all are down.
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

/// Makes servers on free ports and starts them; again with others where another test was faster.
pub(crate) fn start_on_free_ports<const PORTS: usize>(make: impl Fn([u16; PORTS]) -> Vec<Server>) -> Vec<Server> {
    for _ in 0..TRIES {
        let mut servers = make(free_ports());
        if start_all(&mut servers) {
            return servers;
        }
    }
    panic!("redis-server ended at once, {TRIES} times");
}

/// Waits until something holds, however long it takes.
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
