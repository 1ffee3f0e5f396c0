//! All spans of the dispatcher except those of its RPCs, with their attributes: see [`server::telemetry::traces`].
//!
//! A send consists of a few spans. A broadcast has one trace per replica that works on it. Its size is bounded: it
//! contains a sample of the steps and messages, see [`BroadcastTrace`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use domain::AppId;
use http::StatusCode;
use reqwest::Url;
use server::telemetry::traces::{self, TARGET};
use store::broadcast::BroadcastId;
use store::broadcast::pages::Next;
use store::leases::Leased;
use tracing::field::{Empty, display};
use tracing::{Span, info_span};

use crate::broadcast::reason::{self, Ending};
use crate::wechat::errcode;
use crate::wechat::error::Cause;

/// Span of one message, from start to end. It may outlive its call.
pub fn send(app: &AppId) -> Span {
    info_span!(
        target: TARGET,
        "send",
        formid.app = %app,
        formid.broadcast = Empty,
        formid.outcome = Empty,
        formid.attempts = Empty,
        formid.reason = Empty,
    )
}

pub fn sent(span: &Span, outcome: &str, attempts: u32) {
    span.record("formid.outcome", outcome).record("formid.attempts", attempts);
}

/// Records why a message was not sent. The span of the call has the status.
pub fn not_sent(span: &Span, reason: &str) {
    span.record("formid.outcome", "not sent").record("formid.reason", reason);
}

pub fn lease(app: &AppId) -> Span {
    store::spans::script("lease", "lease.lua", app)
}

pub fn leased(span: &Span, leased: &Result<Leased, store::Error>) {
    let what = match leased {
        Ok(Leased::Lease(_)) => "credential",
        Ok(Leased::None) => "none",
        Ok(Leased::Resting(_)) => "resting",
        Ok(Leased::Finished(_)) => "finished",
        Ok(Leased::UnderWay(_)) => "under way",
        Ok(Leased::Reused) => "reused",
        Ok(Leased::Lost) => "lost",
        Ok(Leased::Busy(_)) => "busy",
        Err(error) => {
            store::spans::failed(span, error);
            "failed"
        }
    };
    span.record("formid.leased", what);
}

pub fn settle(app: &AppId) -> Span {
    store::spans::script("settle", "settle.lua", app)
}

/// Span of obtaining an access token that is not in memory.
pub fn token(app: &AppId) -> Span {
    info_span!(target: TARGET, "token", formid.app = %app)
}

/// Span of one call to WeChat, to the gateway in its place, or to a token server; `api` is the name of the API. Of the
/// URL, which the conventions ask for, only the host is recorded, because it contains the access token.
pub fn call(app: &AppId, server: &Url, api: &'static str, method: &'static str) -> Span {
    info_span!(
        target: TARGET,
        "wechat",
        otel.name = api,
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = method,
        http.response.status_code = Empty,
        server.address = server.host_str(),
        server.port = server.port_or_known_default(),
        error.type = Empty,
        formid.app = %app,
        wechat.errcode = Empty,
        wechat.rid = Empty,
    )
}

pub fn status(span: &Span, status: StatusCode) {
    span.record("http.response.status_code", status.as_u16());
}

pub fn errcode(span: &Span, errcode: i32, rid: &str) {
    span.record("wechat.errcode", errcode);
    if !rid.is_empty() {
        span.record("wechat.rid", rid);
    }
    if errcode != 0 {
        // A gateway may answer with any number, but the set of error types must be small.
        let kind = if errcode::is_known(errcode) { errcode.to_string() } else { "_OTHER".into() };
        failed(span, &kind);
    }
}

/// A token server answered without a usable token.
pub fn no_token(span: &Span) {
    failed(span, "no_token");
}

/// Called at most once per call.
fn failed(span: &Span, kind: &str) {
    span.record("error.type", kind).record("otel.status_code", "ERROR");
}

pub fn unanswered(span: &Span, cause: Cause) {
    let kind = match cause {
        Cause::Connect => "no_connection",
        Cause::ConnectTimeout => "connect_timeout",
        Cause::ProxyAuth => "proxy_refused",
        Cause::ProxyConnect => "no_proxy",
        Cause::ProxyTunnel => "no_tunnel",
        Cause::Timeout => "timeout",
        Cause::BrokenOff => "connection_lost",
        Cause::HttpStatus(status) | Cause::Redirected(status) => return failed(span, &status.to_string()),
        Cause::NotJson => "not_json",
        Cause::TooLarge => "too_large",
        Cause::Refused(code) => return errcode(span, code, ""),
    };
    failed(span, kind);
}

