//! What runs beside calls: each job repeats until the dispatcher stops.
//!
//! - [`reaper`]: settles leases that expired; [`pauses`]: keeps the metric of paused broadcasts.

pub mod pauses;
pub mod reaper;
