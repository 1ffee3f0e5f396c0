//! Admits or rejects each call before any of its body is read. Checks who the caller is, what it may do, and whether
//! the concurrency limits permit the call. The checks are in this order so that an unauthenticated call takes no
//! permit, and each is cheap.
//!
//! There is no queue here. A call over a limit is rejected at once with RESOURCE_EXHAUSTED and a hint when to retry. In
//! a queue, its deadline would be used up by the time of its turn, and it would delay the calls behind it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use prometheus::IntCounter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::arrival::{Account, Arriving, Bounds};
use super::body::{EndedWithConnection, HoldUntilEnd};
use super::budget::{Budget, Charge};
use super::connections::{ConnectionClosing, GrpcService, HealthCalls, PeerNames};
use super::streams::{Full, Stream, Streams};
use crate::auth::methods::{Method, MethodAccess, method_access};
use crate::auth::{Caller, Callers};
use crate::rpc::status::Failure;

/// How long a request may take to arrive after its call has begun. For a stream, this applies to each of its messages.
const ARRIVAL: Duration = Duration::from_secs(30);
/// The limits of a health request, which needs no token. It contains only the name of a service.
const HEALTH: Bounds = Bounds { largest: 1 << 10, within: Duration::from_secs(10), each: false };
/// The limits of a reflection stream. Its requests are names, and `within` limits the whole stream.
const REFLECTION: Bounds = Bounds { largest: 4 << 10, within: Duration::from_secs(300), each: false };

/// Concurrency limits over all connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The maximum number of unary calls.
    pub requests: usize,
    /// The maximum number of streams. They live long, so they have a limit of their own.
    pub streams: usize,
    /// The memory budget for the messages of calls, in bytes.
    pub bytes: usize,
}

/// Tower layer that admits calls. Puts a [`Caller`] into the extensions of each admitted request.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    callers: Option<Arc<Callers>>,
    anonymous: Caller,
    requests: Arc<Semaphore>,
    streams: Streams,
    budget: Arc<Budget>,
    message_bytes: usize,
    /// Counts the calls that are rejected because a limit was reached.
    shed: IntCounter,
}

