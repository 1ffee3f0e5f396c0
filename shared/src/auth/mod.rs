//! Who may call what. This is the only room that decides it; handlers ask a [`Caller`] about the app of a request.
//!
//! - [`permission`]: what can be permitted, and [`methods`]: what each RPC needs, as a table;
//! - [`file`](mod@file): the callers file, and [`callers`]: whom a token or a certificate belongs to, also after the file changed;
//! - [`caller`]: whose call it is, and what handlers may ask about that;
//! - [`certificate`]: the names in a client's certificate; [`rate`]: how many calls a second; [`audit`]: who did what.
//!
//! Tokens are known by their SHA-256 only. Neither tokens nor hashes show in logs, errors or `Debug`.

pub mod audit;
pub mod caller;
pub mod callers;
pub mod certificate;
pub mod file;
pub mod methods;
pub mod permission;
pub mod rate;

pub use caller::Caller;
pub use callers::Callers;
pub use permission::Permission;
