//! WeChat, as a sender meets it.
//!
//! - [`answer`]: what its codes mean; [`message`]: what is sent; [`keywords`]: what its values may be; [`client`]: the one
//!   HTTP call; [`token`]: the access token.

pub mod answer;
pub mod client;
pub mod keywords;
pub mod message;
pub mod token;