/// Trace of this replica's work on one broadcast, until the broadcast pauses or ends. It is linked to the call that
/// created the broadcast. Every span has the ids of the app and of the broadcast.
///
/// A long broadcast has millions of steps, but a useful trace has a few hundred spans. So the trace contains the first
/// steps of each kind, then fewer and fewer: the number of spans grows with the logarithm of the number of messages.
/// For each page in the trace it contains one of the page's messages, with its calls to WeChat. If no user was taken,
/// there is no trace.
pub struct BroadcastTrace {
    root: Span,
    app: AppId,
    broadcast: BroadcastId,
    worked: AtomicBool,
    pages: Sample,
    losses: Sample,
    settles: Sample,
    messages: AtomicU64,
}

impl BroadcastTrace {
    pub fn new(app: &AppId, broadcast: &BroadcastId, ordered_by: Option<&str>) -> Self {
        let root = info_span!(
            target: TARGET,
            parent: None,
            "broadcast",
            formid.app = %app,
            formid.broadcast = %broadcast,
            formid.messages = Empty,
        );
        if let Some(link) = ordered_by {
            traces::link_to(&root, link);
        }
        Self {
            root,
            app: app.clone(),
            broadcast: broadcast.clone(),
            worked: AtomicBool::new(false),
            pages: Sample::default(),
            losses: Sample::default(),
            settles: Sample::default(),
            messages: AtomicU64::new(0),
        }
    }

    /// Span of the script that takes users from the audience and leases a credential for each. See [`BroadcastTrace::page_taken`].
    pub fn page(&self) -> Span {
        if self.pages.would_take() {
            store::spans::script("page", "broadcast/page.lua", &self.app)
        } else {
            Span::none()
        }
    }

    /// Adds a page to the trace, or drops the span of a page without users. Returns whether one of its messages is to
    /// be traced too.
    pub fn page_taken(&self, page: Span, users: usize) -> bool {
        if users == 0 {
            traces::discard(&page);
            return false;
        }
        // Another page may have been taken since this one started.
        let sampled = self.pages.take();
        self.worked.store(true, Ordering::Relaxed);
        self.adopt(&page, users);
        sampled && !page.is_disabled()
    }

    pub fn page_lost(&self, page: Span, error: &store::Error) {
        if !self.losses.take() {
            return traces::discard(&page);
        }
        self.worked.store(true, Ordering::Relaxed);
        store::spans::failed(&page, error);
        self.adopt(&page, 0);
    }

    pub fn settle(&self, messages: usize) -> Span {
        self.messages.fetch_add(messages as u64, Ordering::Relaxed);
        if !self.settles.take() {
            return Span::none();
        }
        self.worked.store(true, Ordering::Relaxed);
        let span = store::spans::script("settle", "broadcast/settle.lua", &self.app);
        self.adopt(&span, messages);
        span
    }

    pub fn message(&self) -> Span {
        let span = send(&self.app);
        span.record("formid.broadcast", display(&self.broadcast));
        traces::adopt(&span, &self.root);
        span
    }

    fn adopt(&self, span: &Span, messages: usize) {
        span.record("formid.broadcast", display(&self.broadcast)).record("formid.messages", messages);
        traces::adopt(span, &self.root);
    }
}

impl Drop for BroadcastTrace {
    fn drop(&mut self) {
        if self.worked.load(Ordering::Relaxed) {
            self.root.record("formid.messages", self.messages.load(Ordering::Relaxed));
        } else {
            traces::discard(&self.root);
        }
    }
}

/// Records what happens to a message of a broadcast after the attempts with one credential.
pub fn ended(span: &Span, next: &Next, attempts: u32) {
    let outcome = match next {
        Next::End(ending) => {
            let (name, ..) = reason::split(ending);
            match Ending::parse(name) {
                Some(Ending::Delivered) => "delivered",
                Some(Ending::Unknown) => "unknown",
                _ => {
                    span.record("formid.reason", name);
                    "refused"
                }
            }
        }
        Next::Credential(..) => "next credential",
        Next::Again => "again",
        Next::Hold => "in doubt",
    };
    sent(span, outcome, attempts);
}

/// Samples the first [`Sample::ALL`] items, then each whose number is a power of two.
#[derive(Debug, Default)]
struct Sample(AtomicU64);

impl Sample {
    const ALL: u64 = 16;

    fn would_take(&self) -> bool {
        Self::takes(self.0.load(Ordering::Relaxed) + 1)
    }

    fn take(&self) -> bool {
        Self::takes(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn takes(number: u64) -> bool {
        number <= Self::ALL || number.is_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_of_millions_is_small() {
        let sample = Sample::default();
        let taken = (0..5_000_000).filter(|_| sample.take()).count();
        assert_eq!(taken, 16 + 18, "1 to 16, then 32, 64, and so on up to 4194304");
    }
}
