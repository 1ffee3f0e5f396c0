//! Accepting connections, of every listener: so many at once, and none that is idle for long.
//!
//! - Where all are taken, the one that has been idle for the longest makes room for the next: connections that do nothing
//!   keep nobody away, however many somebody opens.
//! - When the system lets none in, as it does when the process is out of files, the log tells when that begins and when it
//!   is over, and not each time.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tracing::{debug, info, warn};

/// How long to wait before accepting again when the system refuses.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a connection that has a call is looked at again.
const LOOK: Duration = Duration::from_secs(1);

/// When nothing was refused for so long, that is over.
const QUIET: Duration = Duration::from_secs(5);

/// What bounds the connections of one listener.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// What the listener is for, in logs.
    pub listener: &'static str,
    /// The most connections at once.
    pub connections: usize,
    /// How long one may be open without a call.
    pub idle: Duration,
    /// Where all have calls, the oldest makes room too; otherwise whoever comes is turned away.
    pub replace_busy: bool,
}

/// A listener, and the connections that it has let in.
#[derive(Debug)]
pub(crate) struct Acceptor {
    listener: TcpListener,
    open: Arc<Open>,
    refused: Condition,
    full: Condition,
}

/// The connections that are open.
#[derive(Debug)]
struct Open {
    bounds: Bounds,
    connections: Mutex<HashMap<u64, Arc<Usage>>>,
    /// The number of the next one.
    next: Mutex<u64>,
}

/// How a connection is used.
#[derive(Debug)]
pub(crate) struct Usage {
    opened: Instant,
    calls: AtomicUsize,
    /// When a call last ended, or it was opened.
    idle_since: Mutex<Instant>,
    /// It has to make room.
    replaced: CancellationToken,
}

