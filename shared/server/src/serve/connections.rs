//! Secures and drives connections, and closes them gracefully when they are old or idle, or when the service stops.
//! `accept` accepts them.
//!
//! - A TLS handshake runs in the connection's own task and with a timeout, so a slow or broken handshake blocks nothing
//!   else.
//! - A connection that reached its maximum age gets a GOAWAY. The client then opens another connection and loses no
//!   call. This lets load balancers that distribute connections, not calls, rebalance. It also limits how long a client
//!   certificate stays accepted after the handshake. After a grace period, streams are ended with a status, and then
//!   the connection is cut.
//! - At a stop, the listener is closed first, and the connections in its backlog are still accepted. To the system they
//!   are established: they may have sent calls, and would be reset without a GOAWAY. Then all connections get a GOAWAY
//!   at the same time, so that no client reconnects to this listener. An idle connection then closes by itself. If its
//!   peer does not react, it is closed soon.
//!
//! A caller that ends calls early must not affect other callers on the same connection. A peer that does so on purpose
//! must not get more than its share of resources:
//!
//! - Data that a peer sends on a stream that was answered early is read and discarded ([`discard`](super::discard)), so
//!   that it does not count among the 1024 errors after which HTTP/2 ends a connection. That limit stays, as a
//!   protection against peers that break the protocol on purpose to make the service reset streams. Correct clients do
//!   not reach it.
//! - A peer may open a stream and reset it immediately; such streams do not count against the number of calls on a
//!   connection. HTTP/2 counts the streams that were reset before they were begun, and ends the connection at a limit.
//!   Callers that cancel calls early would reach a low limit. Reading in turns ([`paced`](super::paced)) keeps the
//!   number of such streams, and so their memory, below a limit that is never reached. A call that has begun then costs
//!   what a rejected call costs: its caller and rate limit are checked, it takes a permit of the concurrency limit, and
//!   its handler ends as soon as the reset is noticed. Work that continues without its caller is bounded where it is
//!   done.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::debug;

pub use super::accept::Bounds;
use super::accept::{Acceptor, Opened};
use super::admission::Peer;
use super::call::CallHandler;
use super::closing::ConnectionClosing;
use super::paced::PacedStream;
use super::tls::Tls;

/// The timeout of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long streams may take to end after the signal to end.
const STREAM_GRACE: Duration = Duration::from_secs(5);
/// How often a closing connection is checked, and after how many checks without a call it is closed.
const LOOK: Duration = Duration::from_secs(1);
const IDLE_LOOKS: u32 = 3;
/// The number of bytes that a peer may send, on one stream and on all streams of a connection, before they are read. A
/// stream that is not read, because Redis is slow or no memory is free, keeps up to this many bytes in memory. The rest
/// of the connection's window stays available to the other streams.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// About how many bytes of a stream's responses are buffered for a peer that does not read.
const SEND_BUFFER: usize = 64 << 10;
/// The maximum number of calls of a connection that are reset before they begin. It is greater than the number that can
/// arrive in one turn, so callers that cancel calls early never reach it.
const RESETS_IN_A_TURN: usize = 2048;
/// The maximum number of concurrent health calls on one connection. A client needs only one watch.
const HEALTH_CALLS: usize = 8;
/// Effectively never.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// The maximum number of calls in progress on one connection. A client that needs more waits or opens another.
    pub calls: u32,
    /// Interval of HTTP/2 keepalive pings on a connection without traffic.
    pub keepalive_interval: Duration,
    /// How long the answer to a keepalive ping may take.
    pub keepalive_timeout: Duration,
    /// The age after which a connection gets a GOAWAY, with a random deviation of up to a tenth. Never if `None`.
    pub age: Option<Duration>,
    /// How much longer calls may take after that, before streams get the signal to end.
    pub grace: Duration,
    /// The limits of all connections of a listener.
    pub bounds: Bounds,
}

