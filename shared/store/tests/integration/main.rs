//! Tests of the store on a real Redis: its guarantees about credentials, leases and requests, also for concurrent and
//! repeated calls.
//!
//! - [`sequences`], [`broadcast_sequences`]: random sequences of calls, compared with [`model`], a store in plain Rust;
//!   [`permit_sequences`]: random sequences about the number of permitted messages;
//! - [`leases`], [`requests`], [`reaper`], [`erased`], [`touch`]: the guarantees one by one;
//! - [`grants`], [`long_term`], [`void`], [`decisions`], [`rests`], [`marks`]: the guarantees for subscription messages;
//!   [`late`]: delivery failures;
//! - [`broadcast_moves`], [`broadcast_tasks`], [`broadcast_permits`]: states, tasks and rates of a broadcast;
//!   [`broadcast_audience`], [`broadcast_pages`], [`broadcast_recent`]: its audience, and how each message ends;
//!   [`broadcast_ends`], [`broadcast_keys`]: its end, and which keys stay;
//! - [`format`]: Rust and the scripts agree on the packed format;
//! - [`concurrency`]: many tasks at once; [`stock`]: the sweep and its counts;
//! - [`redis`]: restarts, lost scripts, and the keys that scripts access; [`elsewhere`]: clusters, Sentinels, TLS, and
//!   Redis users with few permissions; [`pods`]: the Redis of `deploy/kubernetes`;
//! - [`fixture`], [`broadcast`], [`raw`], [`twice`]: fixtures.

// A test that cannot continue must fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod broadcast;
mod broadcast_audience;
mod broadcast_ends;
mod broadcast_keys;
mod broadcast_moves;
mod broadcast_pages;
mod broadcast_permits;
mod broadcast_recent;
mod broadcast_sequences;
mod broadcast_tasks;
mod concurrency;
mod decisions;
mod elsewhere;
mod erased;
mod fixture;
mod format;
mod grants;
mod late;
mod leases;
mod long_term;
mod marks;
mod model;
mod permit_sequences;
#[cfg(target_os = "linux")]
mod pods;
mod raw;
mod reaper;
mod redis;
mod requests;
mod rests;
mod sequences;
mod stock;
mod touch;
mod twice;
mod void;