/// An open connection, which is counted until this is dropped.
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
        let [refused, full] = [(); 2].map(|()| Condition { last: None, quiet: QUIET });
        Self { listener, open: Arc::new(open), refused, full }
    }

    /// The next connection. May be given up at any time.
    pub(crate) async fn next(&mut self) -> (TcpStream, Opened) {
        let Bounds { listener, connections, .. } = self.open.bounds;
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.refused.over() => {
                    info!(listener, "connections are accepted again");
                    continue;
                }
                () = self.full.over() => {
                    info!(listener, "there is room for connections again");
                    continue;
                }
            };
            match accepted {
                Ok((stream, _)) => {
                    let (opened, full) = self.open.admit();
                    if full && self.full.happens() {
                        let how = if opened.is_some() { "idle ones are closed" } else { "new ones are closed" };
                        warn!(listener, connections, "all connections are taken: {how}");
                    }
                    if let Some(opened) = opened {
                        return (stream, opened);
                    }
                }
                Err(error) if of_one_peer(&error) => debug!(%error, "a connection broke while it was accepted"),
                Err(error) => {
                    if self.refused.happens() {
                        warn!(listener, %error, "no connection can be accepted");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Those who wait to be accepted now, as far as there is room; the listener is closed after the last of them.
    pub(crate) fn waiting(self) -> impl Iterator<Item = (TcpStream, Opened)> {
        let Self { listener, open, .. } = self;
        // By the system's own word: the runtime's may be a moment old.
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
    /// Counts a connection in, where there is room or can be made, and tells whether all were taken.
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
    /// How it is used.
    pub(crate) fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// Waits until it has been idle for as long as it may be.
    pub(crate) async fn idle_too_long(&self) {
        loop {
            let since = self.usage.idle_since();
            sleep_until(since + self.open.bounds.idle).await;
            if self.usage.is_idle() && self.usage.idle_since() == since {
                return;
            }
            if !self.usage.is_idle() {
                // From the end of its calls on it may be idle as long again; a moment more does not matter.
                sleep(self.open.bounds.idle.min(LOOK)).await;
            }
        }
    }

    /// Waits until it has to make room for another.
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
    /// A call begins.
    pub(crate) fn begin(self: &Arc<Self>) -> Call {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Call(Arc::clone(self))
    }

    /// Whether there is no call.
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

/// Something that goes on for a while, which is told at its beginning and at its end.
#[derive(Debug)]
struct Condition {
    /// When it last happened, while it is not over.
    last: Option<Instant>,
    /// It is over when it has not happened for so long.
    quiet: Duration,
}

impl Condition {
    /// Notes that it happens; whether it begins by that.
    fn happens(&mut self) -> bool {
        self.last.replace(Instant::now()).is_none()
    }

    /// Waits until it is over, once.
    async fn over(&mut self) {
        match self.last {
            None => std::future::pending().await,
            Some(last) => sleep_until(last + self.quiet).await,
        }
        self.last = None;
    }
}

/// A connection that broke while it was accepted is the peer's affair.
fn of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// How many connections a listener can have where it may have so many: at most half of the files that the process may have
/// open, since Redis and WeChat need some too.
pub(crate) fn within_files(connections: usize) -> usize {
    match std::fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(files) {
        Some(files) if files / 2 < connections => {
            let most = (files / 2).max(1);
            info!(files, wanted = connections, most, "fewer connections than --max-connections: few files may be open");
            most
        }
        _ => connections,
    }
}

/// The soft limit, in what Linux tells of limits; nothing where there is none.
fn files(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole at any moment, so a panic elsewhere cannot have left it half changed.
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

    /// Something later than all before.
    async fn later() {
        sleep(Duration::from_millis(2)).await;
    }

    #[tokio::test]
    async fn the_connection_that_is_idle_for_the_longest_makes_room() {
        let open = open(3, false);
        let mut all = Vec::new();
        for _ in 0..3 {
            later().await;
            let (opened, full) = open.admit();
            assert!(!full);
            all.push(opened.unwrap());
        }
        // The first has a call, and the second had one later than the third was opened.
        let call = all[0].usage().begin();
        later().await;
        drop(all[1].usage().begin());
        let (fourth, full) = open.admit();
        assert!(full && fourth.is_some());
        assert_eq!(all.iter().map(is_replaced).collect::<Vec<_>>(), [false, false, true]);
        // Those that have calls stay, and who comes then is turned away.
        let calls = [fourth.as_ref().unwrap().usage().begin(), all[1].usage().begin()];
        assert!(open.admit().0.is_none());
        drop(call);
        later().await;
        drop(calls);
        let fifth = open.admit().0;
        assert!(fifth.is_some() && is_replaced(&all[0]));
        drop(all);
        assert_eq!(lock(&open.connections).len(), 2, "what was replaced is not counted out twice");
    }

    #[tokio::test]
    async fn where_the_busy_make_room_too_it_is_the_oldest() {
        let open = open(2, true);
        let first = open.admit().0.unwrap();
        later().await;
        let second = open.admit().0.unwrap();
        let _calls = [first.usage().begin(), second.usage().begin()];
        assert!(open.admit().0.is_some());
        assert!(is_replaced(&first) && !is_replaced(&second));
    }

    #[tokio::test]
    async fn a_connection_is_idle_from_the_end_of_its_last_call() {
        let opened = open(1, false).admit().0.unwrap();
        let call = opened.usage().begin();
        let mut idle = std::pin::pin!(opened.idle_too_long());
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut idle).await.is_err());
        let start = Instant::now();
        drop(call);
        idle.await;
        assert!(start.elapsed() >= Duration::from_millis(50));
    }

    #[tokio::test]
    async fn what_goes_on_is_told_when_it_begins_and_when_it_is_over() {
        let mut condition = Condition { last: None, quiet: Duration::from_millis(20) };
        for _ in 0..3 {
            assert!(condition.happens());
            assert!(!condition.happens());
            condition.over().await;
        }
    }

    #[test]
    fn the_limit_of_files_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max processes             95985                95985                processes\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(files(limits), Some(1024));
        assert_eq!(files("Max open files            unlimited            unlimited            files"), None);
    }
}