impl Default for ConnectionLimits {
    /// The limits for the probe port, which clients need only briefly.
    fn default() -> Self {
        let (keepalive_interval, keepalive_timeout) = (Duration::from_secs(30), Duration::from_secs(20));
        let idle = Duration::from_secs(60);
        let bounds = Bounds { listener: "probes", connections: 64, idle, replace_busy: true };
        Self { calls: 1000, keepalive_interval, keepalive_timeout, age: None, grace: Duration::from_secs(30), bounds }
    }
}

/// All connections of one listener. Dropping it cuts them.
#[derive(Debug)]
pub(super) struct Connections {
    signals: Signals,
    tasks: TaskTracker,
    _cut: DropGuard,
}

/// The maximum number of connections that are taken from the backlog at a stop: the length of the backlog that the
/// runtime requests. Without it, connections that arrive meanwhile could keep the listener open.
const BACKLOG: usize = 1024;

#[derive(Debug, Clone, Default)]
struct Signals {
    /// Stop accepting.
    close: CancellationToken,
    /// Finish the calls in progress.
    stop: CancellationToken,
    /// Close immediately.
    cut: CancellationToken,
}

impl Connections {
    pub(super) fn accept(
        listener: TcpListener,
        tls: Option<Tls>,
        limits: ConnectionLimits,
        handler: CallHandler,
    ) -> Self {
        let handler = Arc::new(handler);
        let (signals, tasks) = (Signals::default(), TaskTracker::new());
        let (closing, spawner) = (signals.clone(), tasks.clone());
        let mut acceptor = Acceptor::new(listener, limits.bounds.clone());
        let of_connection = signals.clone();
        let open = move |(stream, opened)| {
            let connection = Connection { signals: of_connection.clone(), limits: limits.clone(), opened };
            spawner.spawn(connection.secured(stream, tls.clone(), Arc::clone(&handler)));
        };
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    accepted = acceptor.next() => open(accepted),
                    () = closing.close.cancelled() => break,
                    () = closing.cut.cancelled() => break,
                }
            }
            if !closing.cut.is_cancelled() {
                acceptor.waiting().take(BACKLOG).for_each(open);
            }
            closing.stop.cancel();
        });
        let cut = signals.cut.clone().drop_guard();
        Self { signals, tasks, _cut: cut }
    }

    /// Stops accepting and waits up to `bound` for calls to finish. Returns false if some connections were cut.
    pub(super) async fn drain(self, bound: Duration) -> bool {
        self.signals.close.cancel();
        self.tasks.close();
        tokio::time::timeout(bound, self.tasks.wait()).await.is_ok()
    }
}

struct Connection {
    signals: Signals,
    limits: ConnectionLimits,
    opened: Opened,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// GOAWAY was sent; calls in progress finish.
    Old,
    /// Streams got the signal to end.
    Ending,
    /// The service stops; the drain sets the bound.
    Stopping,
}

