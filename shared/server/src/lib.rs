//! Code that both services share.
//!
//! - [`credential`]: the domain types, parsed at the rpc edge;
//! - [`store`]: all data in Redis; no other module uses Redis directly;
//! - [`proto`]: the code generated from the protos;
//! - [`auth`]: who may call what;
//! - [`status`]: errors as callers see them; [`fields`]: collects the invalid fields of a request;
//! - [`metrics`]: Prometheus metrics; [`traces`]: spans of calls and their duration;
//! - [`outage`]: logs work that is retried until it succeeds;
//! - [`problems`]: collects configuration errors and reports them together;
//! - [`listeners`], [`settings`], [`telemetry`], [`serve`], [`deadline`], [`reload`]: start, serving and shutdown of a
//!   service.

pub mod auth;
pub mod config;
pub mod listen;
pub mod proto;
pub mod reload;
pub mod rpc;
pub mod serve;
pub mod telemetry;
