//! The store on a real Redis: what it promises about credentials, leases and requests, whoever calls it and however often.
//!
//! - [`sequences`], [`broadcast_sequences`]: random sequences of calls, held against [`model`], a store in plain Rust;
//!   [`permit_sequences`]: such sequences of how many messages are permitted;
//! - [`leases`], [`requests`], [`reaper`], [`erased`], [`touch`]: the promises one by one;
//! - [`grants`], [`long_term`], [`void`], [`marks`]: those about subscription messages; [`late`]: what fails later;
//! - [`broadcast_moves`], [`broadcast_tasks`], [`broadcast_permits`]: how a broadcast goes on; [`broadcast_audience`],
//!   [`broadcast_pages`], [`broadcast_recent`]: to whom, and how each message ends; [`broadcast_ends`], [`broadcast_keys`]: what stays;
//! - [`format`]: what Rust packs is what the scripts read;
//! - [`concurrency`]: many tasks at once; [`stock`]: the sweep and its counts;
//! - [`redis`]: what Redis may do to the store, and what the store may do to Redis; [`elsewhere`]: clusters, Sentinels,
//!   encryption, users of few rights;
//! - [`world`], [`broadcast`], [`raw`], [`twice`]: what the tests stand on.

// A test that cannot go on should fail loudly.
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
mod elsewhere;
mod erased;
mod format;
mod grants;
mod late;
mod leases;
mod long_term;
mod marks;
mod model;
mod permit_sequences;
mod raw;
mod reaper;
mod redis;
mod requests;
mod sequences;
mod stock;
mod touch;
mod twice;
mod void;
mod world;
