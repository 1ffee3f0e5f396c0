//! Tests of the whole dispatcher: on a real Redis, with the sandbox in place of WeChat.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]

mod bad_input;
mod broadcast;
mod callers;
mod codes;
mod crash;
mod doubt;
mod failover;
mod fixture;
mod grpcurl;
mod logs;
mod metrics;
mod overload;
mod previous_release;
mod proxy;
mod readme;
mod restore;
mod sends;
mod stops;
mod subscription;
#[allow(dead_code, reason = "the tests of tokens use all of it")]
#[path = "../tokens/token_server.rs"]
mod token_server;
mod token_sources;
mod traces;
mod whole;
