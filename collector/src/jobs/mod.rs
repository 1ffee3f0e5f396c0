//! What runs beside calls: each job repeats until the collector stops.
//!
//! - [`sweeper`]: drops credentials that expired and counts the stock; [`gauges`]: keeps the metrics of the stock.

pub mod gauges;
pub mod sweeper;
