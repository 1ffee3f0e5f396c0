//! Authentication and authorization: who may call what. All of it is decided here. Handlers ask a [`Caller`] whether it
//! may use the app of a request.
//!
//! - [`permission`]: the permissions; [`methods`]: which of them each RPC needs, as a table;
//! - [`file`](mod@file): the callers file; [`caller_config`]: one caller as configured there;
//! - [`callers`]: maps tokens and certificates to callers, and reloads the file;
//! - [`caller`]: the caller of a request, and the checks that handlers make on it;
//! - [`certificate`]: the names in a client's certificate; [`rate`]: calls per second; [`audit`]: the audit log.
//!
//! The service knows only the SHA-256 of each token. Neither tokens nor hashes appear in logs, errors or `Debug`
//! output.

pub mod audit;
pub mod caller;
pub mod caller_config;
pub mod callers;
pub mod certificate;
pub mod file;
pub mod methods;
pub mod permission;
pub mod rate;

pub use caller::Caller;
pub use callers::Callers;
pub use permission::Permission;
