//! Attacks on a collector in small form: what once stopped it, filled its memory or kept others waiting.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]

mod connections;
mod counts;
mod events;
mod fields;
mod hang_ups;
mod health;
mod memory;
mod process;
mod redis;
mod refusals;
mod settings;
mod streams;
#[path = "../it/support.rs"]
#[allow(dead_code, reason = "the fixture of the other tests, of which these need a part")]
mod support;
