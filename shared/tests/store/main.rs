//! The store on a real Redis: what it promises about credentials, leases and requests, whoever calls it and however often.
//!
//! - [`sequences`]: random sequences of calls, held against [`model`], a store in plain Rust;
//! - [`leases`], [`requests`], [`reaper`], [`erased`], [`touch`]: the promises one by one;
//! - [`format`]: what Rust packs is what the scripts read;
//! - [`concurrency`]: many tasks at once; [`stock`]: the sweep and its counts;
//! - [`redis`]: what Redis may do to the store, and what the store may do to Redis;
//! - [`world`]: what the tests stand on.

// A test that cannot go on should fail loudly.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod concurrency;
mod erased;
mod format;
mod leases;
mod model;
mod reaper;
mod redis;
mod requests;
mod sequences;
mod stock;
mod touch;
mod world;
