//! What both services stand on.
//!
//! - [`credential`]: the domain, parsed once at the edge and then trusted;
//! - [`store`]: everything that is kept in Redis, and the only place that knows how;
//! - [`proto`]: the generated protocol;
//! - [`auth`]: who may call what;
//! - [`status`]: how errors look to a caller; [`fields`]: collecting every bad field of a request;
//! - [`metrics`]: what is counted; [`traces`]: what one call did, and how long each part took;
//! - [`outage`]: what is logged of work that is repeated until it succeeds;
//! - [`problems`]: what is wrong with settings, told at once;
//! - [`listeners`], [`settings`], [`telemetry`], [`serve`], [`deadline`], [`reload`]: the life of a service around its
//!   handlers.

pub mod auth;
pub mod credential;
pub mod deadline;
pub mod fields;
pub mod listeners;
pub mod metrics;
pub mod outage;
pub mod problems;
pub mod proto;
pub mod reload;
pub mod serve;
pub mod settings;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod traces;
