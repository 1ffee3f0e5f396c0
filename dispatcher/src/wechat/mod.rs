//! WeChat's API.
//!
//! - [`answer`]: what its codes mean
//! - [`message`]: the body of a message
//! - [`keywords`]: which values a subscription message may have
//! - [`client`]: HTTP calls
//! - [`token`]: the access token

pub mod answer;
pub mod client;
pub mod keywords;
pub mod message;
pub mod token;
