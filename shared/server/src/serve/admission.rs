//! Admits or rejects each call before any of its body is read. Checks who the caller is, what it may do, and whether
//! the concurrency limits permit the call. The checks are in this order so that an unauthenticated call takes no
//! permit, and each is cheap.
//!
//! There is no queue here. A call over a limit is rejected immediately with RESOURCE_EXHAUSTED and a hint when to
//! retry. In a queue, its deadline would be used up by the time of its turn, and it would delay the calls behind it.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body::Body as HttpBody;
use prometheus::IntCounter;
use tokio::sync::Semaphore;

use super::arrival::{Account, Arriving, Bounds};
use super::budget::{Budget, Charge};
use super::closing::ConnectionClosing;
use super::streams::{Full, Permit, Streams};
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

/// Facts about the client that the call's connection provides.
#[derive(Debug)]
pub(super) struct Peer {
    /// The names in the client's certificate. Empty without mutual TLS.
    pub(super) names: Arc<[String]>,
    /// The permits for health calls on this connection.
    pub(super) health_calls: Arc<Semaphore>,
    pub(super) closing: ConnectionClosing,
}

/// Admits calls. Puts a [`Caller`] into the extensions of each admitted request.
#[derive(Debug)]
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

/// The kind of an admitted call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Health: needs no caller, and is limited only by the number of health calls on its connection.
    Health,
    /// A unary call, with its method unless the path is unknown.
    Unary(Option<&'static Method>),
    /// A stream of the service itself. Its handler waits for the signal to end.
    Stream(&'static Method),
    /// Reflection: a stream whose handler does not know that signal.
    Reflection,
}

impl Admission {
    /// Without `callers`, all calls are allowed without authentication. `message_bytes` is the maximum size of a
    /// message.
    pub(super) fn new(callers: Option<Arc<Callers>>, limits: &Limits, message_bytes: usize, shed: IntCounter) -> Self {
        let (requests, streams) = (Arc::new(Semaphore::new(limits.requests)), Streams::new(limits.streams));
        let budget = Arc::new(Budget::new(limits.bytes, shed.clone()));
        Self { callers, anonymous: Caller::anonymous(), requests, streams, budget, message_bytes, shed }
    }

    pub(super) fn admit<B>(&self, request: &mut Request<B>, peer: &Peer) -> Result<(Kind, Permit), Failure> {
        let method_access = method_access(request.uri().path());
        let needs = match &method_access {
            MethodAccess::Open => return Ok((Kind::Health, self.room(&peer.health_calls)?)),
            MethodAccess::Method(method) => method.needs,
            MethodAccess::Reflection | MethodAccess::Nothing => &[],
        };
        let caller = match &self.callers {
            Some(callers) => callers.admit(request.headers(), Some(&peer.names), needs)?,
            None => self.anonymous.clone(),
        };
        let admitted = match method_access {
            MethodAccess::Method(method) if method.stream => (Kind::Stream(method), self.stream(&caller)?),
            MethodAccess::Method(method) => (Kind::Unary(Some(method)), self.room(&self.requests)?),
            MethodAccess::Reflection => (Kind::Reflection, self.stream(&caller)?),
            MethodAccess::Nothing | MethodAccess::Open => (Kind::Unary(None), self.room(&self.requests)?),
        };
        request.extensions_mut().insert(caller);
        Ok(admitted)
    }

    fn stream(&self, caller: &Caller) -> Result<Permit, Failure> {
        self.streams.open(caller).map_err(|full| {
            self.shed.inc();
            match full {
                Full::All => Failure::overloaded(),
                Full::Share => Failure::share_taken(),
            }
        })
    }

    fn room(&self, room: &Arc<Semaphore>) -> Result<Permit, Failure> {
        Arc::clone(room).try_acquire_owned().map(Permit::from).map_err(|_| {
            self.shed.inc();
            Failure::overloaded()
        })
    }

    /// Applies the limits to the body of a request.
    pub(super) fn bound<B: HttpBody>(&self, request: Request<B>, kind: Kind, charge: &Charge) -> Request<Arriving<B>> {
        let ours = |each| Bounds { largest: self.message_bytes, within: ARRIVAL, each };
        let (bounds, method) = match kind {
            Kind::Health => (HEALTH, None),
            Kind::Reflection => (REFLECTION, None),
            Kind::Unary(method) => (ours(false), method),
            Kind::Stream(method) => (ours(true), Some(method)),
        };
        let account = method.map(|method| Account { budget: Arc::clone(&self.budget), charge: charge.clone(), method });
        request.map(|body| Arriving::new(body, bounds, account))
    }
}
