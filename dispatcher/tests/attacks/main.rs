//! Attacks on a dispatcher at small scale: cases that once stopped it, filled its memory or blocked other calls.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]

mod counts;
mod errors;
mod fields;
#[path = "../integration/fixture.rs"]
#[allow(dead_code, reason = "the fixture of the other tests, of which these need a part")]
mod fixture;
mod memory;
mod redis;
mod settings;
mod streams;