impl Connection {
    async fn secured(self, stream: TcpStream, tls: Option<Tls>, handler: Arc<CallHandler>) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "TCP_NODELAY refused");
        }
        let Some(tls) = tls else { return self.drive(stream, Arc::default(), handler).await };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => shaken,
            () = self.signals.stop.cancelled() => return,
            () = self.signals.cut.cancelled() => return,
            () = self.opened.replaced() => return,
        };
        match shaken {
            Ok(Ok((stream, names))) => self.drive(stream, names, handler).await,
            Ok(Err(error)) => debug!(%error, "a TLS handshake failed"),
            Err(_) => debug!("a TLS handshake took too long"),
        }
    }

    async fn drive(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        names: Arc<[String]>,
        handler: Arc<CallHandler>,
    ) {
        let (ending, calls) = (CancellationToken::new(), self.opened.usage());
        let closing = ConnectionClosing(ending.clone());
        let peer = Arc::new(Peer { names, health_calls: Arc::new(Semaphore::new(HEALTH_CALLS)), closing });
        let in_progress = Arc::clone(calls);
        let service = service_fn(move |request: Request<Incoming>| {
            let response = Arc::clone(&handler).handle(request, Arc::clone(&peer), in_progress.begin());
            async move { Ok::<_, Infallible>(response.await) }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(self.limits.keepalive_interval)
            .keep_alive_timeout(self.limits.keepalive_timeout)
            .max_concurrent_streams(self.limits.calls)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(RESETS_IN_A_TURN);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(PacedStream::new(stream)), service));

        let mut phase = Phase::Open;
        let mut timer = pin!(tokio::time::sleep(self.limits.age.map_or(NEVER, jittered)));
        let mut too_many_or_idle = pin!(async {
            tokio::select! {
                () = self.opened.replaced() => true,
                () = self.opened.idle_too_long() => false,
            }
        });
        let (mut looks, mut idle) = (tokio::time::interval(LOOK), 0);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        debug!(%error, "a connection failed");
                    }
                    return;
                }
                () = self.signals.cut.cancelled() => return,
                replaced = too_many_or_idle.as_mut(), if phase == Phase::Open => {
                    phase = Phase::Old;
                    connection.as_mut().graceful_shutdown();
                    timer.as_mut().reset(Instant::now() + self.limits.grace);
                    // A new connection has taken its place, so it is closed as soon as the GOAWAY is written. A call
                    // that began at this moment still completes.
                    if replaced && (calls.is_idle() || self.limits.bounds.replace_busy) {
                        connection.as_mut().now_or_never();
                        return;
                    }
                }
                () = self.signals.stop.cancelled(), if phase != Phase::Stopping => {
                    phase = Phase::Stopping;
                    connection.as_mut().graceful_shutdown();
                    ending.cancel();
                    timer.as_mut().reset(Instant::now() + NEVER);
                }
                () = timer.as_mut() => match phase {
                    Phase::Open => {
                        phase = Phase::Old;
                        connection.as_mut().graceful_shutdown();
                        timer.as_mut().reset(Instant::now() + self.limits.grace);
                    }
                    Phase::Old => {
                        phase = Phase::Ending;
                        ending.cancel();
                        timer.as_mut().reset(Instant::now() + STREAM_GRACE);
                    }
                    Phase::Ending | Phase::Stopping => return,
                },
                _ = looks.tick(), if phase != Phase::Open => {
                    idle = if calls.is_idle() { idle + 1 } else { 0 };
                    if idle >= IDLE_LOOKS {
                        return;
                    }
                }
            }
        }
    }
}

/// Adds a random deviation of up to a tenth, so that connections that were opened together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(rand::random_range(0.9..=1.1))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as Client;

    use prometheus::IntCounter;
    use tonic::service::Routes;

    use super::*;
    use crate::serve::admission::{Admission, Limits};

    /// The beginning of an HTTP/2 connection: the preface and an empty SETTINGS frame.
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const GOAWAY: u8 = 7;

    /// Returns the types of the frames of a connection until its end.
    fn frames(mut client: Client) -> Vec<u8> {
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (mut bytes, mut types) = (Vec::new(), Vec::new());
        // A connection that is cut ends with an error; the bytes before it are still read.
        let _ = client.read_to_end(&mut bytes);
        let mut rest = &bytes[..];
        while let [high, middle, low, kind, ..] = rest {
            types.push(*kind);
            let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        types
    }

    #[tokio::test]
    async fn connections_in_the_backlog_at_a_stop_get_a_goaway() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shed = IntCounter::new("shed", "shed").unwrap();
        let admission = Admission::new(None, &Limits { requests: 1, streams: 1, bytes: 0 }, 0, shed);
        let handler = CallHandler { admission, metrics: None, routes: Routes::default() };
        let connections = Connections::accept(listener, None, ConnectionLimits::default(), handler);
        // Nothing else runs on this thread until the drain waits, so none of them is accepted earlier.
        let clients = [(); 20].map(|()| {
            let mut client = Client::connect(address).unwrap();
            client.write_all(HELLO).unwrap();
            client
        });
        let received = tokio::task::spawn_blocking(|| clients.map(frames));
        assert!(connections.drain(Duration::from_secs(20)).await);
        for frames in received.await.unwrap() {
            assert!(frames.contains(&GOAWAY), "{frames:?}");
        }
    }
}
