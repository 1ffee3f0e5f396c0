//! What callers are told and given: proto/README.md, the service config, and the clients in Rust and Python, the latter as
//! processes against real services.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

mod commands;
mod contract;
mod failover;
mod policy;
mod rig;
