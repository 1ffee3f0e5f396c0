//! Integration tests of the collector: its RPCs over real connections, with a real redis-server.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]

mod bad_input;
mod collecting;
mod edge;
mod events;
mod failover;
mod fixture;
mod grants;
mod grpcurl;
mod metrics;
mod outages;
mod process;
mod stock;
mod streams;
mod traces;
mod writers;
