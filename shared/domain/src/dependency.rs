//! The server's view of the store that a service depends on: whether it is ready, what kind of error it returned, and
//! how its commands end. The store implements these traits and the server uses them, so that neither depends on the
//! other.

use std::error::Error;
use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

/// The target of the `tracing` spans that are exported as traces, and of nothing else.
pub const TRACE_TARGET: &str = "formid::traces";

/// Readiness follows a dependency: a service is ready while its dependency answers.
pub trait Dependency: Send + Sync {
    type Error: Fault;

    /// Makes the dependency usable. Called at the start, and again after each time that it did not answer.
    fn prepare(&self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    fn ping(&self) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// An error of a dependency, in the words that a caller of the service and the log need.
pub trait Fault: Error {
    fn kind(&self) -> FaultKind;
}

/// The effect of a dependency's error on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The dependency does not answer. It may answer later, so the call can be repeated.
    Unavailable,
    /// Repeating does not help until an operator repairs the data or the program changes. `log` is the line that the
    /// server logs with the error; `None` if the dependency has logged it already.
    Lasting { log: Option<&'static str> },
    /// The service is configured for another dependency than this one. It must not start.
    Misconfigured,
}

/// Receives the outcome of each command to a dependency, for metrics and logs.
pub trait CommandObserver: Send + Sync {
    /// A command ended after this time, with an answer or by its timeout.
    fn took(&self, command: &str, time: Duration);

    fn succeeded(&self);

    /// A command was refused with an error that repeating it does not change.
    fn refused(&self);

    /// A command failed with an error that may pass.
    fn failed(&self, error: &dyn Display);

    /// The dependency was checked: whether it is up.
    fn is_up(&self, up: bool);
}
