//! Connections: secured, driven, and ended well when they are old or idle or the service stops. How they are accepted is in
//! `accept`.
//!
//! - A TLS handshake happens in the connection's own task and within a bound, so a slow or broken one blocks nobody.
//! - A connection that reached its age is told to be used no more (GOAWAY); clients open another and go on there without
//!   losing a call. Load balancers that spread connections, not calls, get a new chance by it, and a client's certificate
//!   that was valid once does not stay so for ever. After a grace, streams are ended with a status; then it is cut.
//! - At a stop the door is closed first, and whoever stood before it is let in: to the system they are connected, may have
//!   sent calls, and would be cut without a word. Then all connections are told at once, so that nobody who is told comes
//!   back by the same door. One that is idle closes then by itself, or is closed soon, when nobody is at its other end.
//!
//! Callers that share a connection must not hurt each other by ending calls early, and a peer that does so on purpose must
//! not get more than its share:
//!
//! - What a peer sends on a stream that was answered early is read and thrown away ([`discard`](super::discard)), so that
//!   it does not count among the 1024 errors for which HTTP/2 ends a connection. That limit stays, against peers that make
//!   the service reset streams on purpose: they break rules that clients keep.
//! - A peer may open a stream and reset it at once, and is not held to the number of calls on a connection by that. HTTP/2
//!   counts those that were reset before they were begun, and ends the connection at a limit. Callers that hang up soon
//!   would reach a low one, so reading in turns ([`turns`](super::turns)) keeps their number, and with it their memory,
//!   below a limit that is never reached. What is begun then costs what a call costs that is turned away: who calls and
//!   how often is looked at, it takes up room among all calls, and its handler ends as soon as the reset is noticed; work
//!   that goes on without its caller is bounded where it is done.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{Request, Response};
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
use tonic::body::Body;
use tower::{Service, ServiceExt as _};
use tracing::debug;

pub use super::accept::Bounds;
use super::accept::{Acceptor, Opened};
use super::body::Held;
use super::budget::Charge;
use super::discard::DiscardRest;
use super::tls::Tls;
use super::turns::Turns;
use crate::auth::methods::is_health;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long streams that were told to end may take to do so.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often a connection that is to be closed is looked at, and after how many looks without a call it is closed.
const LOOK: Duration = Duration::from_secs(1);
const IDLE_LOOKS: u32 = 3;
/// How many bytes a peer may send on a stream, and on all streams of a connection, before they are read. A stream that is
/// not read on, because Redis is behind or memory is short, keeps as much in memory, and leaves the rest of the
/// connection's to others.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// About how many bytes of a stream's answers wait for a peer that does not read.
const SEND_BUFFER: usize = 64 << 10;
/// Calls of one connection that are given up again before they begin: more than come in one turn, so that callers that
/// hang up never reach it.
const RESETS_IN_A_TURN: usize = 2048;
/// The most calls of health on one connection at once: a client watches one.
const HEALTH_CALLS: usize = 8;
/// As good as never.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What bounds one connection.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// The most calls under way on one connection; a client that wants more waits or opens another.
    pub calls: u32,
    /// How often a quiet peer is asked whether it is there.
    pub keepalive_interval: Duration,
    /// How long it may take to say so.
    pub keepalive_timeout: Duration,
    /// After which time a connection is to be used no more, give or take a tenth; never when none.
    pub age: Option<Duration>,
    /// How much longer its calls may take before streams are told to end.
    pub grace: Duration,
    /// What bounds all connections of a listener.
    pub bounds: Bounds,
}

impl Default for ConnectionLimits {
    /// For the port for probes, which nobody needs for long.
    fn default() -> Self {
        let (keepalive_interval, keepalive_timeout) = (Duration::from_secs(30), Duration::from_secs(20));
        let idle = Duration::from_secs(60);
        let bounds = Bounds { listener: "probes", connections: 64, idle, replace_busy: true };
        Self { calls: 1000, keepalive_interval, keepalive_timeout, age: None, grace: Duration::from_secs(30), bounds }
    }
}

/// The names in the client's certificate, in the extensions of each request; none without mutual TLS.
#[derive(Debug, Clone)]
pub(crate) struct PeerNames(pub(crate) Arc<[String]>);

/// Room for the calls of health of one connection, in the extensions of each of them.
#[derive(Debug, Clone)]
pub(super) struct HealthCalls(pub(super) Arc<Semaphore>);

/// Tells, in the extensions of each request, when streams of its connection are to end: the connection is old, or the
/// service stops.
#[derive(Debug, Clone, Default)]
pub struct Ending(CancellationToken);

impl Ending {
    /// The one of a request; one that never comes for a request that came by no connection.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// Waits until streams are to end.
    pub fn wait(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.clone().cancelled_owned()
    }
}

/// What is served on connections: tonic's routes, with layers around them.
pub(super) trait Served:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

impl<S> Served for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

/// All connections of one listener. Dropped, it cuts them.
#[derive(Debug)]
pub(super) struct Connections {
    signals: Signals,
    tasks: TaskTracker,
    _cut: DropGuard,
}

