//! Small-scale attacks on a collector. Each one once stopped it, exhausted its memory, or blocked other callers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]

mod connections;
mod counts;
mod events;
mod fields;
#[path = "../integration/fixture.rs"]
#[allow(dead_code, reason = "the fixture of the other tests, of which these need a part")]
mod fixture;
mod hang_ups;
mod health;
mod memory;
mod process;
mod redis;
mod refusals;
mod settings;
mod streams;
