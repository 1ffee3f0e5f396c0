//! Whose call it is: what handlers ask.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Request};

use super::callers::{Apps, Callers, Entry, Proof};
use super::permission::Permission;
use crate::credential::AppId;
use crate::status::Failure;

/// Who makes a call, as the callers file knew them when it came in. Every request has one in its extensions.
#[derive(Clone)]
pub struct Caller {
    entry: Arc<Entry>,
    /// None where there is no callers file, and everybody may do everything.
    pass: Option<Arc<Pass>>,
}

/// What the call was let in with.
struct Pass {
    callers: Arc<Callers>,
    proof: Proof,
    needs: &'static [Permission],
}

impl Caller {
    /// Whoever calls where there is no callers file.
    pub fn anonymous() -> Self {
        let everything = BTreeSet::from(Permission::ALL);
        let entry = Entry::new("anonymous".into(), Vec::new(), Vec::new(), Apps::All, everything, None);
        Self { entry: Arc::new(entry), pass: None }
    }

    pub(super) fn admitted(callers: Arc<Callers>, proof: Proof, needs: &'static [Permission]) -> Result<Self, Failure> {
        let entry = callers.book().find(&proof).cloned().ok_or_else(unauthenticated)?;
        Ok(Self { entry, pass: Some(Arc::new(Pass { callers, proof, needs })) })
    }

    /// Counts the call against the caller's rate, then looks whether it is permitted; so refused calls count as well.
    pub(super) fn counted(self) -> Result<Self, Failure> {
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

    /// The caller of a request. Fails only where a request did not come through the door, a mistake of ours.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Failure> {
        request.extensions().get::<Self>().cloned().ok_or_else(Failure::internal)
    }

    /// The name, for logs.
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Whether this caller may use an app. One that it may not use must be answered like one that is not there.
    pub fn may_use(&self, app: &AppId) -> bool {
        self.entry.apps.contain(app)
    }

    /// Fails with NOT_PERMITTED when this caller lacks a permission that only the request itself asks for.
    pub fn needs(&self, permission: Permission) -> Result<(), Failure> {
        if self.entry.may(permission) { Ok(()) } else { Err(not_permitted(permission)) }
    }

    /// The caller as the callers file knows it now, for streams, which outlive changes of it. Fails as at the door:
    /// UNAUTHENTICATED, NOT_PERMITTED.
    pub fn renewed(&self) -> Result<Self, Failure> {
        let Some(pass) = &self.pass else { return Ok(self.clone()) };
        let entry = pass.callers.book().find(&pass.proof).cloned().ok_or_else(unauthenticated)?;
        Self { entry, pass: Some(Arc::clone(pass)) }.permitted()
    }
}

impl Caller {
    /// Waits until this caller may no longer do what it was let in for, or use this app; answers with what a new call would
    /// be refused with. Streams end by it.
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
                // The sender lives as long as the callers, which this holds.
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Whether there is a callers file, in which this caller stands.
    pub(crate) fn is_known(&self) -> bool {
        self.pass.is_some()
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Caller({})", self.entry.name)
    }
}

/// The same for no token, a wrong one and a wrong certificate: it tells nobody which.
pub(super) fn unauthenticated() -> Failure {
    let sentence = "give a valid token as `authorization: Bearer TOKEN`, or a client certificate that names a caller";
    Failure::new(Code::Unauthenticated, "UNAUTHENTICATED", sentence)
}

pub(super) fn not_permitted(permission: Permission) -> Failure {
    let sentence = format!("this caller does not have the permission {permission}");
    Failure::new(Code::PermissionDenied, "NOT_PERMITTED", sentence).with("permission", permission)
}

fn rate_limited(wait: Duration) -> Failure {
    Failure::new(Code::ResourceExhausted, "RATE_LIMITED", "more calls a second than this caller may make")
        .retry_after(wait)
}
