//! A tinyproxy process: a forward proxy that opens tunnels (CONNECT) for clients with a password.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Process, free_port};
use crate::server::wait;

/// A running proxy with its own port.
#[derive(Debug)]
pub struct Tinyproxy {
    port: u16,
    folder: TempDir,
    process: Process,
}

impl Tinyproxy {
    /// Starts a proxy on this machine for clients with this user and password. It opens tunnels to `to` only.
    pub fn start(user: &str, password: &str, to: u16) -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let settings = format!(
            "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 100\nAllow 127.0.0.1\nLogLevel Info\n\
             LogFile \"{}\"\nBasicAuth {user} {password}\nConnectPort {to}\n",
            folder.path().join("log").display()
        );
        std::fs::write(folder.path().join("settings"), settings).unwrap();
        let process = Process::start(&mut command(&folder.path().join("settings")));
        let proxy = Self { port, folder, process };
        proxy.until_up();
        proxy
    }

    fn until_up(&self) {
        wait("tinyproxy listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    /// Its address without the user and the password.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Kills it. Clients are refused until [`Tinyproxy::resume`].
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port.
    pub fn resume(&mut self) {
        self.process = Process::start(&mut command(&self.folder.path().join("settings")));
        self.until_up();
    }

    /// All that it has logged: each request line that it could read.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// In the foreground. deploy/test.sh installs the program.
fn command(settings: &Path) -> Command {
    let mut command = Command::new("tinyproxy");
    command.arg("-d").arg("-c").arg(settings);
    command
}
