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

use super::body::{EndedWithConnection, Held, Prompt};
use super::connections::{Ending, PeerNames, Served};
use crate::auth::methods::{Door, door};
use crate::auth::{Caller, Callers};
use crate::status::Failure;

/// How long a request may take to arrive once its call has begun.
const ARRIVAL: Duration = Duration::from_secs(30);

/// How much may be under way at once, over all connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Calls that are answered once.
    pub requests: usize,
    /// Streams, which live long and are counted apart.
    pub streams: usize,
}

/// Puts a [`Caller`] into the extensions of each request that is let in.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    callers: Option<Arc<Callers>>,
    anonymous: Caller,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Counts what finds no room.
    shed: IntCounter,
}

/// What becomes of a call.
enum Way {
    /// Health: never turned away.
    Open,
    /// A call that is answered once.
    Request(OwnedSemaphorePermit),
    /// A stream of the service's own, which hears itself when to end.
    Stream(OwnedSemaphorePermit),
    /// Reflection, which does not.
    Foreign(OwnedSemaphorePermit),
}

impl Guard {
    /// Without callers, everybody may do everything.
    pub(super) fn new(callers: Option<Arc<Callers>>, limits: &Limits, shed: IntCounter) -> Self {
        let (requests, streams) = (Arc::new(Semaphore::new(limits.requests)), Arc::new(Semaphore::new(limits.streams)));
        Self { callers, anonymous: Caller::anonymous(), requests, streams, shed }
    }

    fn admit(&self, request: &mut Request<Body>) -> Result<Way, Failure> {
        let door = door(request.uri().path());
        let needs = match &door {
            Door::Open => return Ok(Way::Open),
            Door::Method(method) => method.needs,
            Door::Reflection | Door::Nothing => &[],
        };
        let names = request.extensions().get::<PeerNames>().map(|PeerNames(names)| names);
        let caller = match &self.callers {
            Some(callers) => callers.admit(request.headers(), names, needs)?,
            None => self.anonymous.clone(),
        };
        let way = match door {
            Door::Method(method) if method.stream => Way::Stream(self.room(&self.streams)?),
            Door::Reflection => Way::Foreign(self.room(&self.streams)?),
            Door::Method(_) | Door::Nothing | Door::Open => Way::Request(self.room(&self.requests)?),
        };
        request.extensions_mut().insert(caller);
        Ok(way)
    }

    fn room(&self, room: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(room).try_acquire_owned().map_err(|_| {
            self.shed.inc();
            Failure::overloaded()
        })
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
        if matches!(way, Way::Request(_)) {
            request = request.map(|body| Body::new(Prompt::new(body, ARRIVAL)));
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = dressed(answer.await?);
            Ok(match way {
                Way::Open => answer.map(|body| Body::new(EndedWithConnection::new(body, &ending))),
                // The work is done; what is left is to send it.
                Way::Request(_room) => answer,
                Way::Stream(room) => answer.map(|body| Body::new(Held::new(body, room))),
                Way::Foreign(room) => {
                    let until = |body| Body::new(EndedWithConnection::new(body, &ending));
                    answer.map(|body| Body::new(Held::new(until(body), room)))
                }
            })
        })
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
        Code::OutOfRange => {
            let sentence = "the message is larger than this service takes in; send less at a time";
            Some(Failure::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", sentence))
        }
        Code::Internal => {
            let sentence = "the message is none that this method takes";
            Some(Failure::new(Code::InvalidArgument, "MALFORMED_MESSAGE", sentence))
        }
        Code::Unimplemented => {
            let sentence = "this service has no such method, or does not know how the message is compressed";
            Some(Failure::new(Code::Unimplemented, "UNIMPLEMENTED", sentence))
        }
        _ => None,
    }
}
