//! The door that every call comes through, before anything of it is read: who calls, whether they may, and whether there
//! is room. In this order, so that a stranger takes up no room, and each step costs next to nothing.
//!
//! There is no queue here. A call that finds no room is turned away at once with RESOURCE_EXHAUSTED and a hint when to come
//! again: one that waited would find its deadline used up when its turn came, and make those behind it wait too.

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
use super::body::{EndedWithConnection, Held};
use super::budget::{Budget, Charge};
use super::connections::{Ending, HealthCalls, PeerNames, Served};
use super::streams::{Full, Stream, Streams};
use crate::auth::methods::{Door, Method, door};
use crate::auth::{Caller, Callers};
use crate::status::Failure;

/// How long a request may take to arrive once its call has begun; of a stream, each of its messages.
const ARRIVAL: Duration = Duration::from_secs(30);
/// What is taken in without a token: the name of a service.
const HEALTH: Bounds = Bounds { largest: 1 << 10, within: Duration::from_secs(10), each: false };
/// A stream of questions that are names; it may go on as long as this.
const REFLECTION: Bounds = Bounds { largest: 4 << 10, within: Duration::from_secs(300), each: false };

/// How much may be under way at once, over all connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Calls that are answered once.
    pub requests: usize,
    /// Streams, which live long and are counted apart.
    pub streams: usize,
    /// The memory that the messages of calls may take up, in bytes.
    pub bytes: usize,
}

/// Puts a [`Caller`] into the extensions of each request that is let in.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    callers: Option<Arc<Callers>>,
    anonymous: Caller,
    requests: Arc<Semaphore>,
    streams: Streams,
    budget: Arc<Budget>,
    message_bytes: usize,
    /// Counts what finds no room.
    shed: IntCounter,
}

/// What becomes of a call.
enum Way {
    /// Health: needs no caller, and finds room as long as its connection has not too many.
    Open(Option<OwnedSemaphorePermit>),
    /// A call that is answered once, and what it is if it is one of ours.
    Request(OwnedSemaphorePermit, Option<&'static Method>),
    /// A stream of the service's own, which hears itself when to end.
    Stream(Stream, &'static Method),
    /// Reflection, which does not.
    Foreign(Stream),
}

impl Guard {
    /// Without callers, everybody may do everything. No message may be larger than `message_bytes`.
    pub(super) fn new(callers: Option<Arc<Callers>>, limits: &Limits, message_bytes: usize, shed: IntCounter) -> Self {
        let (requests, streams) = (Arc::new(Semaphore::new(limits.requests)), Streams::new(limits.streams));
        let budget = Arc::new(Budget::new(limits.bytes, shed.clone()));
        Self { callers, anonymous: Caller::anonymous(), requests, streams, budget, message_bytes, shed }
    }

    fn admit(&self, request: &mut Request<Body>) -> Result<Way, Failure> {
        let door = door(request.uri().path());
        let needs = match &door {
            Door::Open => {
                let calls = request.extensions().get::<HealthCalls>();
                return Ok(Way::Open(calls.map(|HealthCalls(calls)| self.room(calls)).transpose()?));
            }
            Door::Method(method) => method.needs,
            Door::Reflection | Door::Nothing => &[],
        };
        let names = request.extensions().get::<PeerNames>().map(|PeerNames(names)| names);
        let caller = match &self.callers {
            Some(callers) => callers.admit(request.headers(), names, needs)?,
            None => self.anonymous.clone(),
        };
        let way = match door {
            Door::Method(method) if method.stream => Way::Stream(self.stream(&caller)?, method),
            Door::Method(method) => Way::Request(self.room(&self.requests)?, Some(method)),
            Door::Reflection => Way::Foreign(self.stream(&caller)?),
            Door::Nothing | Door::Open => Way::Request(self.room(&self.requests)?, None),
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

    /// Bounds what a request brings.
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

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.clone(), inner }
    }
}

/// See [`Guard`].
#[derive(Debug, Clone)]
pub(super) struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S: Served> Service<Request<Body>> for Guarded<S> {
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
        let ending = request.extensions().get::<Ending>().cloned().unwrap_or_default();
        let caller = request.extensions().get::<Caller>().cloned();
        let answer = self.inner.call(self.guard.bound(request, &way));
        Box::pin(async move {
            let answer = match &way {
                // Before its answer begins, a stream does not hear itself when to end.
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
                Way::Open(room) => answer.map(|body| Body::new(Held::new(until(body), room))),
                // The work is done; what is left is to send it.
                Way::Request(_room, _) => answer,
                Way::Stream(room, _) => answer.map(|body| Body::new(Held::new(body, room))),
                Way::Foreign(room) => {
                    let until = |body| Body::new(EndedWithConnection::or(body, &ending, revoked(caller)));
                    answer.map(|body| Body::new(Held::new(until(body), room)))
                }
            })
        })
    }
}

/// Waits until a caller may no longer call; for ever where there is none to lose a right.
async fn revoked(caller: Option<Caller>) -> Failure {
    match caller {
        Some(caller) => caller.revoked(None).await,
        None => std::future::pending().await,
    }
}

/// What tonic refuses by itself has no details. Gives it those that every other error has.
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

/// What stands behind a status that tonic made: of the requests it did not hand to a handler, or of a stream's messages.
pub fn refused_by_tonic(status: &Status) -> Option<Failure> {
    if !status.details().is_empty() {
        return None;
    }
    match status.code() {
        Code::OutOfRange => Some(Failure::too_large()),
        Code::Internal => Some(Failure::malformed()),
        Code::Unimplemented => {
            let sentence = "this service has no such method, or does not know how the message is compressed";
            Some(Failure::new(Code::Unimplemented, "UNIMPLEMENTED", sentence))
        }
        _ => None,
    }
}