/// How an admitted call is handled.
enum Way {
    /// Health: needs no caller, and is limited only by the number of health calls on its connection.
    Open(Option<OwnedSemaphorePermit>),
    /// A unary call, with its method unless the path is unknown.
    Request(OwnedSemaphorePermit, Option<&'static Method>),
    /// A stream of the service itself. Its handler waits for the signal to end.
    Stream(Stream, &'static Method),
    /// Reflection. Its handler does not know that signal.
    Foreign(Stream),
}

impl Admission {
    /// Creates the layer. Without `callers`, everybody may do everything. `message_bytes` is the maximum size of a
    /// message.
    pub(super) fn new(callers: Option<Arc<Callers>>, limits: &Limits, message_bytes: usize, shed: IntCounter) -> Self {
        let (requests, streams) = (Arc::new(Semaphore::new(limits.requests)), Streams::new(limits.streams));
        let budget = Arc::new(Budget::new(limits.bytes, shed.clone()));
        Self { callers, anonymous: Caller::anonymous(), requests, streams, budget, message_bytes, shed }
    }

    fn admit(&self, request: &mut Request<Body>) -> Result<Way, Failure> {
        let method_access = method_access(request.uri().path());
        let needs = match &method_access {
            MethodAccess::Open => {
                let calls = request.extensions().get::<HealthCalls>();
                return Ok(Way::Open(calls.map(|HealthCalls(calls)| self.room(calls)).transpose()?));
            }
            MethodAccess::Method(method) => method.needs,
            MethodAccess::Reflection | MethodAccess::Nothing => &[],
        };
        let names = request.extensions().get::<PeerNames>().map(|PeerNames(names)| names);
        let caller = match &self.callers {
            Some(callers) => callers.admit(request.headers(), names, needs)?,
            None => self.anonymous.clone(),
        };
        let way = match method_access {
            MethodAccess::Method(method) if method.stream => Way::Stream(self.stream(&caller)?, method),
            MethodAccess::Method(method) => Way::Request(self.room(&self.requests)?, Some(method)),
            MethodAccess::Reflection => Way::Foreign(self.stream(&caller)?),
            MethodAccess::Nothing | MethodAccess::Open => Way::Request(self.room(&self.requests)?, None),
        };
        request.extensions_mut().insert(caller);
        Ok(way)
    }

    fn stream(&self, caller: &Caller) -> Result<Stream, Failure> {
        self.streams.open(caller).map_err(|full| {
            self.shed.inc();
            match full {
                Full::All => Failure::overloaded(),
                Full::Share => Failure::share_taken(),
            }
        })
    }

    fn room(&self, room: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(room).try_acquire_owned().map_err(|_| {
            self.shed.inc();
            Failure::overloaded()
        })
    }

    /// Applies the limits to the body of a request.
    fn bound(&self, request: Request<Body>, way: &Way) -> Request<Body> {
        let ours = |each| Bounds { largest: self.message_bytes, within: ARRIVAL, each };
        let (bounds, method) = match way {
            Way::Open(_) => (HEALTH, None),
            Way::Foreign(_) => (REFLECTION, None),
            Way::Request(_, method) => (ours(false), *method),
            Way::Stream(_, method) => (ours(true), Some(*method)),
        };
        let account = method.map(|method| {
            let charge = request.extensions().get::<Charge>().cloned().unwrap_or_default();
            Account { budget: Arc::clone(&self.budget), charge, method }
        });
        request.map(|body| Body::new(Arriving::new(body, bounds, account)))
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitting<S>;

    fn layer(&self, inner: S) -> Admitting<S> {
        Admitting { guard: self.clone(), inner }
    }
}

/// The service of the layer [`Admission`].
#[derive(Debug, Clone)]
pub(super) struct Admitting<S> {
    guard: Admission,
    inner: S,
}

impl<S: GrpcService> Service<Request<Body>> for Admitting<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let way = match self.guard.admit(&mut request) {
            Ok(way) => way,
            Err(failure) => return Box::pin(async move { Ok(Status::from(failure).into_http()) }),
        };
        let ending = request.extensions().get::<ConnectionClosing>().cloned().unwrap_or_default();
        let caller = request.extensions().get::<Caller>().cloned();
        let answer = self.inner.call(self.guard.bound(request, &way));
        Box::pin(async move {
            let answer = match &way {
                // Until its response begins, the handler of a stream does not notice a revoked permission.
                Way::Stream(..) | Way::Foreign(_) => {
                    tokio::select! {
                        answer = answer => answer?,
                        failure = revoked(caller.clone()) => return Ok(Status::from(failure).into_http()),
                    }
                }
                Way::Open(_) | Way::Request(..) => answer.await?,
            };
            let answer = dressed(answer);
            let until = |body| Body::new(EndedWithConnection::new(body, &ending));
            Ok(match way {
                Way::Open(room) => answer.map(|body| Body::new(HoldUntilEnd::new(until(body), room))),
                // The handler is done; only sending is left, so the permit is released here.
                Way::Request(_room, _) => answer,
                Way::Stream(room, _) => answer.map(|body| Body::new(HoldUntilEnd::new(body, room))),
                Way::Foreign(room) => {
                    let until = |body| Body::new(EndedWithConnection::or(body, &ending, revoked(caller)));
                    answer.map(|body| Body::new(HoldUntilEnd::new(until(body), room)))
                }
            })
        })
    }
}

/// Waits until the caller loses its permissions. Waits forever if there is no caller.
async fn revoked(caller: Option<Caller>) -> Failure {
    match caller {
        Some(caller) => caller.revoked(None).await,
        None => std::future::pending().await,
    }
}

/// Adds our error details to errors that tonic itself returns, which have none.
fn dressed(answer: Response<Body>) -> Response<Body> {
    let headers = answer.headers();
    if !headers.contains_key(Status::GRPC_STATUS) || headers.contains_key("grpc-status-details-bin") {
        return answer;
    }
    match Status::from_header_map(headers).and_then(|status| refused_by_tonic(&status)) {
        Some(failure) => Status::from(failure).into_http(),
        None => answer,
    }
}

/// Returns the failure for a status that tonic itself created: for a request that reached no handler, or for a message
/// of a stream.
pub fn refused_by_tonic(status: &Status) -> Option<Failure> {
    if !status.details().is_empty() {
        return None;
    }
    match status.code() {
        Code::OutOfRange => Some(Failure::too_large()),
        Code::Internal => Some(Failure::malformed()),
        Code::Unimplemented => {
            let sentence = "this service has no such method, or the compression of the message is not supported";
            Some(Failure::new(Code::Unimplemented, "UNIMPLEMENTED", sentence))
        }
        _ => None,
    }
}
