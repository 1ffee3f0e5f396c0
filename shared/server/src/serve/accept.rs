//! Accepts connections: limits their number for each listener, and how long they may be idle.
//!
//! - When the limit is reached, the connection that has been idle for the longest time is closed for a new one. So idle
//!   connections keep no client out, however many a client opens.
//! - When the system refuses to accept connections, for example because the process is out of file descriptors, one
//!   line is logged when that begins and one when it ends.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tracing::{debug, info};

use crate::telemetry::outage::{Outage, QUIET};

/// How long to wait before accepting again after the system refused.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a connection with calls in progress is checked again.
const LOOK: Duration = Duration::from_secs(1);

/// The limits of the connections of one listener.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The name of the listener in logs.
    pub listener: &'static str,
    pub connections: usize,
    /// How long a connection may be open without a call.
    pub idle: Duration,
    /// Whether the oldest connection is closed for a new one if all have calls in progress. If not, new ones are
    /// closed.
    pub replace_busy: bool,
}

/// A listener and its open connections.
#[derive(Debug)]
pub(crate) struct Acceptor {
    listener: TcpListener,
    open: Arc<Open>,
    /// The system refuses to accept connections.
    refused: Outage,
    /// The limit of connections is reached.
    full: Outage,
}

/// The open connections of a listener.
#[derive(Debug)]
struct Open {
    bounds: Bounds,
    connections: Mutex<HashMap<u64, Arc<Usage>>>,
    /// The number of the next connection.
    next: Mutex<u64>,
}

/// How a connection is used.
#[derive(Debug)]
pub(crate) struct Usage {
    opened: Instant,
    calls: AtomicUsize,
    /// When the last call ended, or when the connection was opened.
    idle_since: Mutex<Instant>,
    /// Cancelled when the connection must close for a new one.
    replaced: CancellationToken,
}

/// An open connection. It counts as open until this is dropped.
#[derive(Debug)]
pub(crate) struct Opened {
    usage: Arc<Usage>,
    number: u64,
    open: Arc<Open>,
}

/// A call in progress on a connection.
#[derive(Debug)]
pub(crate) struct Call(Arc<Usage>);

impl Acceptor {
    pub(crate) fn new(listener: TcpListener, bounds: Bounds) -> Self {
        let open = Open { bounds, connections: Mutex::default(), next: Mutex::default() };
        let outage = |begins: &'static str, ends: &'static str| {
            Outage::new(open.bounds.listener, None, begins.into(), ends.into(), None, QUIET)
        };
        let refused = outage("connections cannot be accepted", "connections are accepted again");
        let full = outage("the limit of connections is reached", "the number of connections is below the limit again");
        Self { listener, open: Arc::new(open), refused, full }
    }

    /// Returns the next connection. This future may be dropped at any time.
    pub(crate) async fn next(&mut self) -> (TcpStream, Opened) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    self.refused.succeeded();
                    let (opened, full) = self.open.admit();
                    if full {
                        let how = if opened.is_some() { "idle ones are closed" } else { "new ones are closed" };
                        self.full.failed(&how);
                    } else {
                        self.full.succeeded();
                    }
                    if let Some(opened) = opened {
                        return (stream, opened);
                    }
                }
                Err(error) if of_one_peer(&error) => debug!(%error, "a connection failed while it was accepted"),
                Err(error) => {
                    self.refused.failed(&error);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Returns the connections that wait to be accepted now, up to the limit. Closes the listener after the last of
    /// them.
    pub(crate) fn waiting(self) -> impl Iterator<Item = (TcpStream, Opened)> {
        let Self { listener, open, .. } = self;
        // Asks the system directly, because the readiness that the runtime knows may be outdated.
        let listener = listener.into_std().ok();
        let next = move || loop {
            match listener.as_ref()?.accept() {
                Ok((stream, _)) => {
                    let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)).ok()?;
                    return Some((stream, open.admit().0?));
                }
                Err(error) if of_one_peer(&error) => {}
                Err(_) => return None,
            }
        };
        std::iter::from_fn(next)
    }
}

impl Open {
    /// Adds a connection, if the limit permits or another can be closed for it. Also returns whether the limit was
    /// reached.
    fn admit(self: &Arc<Self>) -> (Option<Opened>, bool) {
        let mut connections = lock(&self.connections);
        let full = connections.len() >= self.bounds.connections;
        if full {
            let idle =
                connections.iter().filter(|(_, usage)| usage.is_idle()).min_by_key(|(_, usage)| usage.idle_since());
            let busy = connections.iter().min_by_key(|(_, usage)| usage.opened).filter(|_| self.bounds.replace_busy);
            let Some(number) = idle.or(busy).map(|(number, _)| *number) else { return (None, full) };
            if let Some(usage) = connections.remove(&number) {
                usage.replaced.cancel();
            }
        }
        let number = {
            let mut next = lock(&self.next);
            *next += 1;
            *next
        };
        let now = Instant::now();
        let usage = Arc::new(Usage {
            opened: now,
            calls: AtomicUsize::new(0),
            idle_since: Mutex::new(now),
            replaced: CancellationToken::new(),
        });
        connections.insert(number, Arc::clone(&usage));
        (Some(Opened { usage, number, open: Arc::clone(self) }), full)
    }
}

