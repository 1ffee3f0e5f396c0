//! The domain of both services. No I/O happens here: the crate knows neither Redis nor gRPC.
//!
//! - [`AppId`], [`OpenId`], [`Credential`] and their kin: values that are valid by construction;
//! - [`dependency`]: what the server needs to know of the store that a service depends on;
//! - [`setting`]: value parsers for flags; [`table`]: reads TOML tables; [`config_errors`]: collects their errors and
//!   reports them together.

pub mod config_errors;
mod credentials;
pub mod dependency;
mod ids;
pub mod setting;
pub mod table;

pub use credentials::*;
pub use ids::*;
