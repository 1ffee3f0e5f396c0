//! Child processes: started, signaled, and killed at the latest when the test ends.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::patience::Wait;

/// A TCP port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// CPU time of this thread. Unlike elapsed time, it does not depend on what else runs on the machine.
pub fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program. Its standard output is discarded. Its standard error, the log, is that of the test.
    pub fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap_or_else(|error| {
            panic!("{} does not start: {error}", command.get_program().to_string_lossy());
        });
        Self { child }
    }

    /// Starts a program. Its standard output and standard error are appended to a file.
    pub fn start_printing(command: &mut Command, file: &Path) -> Self {
        let out = File::options().create(true).append(true).open(file).unwrap();
        let child = command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).spawn();
        Self {
            child: child.unwrap_or_else(|error| panic!("{} does not start: {error}", command.get_program().display())),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its peak resident memory, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Its current resident memory, in bytes.
    pub fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).expect("field is missing in /proc/PID/status");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        // The builtin of the shell, since not every machine has a program called kill.
        let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.id())).status().unwrap();
        assert!(status.success(), "kill -{name}");
    }

    /// Waits for the end without a timeout, and prints a line if it takes longer than `usual`. Returns the exit code;
    /// `None` if a signal ended the process.
    pub async fn wait(&mut self, usual: Duration) -> Option<i32> {
        let mut wait = Wait::new("a process ends", usual);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            wait.check();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