/// How many may wait to be accepted: as many as the runtime asks the system for. Whoever comes while they are let in must
/// not keep the door open.
const DOORSTEP: usize = 1024;

/// What connections are told.
#[derive(Debug, Clone, Default)]
struct Signals {
    /// Accept no more.
    close: CancellationToken,
    /// Finish.
    stop: CancellationToken,
    /// Be gone.
    cut: CancellationToken,
}

impl Connections {
    /// Begins to accept.
    pub(super) fn accept(
        listener: TcpListener,
        tls: Option<Tls>,
        limits: ConnectionLimits,
        service: impl Served,
    ) -> Self {
        let (signals, tasks) = (Signals::default(), TaskTracker::new());
        let (told, spawner) = (signals.clone(), tasks.clone());
        let mut acceptor = Acceptor::new(listener, limits.bounds.clone());
        let open = move |(stream, opened)| {
            let connection = Connection { signals: told.clone(), limits: limits.clone(), opened };
            spawner.spawn(connection.secured(stream, tls.clone(), service.clone()));
        };
        let told = signals.clone();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    accepted = acceptor.next() => open(accepted),
                    () = told.close.cancelled() => break,
                    () = told.cut.cancelled() => break,
                }
            }
            if !told.cut.is_cancelled() {
                acceptor.waiting().take(DOORSTEP).for_each(open);
            }
            told.stop.cancel();
        });
        let cut = signals.cut.clone().drop_guard();
        Self { signals, tasks, _cut: cut }
    }

    /// Accepts no more, and lets calls finish within a bound; false when some were cut.
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

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// To be used no more: calls finish.
    Old,
    /// Its streams are told to end.
    Ending,
    /// The service stops, and whoever stops it sets the bound.
    Stopping,
}

impl Connection {
    async fn secured(self, stream: TcpStream, tls: Option<Tls>, service: impl Served) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "TCP_NODELAY refused");
        }
        let Some(tls) = tls else { return self.drive(stream, Arc::default(), service).await };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => shaken,
            () = self.signals.stop.cancelled() => return,
            () = self.signals.cut.cancelled() => return,
            () = self.opened.replaced() => return,
        };
        match shaken {
            Ok(Ok((stream, names))) => self.drive(stream, names, service).await,
            Ok(Err(error)) => debug!(%error, "a TLS handshake failed"),
            Err(_) => debug!("a TLS handshake took too long"),
        }
    }

    async fn drive(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        names: Arc<[String]>,
        service: impl Served,
    ) {
        let (ending, calls) = (CancellationToken::new(), self.opened.usage());
        let (told, under_way) = (Ending(ending.clone()), Arc::clone(calls));
        let health_calls = Arc::new(Semaphore::new(HEALTH_CALLS));
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(|body| Body::new(DiscardRest::new(body)));
            let charge = Charge::default();
            if is_health(request.uri().path()) {
                request.extensions_mut().insert(HealthCalls(Arc::clone(&health_calls)));
            }
            request.extensions_mut().insert(PeerNames(Arc::clone(&names)));
            request.extensions_mut().insert(told.clone());
            request.extensions_mut().insert(charge.clone());
            let held = (under_way.begin(), charge);
            let answer = service.clone().oneshot(request);
            async move { answer.await.map(|answer| answer.map(|body| Body::new(Held::new(body, held)))) }
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
        let mut connection = pin!(builder.serve_connection(TokioIo::new(Turns::new(stream)), service));

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
                        debug!(%error, "a connection broke");
                    }
                    return;
                }
                () = self.signals.cut.cancelled() => return,
                replaced = too_many_or_idle.as_mut(), if phase == Phase::Open => {
                    phase = Phase::Old;
                    connection.as_mut().graceful_shutdown();
                    timer.as_mut().reset(Instant::now() + self.limits.grace);
                    // Another has come in its place, so it is closed as soon as what tells the peer is written. A call
                    // that has begun in this moment goes on.
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
                        timer.as_mut().reset(Instant::now() + FAREWELL);
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

/// Give or take a tenth, so that connections that were opened together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(rand::random_range(0.9..=1.1))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as Client;

    use tonic::service::Routes;

    use super::*;

    /// What HTTP/2 begins with: the preface and settings of no content.
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const GOAWAY: u8 = 7;

    /// The types of the frames of a connection until its end.
    fn frames(mut client: Client) -> Vec<u8> {
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (mut bytes, mut types) = (Vec::new(), Vec::new());
        // One that is cut ends with an error, and what came before is there all the same.
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
    async fn who_stood_before_the_door_when_it_closed_is_told_to_go_elsewhere() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections::accept(listener, None, ConnectionLimits::default(), Routes::default());
        // Nothing else runs on this thread until the drain waits, so none of them is accepted before.
        let clients = [(); 20].map(|()| {
            let mut client = Client::connect(address).unwrap();
            client.write_all(HELLO).unwrap();
            client
        });
        let told = tokio::task::spawn_blocking(|| clients.map(frames));
        assert!(connections.drain(Duration::from_secs(20)).await);
        for frames in told.await.unwrap() {
            assert!(frames.contains(&GOAWAY), "{frames:?}");
        }
    }
}
