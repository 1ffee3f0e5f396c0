//! The caller of a request, and the checks that handlers make on it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tonic::Request;

use super::caller_config::{Apps, CallerConfig};
use super::callers::{Callers, Identity};
use super::permission::Permission;
use crate::rpc::reason::Reason;
use crate::rpc::status::Failure;
use domain::AppId;

/// The authenticated caller of a request, as configured in the callers file when the request arrived. Every request has
/// one in its extensions.
#[derive(Clone)]
pub struct Caller {
    entry: Arc<CallerConfig>,
    /// `None` if no callers file is configured; then all calls are allowed.
    pass: Option<Arc<Session>>,
}

/// How the call was authenticated, and which permissions it needs.
struct Session {
    callers: Arc<Callers>,
    proof: Identity,
    needs: &'static [Permission],
}

impl Callers {
    /// Authenticates and authorizes a call. The caller must have at least one permission of `needs`. If `needs` is
    /// empty, authentication is enough.
    ///
    /// Fails with UNAUTHENTICATED (unknown caller), RATE_LIMITED or NOT_PERMITTED.
    pub fn admit(
        self: &Arc<Self>,
        headers: &HeaderMap,
        names: Option<&Arc<[String]>>,
        needs: &'static [Permission],
    ) -> Result<Caller, Failure> {
        let proof = Identity::of(headers, names).ok_or_else(unauthenticated)?;
        let entry = self.book().find(&proof).cloned().ok_or_else(unauthenticated)?;
        Caller { entry, pass: Some(Arc::new(Session { callers: Arc::clone(self), proof, needs })) }.counted()
    }
}

impl Caller {
    /// The caller of every request if no callers file is configured.
    pub fn anonymous() -> Self {
        let everything = BTreeSet::from(Permission::ALL);
        let entry = CallerConfig::new("anonymous".into(), Vec::new(), Vec::new(), Apps::All, everything, None);
        Self { entry: Arc::new(entry), pass: None }
    }

    /// Counts the call against the caller's rate limit, then checks its permissions. So calls without permission count
    /// too.
    fn counted(self) -> Result<Self, Failure> {
        if let Some(rate) = &self.entry.rate {
            rate.take().map_err(rate_limited)?;
        }
        self.permitted()
    }

    fn permitted(self) -> Result<Self, Failure> {
        let needs = self.pass.as_ref().map_or(&[][..], |pass| pass.needs);
        match needs {
            [] => Ok(self),
            needs if needs.iter().any(|permission| self.entry.may(*permission)) => Ok(self),
            [first, ..] => Err(not_permitted(*first)),
        }
    }

    /// Returns the caller of a request. Fails only if the request bypassed the authentication layer, which is a bug.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Failure> {
        request.extensions().get::<Self>().cloned().ok_or_else(Failure::internal)
    }

    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Returns whether this caller may use an app. A forbidden app must get the same answer as an app that does not
    /// exist.
    pub fn may_use(&self, app: &AppId) -> bool {
        self.entry.apps.contain(app)
    }

    /// Fails with NOT_PERMITTED if this caller lacks a permission. For permissions that depend on the content of the
    /// request.
    pub fn needs(&self, permission: Permission) -> Result<(), Failure> {
        if self.entry.may(permission) { Ok(()) } else { Err(not_permitted(permission)) }
    }

    /// Looks the caller up in the current callers file. Streams use this, because they outlive changes of the file.
    /// Fails like the first check of a call: UNAUTHENTICATED or NOT_PERMITTED.
    pub fn renewed(&self) -> Result<Self, Failure> {
        let Some(pass) = &self.pass else { return Ok(self.clone()) };
        let entry = pass.callers.book().find(&pass.proof).cloned().ok_or_else(unauthenticated)?;
        Self { entry, pass: Some(Arc::clone(pass)) }.permitted()
    }

    /// Waits until this caller loses the permissions that the call needs, or the access to this app. Returns the error
    /// that a new call would get. Streams end with it.
    pub fn revoked(&self, app: Option<AppId>) -> impl Future<Output = Failure> + Send + use<> {
        let caller = self.clone();
        async move {
            let Some(pass) = &caller.pass else { return std::future::pending().await };
            let mut changes = pass.callers.changes();
            loop {
                let renewed = caller.renewed();
                match (renewed, &app) {
                    (Err(failure), _) => return failure,
                    (Ok(caller), Some(app)) if !caller.may_use(app) => return Failure::unknown_app(),
                    _ => {}
                }
                // The loop ends only if the sender is dropped; `pass.callers` keeps it alive.
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Returns whether the caller is listed in a callers file.
    pub(crate) fn is_known(&self) -> bool {
        self.pass.is_some()
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Caller({})", self.entry.name)
    }
}

/// The same error for a missing token, a wrong token and a wrong certificate, so that it does not reveal which one it
/// was.
fn unauthenticated() -> Failure {
    let sentence = "give a valid token as `authorization: Bearer TOKEN`, or a client certificate that names a caller";
    Failure::new(Reason::UNAUTHENTICATED, sentence)
}

pub(super) fn not_permitted(permission: Permission) -> Failure {
    let sentence = format!("this caller does not have the permission {permission}");
    Failure::new(Reason::NOT_PERMITTED, sentence).with("permission", permission)
}

fn rate_limited(wait: Duration) -> Failure {
    Failure::new(Reason::RATE_LIMITED, "more calls a second than this caller may make").retry_after(wait)
}
