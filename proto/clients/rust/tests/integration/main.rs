//! Tests of what callers rely on: proto/README.md, the service config, and the clients in Rust and Python. The clients
//! run as processes against real services.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test should end it")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a skipped test says so, and one test prints its measurements"
)]

mod commands;
mod contract;
mod failover;
mod fixture;
mod load;
mod policy;
mod torn;

// Modules of the Rust client that replace the channel of a gRPC library.
#[allow(dead_code, reason = "the tests have their own retries")]
#[path = "../../src/problem.rs"]
mod problem;
#[path = "../../src/replicas.rs"]
mod replicas;