impl Opened {
    pub(crate) fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// Waits until the connection has been idle for the maximum time.
    pub(crate) async fn idle_too_long(&self) {
        loop {
            let since = self.usage.idle_since();
            sleep_until(since + self.open.bounds.idle).await;
            if self.usage.is_idle() && self.usage.idle_since() == since {
                return;
            }
            if !self.usage.is_idle() {
                // The idle time starts at the end of the last call. A slightly late check does not matter.
                sleep(self.open.bounds.idle.min(LOOK)).await;
            }
        }
    }

    /// Waits until the connection must close for a new one.
    pub(crate) fn replaced(&self) -> WaitForCancellationFuture<'_> {
        self.usage.replaced.cancelled()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        lock(&self.open.connections).remove(&self.number);
    }
}

impl Usage {
    pub(crate) fn begin(self: &Arc<Self>) -> Call {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Call(Arc::clone(self))
    }

    /// Returns whether no call is in progress.
    pub(crate) fn is_idle(&self) -> bool {
        self.calls.load(Ordering::Relaxed) == 0
    }

    fn idle_since(&self) -> Instant {
        *lock(&self.idle_since)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Errors of a single connection that its peer caused. They do not concern the listener.
fn of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Reduces the limit of connections to half of the files that the process may open. The other half is for connections
/// to Redis and WeChat.
pub(crate) fn within_files(connections: usize) -> usize {
    match std::fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(files) {
        Some(files) if files / 2 < connections => {
            let most = (files / 2).max(1);
            info!(files, wanted = connections, most, "fewer connections than --max-connections: limit of open files");
            most
        }
        _ => connections,
    }
}

/// Parses the soft limit from the text of /proc/self/limits. Returns `None` if the limit is missing or unlimited.
fn files(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    // The value is consistent at any moment, so a panic elsewhere cannot have left it half changed.
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(connections: usize, replace_busy: bool) -> Arc<Open> {
        let bounds = Bounds { listener: "test", connections, idle: Duration::from_millis(50), replace_busy };
        Arc::new(Open { bounds, connections: Mutex::default(), next: Mutex::default() })
    }

    fn is_replaced(opened: &Opened) -> bool {
        opened.usage.replaced.is_cancelled()
    }

    /// Waits so that the next event has a later time.
    async fn later() {
        sleep(Duration::from_millis(2)).await;
    }

    #[tokio::test]
    async fn longest_idle_connection_is_closed_for_a_new_one() {
        let open = open(3, false);
        let mut all = Vec::new();
        for _ in 0..3 {
            later().await;
            let (opened, full) = open.admit();
            assert!(!full);
            all.push(opened.unwrap());
        }
        // The first has a call in progress. The second had a call after the third was opened.
        let call = all[0].usage().begin();
        later().await;
        drop(all[1].usage().begin());
        let (fourth, full) = open.admit();
        assert!(full && fourth.is_some());
        assert_eq!(all.iter().map(is_replaced).collect::<Vec<_>>(), [false, false, true]);
        // Connections with calls stay open, and new ones are closed.
        let calls = [fourth.as_ref().unwrap().usage().begin(), all[1].usage().begin()];
        assert!(open.admit().0.is_none());
        drop(call);
        later().await;
        drop(calls);
        let fifth = open.admit().0;
        assert!(fifth.is_some() && is_replaced(&all[0]));
        drop(all);
        assert_eq!(lock(&open.connections).len(), 2, "a replaced connection is removed only once");
    }

    #[tokio::test]
    async fn with_replace_busy_the_oldest_connection_is_closed() {
        let open = open(2, true);
        let first = open.admit().0.unwrap();
        later().await;
        let second = open.admit().0.unwrap();
        let _calls = [first.usage().begin(), second.usage().begin()];
        assert!(open.admit().0.is_some());
        assert!(is_replaced(&first) && !is_replaced(&second));
    }

    #[tokio::test]
    async fn idle_time_starts_at_the_end_of_the_last_call() {
        let opened = open(1, false).admit().0.unwrap();
        let call = opened.usage().begin();
        let mut idle = std::pin::pin!(opened.idle_too_long());
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut idle).await.is_err());
        let start = Instant::now();
        drop(call);
        idle.await;
        assert!(start.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn limit_of_open_files_is_parsed() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max processes             95985                95985                processes\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(files(limits), Some(1024));
        assert_eq!(files("Max open files            unlimited            unlimited            files"), None);
    }
}
