//! Broadcasts: one message to each user of an audience, even if replicas crash or Redis fails before it is done.
//!
//! Calls arrive at [`api`], which stores the broadcast ([`spec`]). From then on the scheduler ([`scheduler`]) of each
//! replica takes tasks, each for one bucket of users. A worker ([`worker`]; `worker_io` holds its Redis calls)
//! processes a task: it takes users and leases page by page, sends ([`message`]), and settles. All workers of a
//! broadcast on a replica share [`active`]. It holds the adaptive limit of messages in flight ([`limiter`]), the rules
//! that pause a broadcast ([`stop_rules`]), and the broadcast's state. [`completion`] maps the result of a message to
//! what happens to it next. [`quota`] keeps the app's daily count equal to WeChat's, and `lifted` resumes broadcasts
//! when a quota stop is lifted. [`reason`] has the names of pause reasons and endings, and [`runtime`] the threads that
//! all this runs on.
//!
//! All state that matters is in Redis. One script removes a user from the audience and leases a credential. The user
//! then stays in flight until one script settles the credential and records the outcome. If the outcome is unknown
//! after a takeover, the message is sent again with the same credential. Permits to send are stored with the bucket
//! too, see [`permits`](store::broadcast::permits).

pub mod active;
pub mod api;
pub mod completion;
mod lifted;
pub mod limiter;
mod lookup;
mod message;
pub mod quota;
pub mod reason;
pub mod runtime;
pub mod scheduler;
pub mod spec;
pub mod stop_rules;
pub mod worker;
mod worker_io;
