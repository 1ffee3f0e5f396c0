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
mod readme;
mod restore;
mod sends;
mod stops;
mod subscription;
mod traces;
mod whole;
