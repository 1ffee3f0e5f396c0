//! Background jobs: each job repeats until the collector stops.
//!
//! - [`sweeper`]: deletes expired credentials and counts the stock; [`gauges`]: updates the metrics of the stock.

pub mod gauges;
pub mod sweeper;
