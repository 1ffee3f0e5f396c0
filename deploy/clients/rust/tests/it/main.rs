//! What callers are told and given: proto/README.md, the service config, and the clients in Rust and Python, the latter as
//! processes against real services.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that is skipped says so, and one what it measured"
)]

mod commands;
mod contract;
mod failover;
mod load;
mod policy;
mod rig;
mod torn;

// Of the client in Rust, what stands in place of the channel of a gRPC library.
#[allow(dead_code, reason = "the patience is the test's own")]
#[path = "../../src/problem.rs"]
mod problem;
#[path = "../../src/replicas.rs"]
mod replicas;
