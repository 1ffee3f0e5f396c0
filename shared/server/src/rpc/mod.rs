//! Code for gRPC calls that both services share.
//!
//! - [`status`]: errors as a caller sees them; [`reason`]: their reasons, as a table;
//! - [`fields`]: reads the fields of a request and collects every bad one;
//! - [`deadline`]: ends a call at its caller's deadline.

pub mod deadline;
pub mod fields;
pub mod reason;
pub mod status;
