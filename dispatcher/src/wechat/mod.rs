//! WeChat's API.
//!
//! - [`errcode`]: what its codes mean
//! - [`message`]: the body of a message
//! - [`values`]: which values a subscription message may have
//! - [`client`]: HTTP calls; [`reply`]: the answers; [`error`]: the errors
//! - [`token`]: the access token

mod http;

pub mod client;
pub mod errcode;
pub mod error;
pub mod message;
pub mod reply;
pub mod token;
pub mod token_codes;
pub(crate) mod values;
