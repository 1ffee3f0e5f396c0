//! The log of the program.
#![allow(clippy::unwrap_used, reason = "a failed step of a test should end it")]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

#[test]
fn log_into_a_pipe_has_no_colors() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandbox"));
    command.args(["--listen", "127.0.0.1:0"]).stderr(Stdio::piped());
    let mut sandbox = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(sandbox.stderr.take().unwrap()).read_line(&mut line).unwrap();
    sandbox.kill().unwrap();
    sandbox.wait().unwrap();
    assert!(line.contains("INFO") && line.contains("serving"), "{line}");
    assert!(!line.contains('\u{1b}'), "{line:?}");
}
