//! Connections: accepted, secured, driven, and ended well when they are old or the service stops.
//!
//! - A TLS handshake happens in the connection's own task and within a bound, so a slow or broken one blocks nobody.
//! - A connection that reached its age is told to be used no more (GOAWAY); clients open another and go on there without
//!   losing a call. Load balancers that spread connections, not calls, get a new chance by it, and a client's certificate
//!   that was valid once does not stay so for ever. After a grace, streams are ended with a status; then it is cut.
//! - At a stop the door is closed first, and whoever stood before it is let in: to the system they are connected, may have
//!   sent calls, and would be cut without a word. Then all connections are told at once, so that nobody who is told comes
//!   back by the same door. One that is idle closes then by itself, or is closed soon, when nobody is at its other end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};
use tracing::{debug, warn};

use super::body::Held;
use super::tls::Tls;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to wait before accepting again when the system refuses, as it does when it is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long streams that were told to end may take to do so.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often a connection that is to be closed is looked at, and after how many looks without a call it is closed.
const LOOK: Duration = Duration::from_secs(1);
const IDLE_LOOKS: u32 = 3;
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
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        let (keepalive_interval, keepalive_timeout) = (Duration::from_secs(30), Duration::from_secs(20));
        Self { calls: 1000, keepalive_interval, keepalive_timeout, age: None, grace: Duration::from_secs(30) }
    }
}

/// The names in the client's certificate, in the extensions of each request; none without mutual TLS.
#[derive(Debug, Clone)]
pub(crate) struct PeerNames(pub(crate) Arc<[String]>);

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
        let open = move |stream| {
            let connection = Connection { signals: told.clone(), limits: limits.clone() };
            spawner.spawn(connection.secured(stream, tls.clone(), service.clone()));
        };
        let told = signals.clone();
        tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = told.close.cancelled() => break,
                    () = told.cut.cancelled() => break,
                };
                match accepted {
                    Ok((stream, _)) => open(stream),
                    Err(error) if of_one_peer(&error) => debug!(%error, "a connection broke while it was accepted"),
                    Err(error) => {
                        warn!(%error, "no connection can be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
            if !told.cut.is_cancelled() {
                waiting(listener).take(DOORSTEP).for_each(open);
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

/// Those who wait to be accepted at a listener, which is closed after the last of them.
fn waiting(listener: TcpListener) -> impl Iterator<Item = TcpStream> {
    // By the system's own word: the runtime's may be a moment old.
    let listener = listener.into_std().ok();
    let next = move || loop {
        match listener.as_ref()?.accept() {
            Ok((stream, _)) => return stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)).ok(),
            Err(error) if of_one_peer(&error) => {}
            Err(_) => return None,
        }
    };
    std::iter::from_fn(next)
}

/// A connection that broke while it was accepted is the peer's affair.
fn of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

struct Connection {
    signals: Signals,
    limits: ConnectionLimits,
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
        let (ending, calls) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let (told, under_way) = (Ending(ending.clone()), Arc::clone(&calls));
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(PeerNames(Arc::clone(&names)));
            request.extensions_mut().insert(told.clone());
            let (answer, counted) = (service.clone().oneshot(request), Counted::new(&under_way));
            async move { answer.await.map(|answer| answer.map(|body| Body::new(Held::new(body, counted)))) }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(self.limits.keepalive_interval)
            .keep_alive_timeout(self.limits.keepalive_timeout)
            .max_concurrent_streams(self.limits.calls);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));

        let mut phase = Phase::Open;
        let mut timer = pin!(tokio::time::sleep(self.limits.age.map_or(NEVER, jittered)));
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
                    idle = if calls.load(Ordering::Relaxed) == 0 { idle + 1 } else { 0 };
                    if idle >= IDLE_LOOKS {
                        return;
                    }
                }
            }
        }
    }
}

/// A call that is under way, from its head to the end of its answer.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(calls: &Arc<AtomicUsize>) -> Self {
        calls.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(calls))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
