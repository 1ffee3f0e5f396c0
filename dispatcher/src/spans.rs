//! Every span of the dispatcher but those of its calls, and everything that is written on them: see [`shared::traces`].
//!
//! A send is a few spans. Of a broadcast there is a trace for each bucket of users, with a span for each page of them and
//! for each step that settles some, and none for a single message: they would be as many as the messages.

use http::StatusCode;
use shared::status::Failure;
use shared::store::broadcast::BroadcastId;
use shared::store::leases::Leased;
use shared::traces::{self, TARGET};
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::outcome::End;
use crate::send::Sent;
use crate::wechat::client::{FetchError, FetchedToken, Quota, QuotaError, Reply};

/// One message, start to end. It may last longer than its call.
pub fn send() -> Span {
    info_span!(target: TARGET, "send", formid.outcome = Empty, formid.attempts = Empty, formid.reason = Empty)
}

/// Notes how a message ended.
pub fn sent(span: &Span, result: &Result<Sent, Failure>) {
    match result {
        Ok(sent) => {
            let end = match sent.outcome.end {
                End::Delivered => "delivered",
                End::Unknown => "unknown",
                End::Refused => "refused",
            };
            span.record("formid.outcome", end).record("formid.attempts", sent.outcome.attempts);
        }
        Err(failure) => {
            // The call's span has the status.
            span.record("formid.outcome", "not sent").record("formid.reason", failure.reason());
        }
    }
}

/// The step that takes a credential out of stock.
pub fn lease() -> Span {
    info_span!(target: TARGET, "lease", formid.leased = Empty)
}

/// Notes what was leased.
pub fn leased<E>(span: &Span, leased: &Result<Leased, E>) {
    let what = match leased {
        Ok(Leased::Lease(_)) => "credential",
        Ok(Leased::None) => "none",
        Ok(Leased::Finished(_)) => "finished",
        Ok(Leased::UnderWay(_)) => "under way",
        Ok(Leased::Reused) => "reused",
        Ok(Leased::Lost) => "lost",
        Ok(Leased::Busy(_)) => "busy",
        Err(_) => "failed",
    };
    span.record("formid.leased", what);
}

/// The step that tells Redis what became of a message.
pub fn settle() -> Span {
    info_span!(target: TARGET, "settle")
}

/// The way to an access token that is not in memory.
pub fn token() -> Span {
    info_span!(target: TARGET, "token")
}

/// One call to WeChat; `api` is a name for it, and no URL.
pub fn call(api: &'static str, method: &'static str) -> Span {
    info_span!(
        target: TARGET,
        "wechat",
        otel.name = api,
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = method,
        http.response.status_code = Empty,
        wechat.errcode = Empty,
        wechat.rid = Empty,
    )
}

/// Notes the HTTP status of an answer.
pub fn status(span: &Span, status: StatusCode) {
    span.record("http.response.status_code", status.as_u16());
}

/// Notes WeChat's code; 0 is success.
pub fn errcode(span: &Span, errcode: i32, rid: &str) {
    span.record("wechat.errcode", errcode);
    if !rid.is_empty() {
        span.record("wechat.rid", rid);
    }
    if errcode != 0 {
        failed(span);
    }
}

/// Notes that a call brought no answer to use.
pub fn failed(span: &Span) {
    span.record("otel.status_code", "ERROR");
}

/// Notes what a message was answered with.
pub fn replied(span: &Span, reply: &Reply) {
    match reply {
        Reply::Answered { errcode: code, rid, .. } => errcode(span, *code, rid),
        Reply::NotSent(_) | Reply::Unanswered(_) => failed(span),
    }
}

/// Notes what a token was answered with; the token is no part of it.
pub fn fetched(span: &Span, fetched: &Result<FetchedToken, FetchError>) {
    match fetched {
        Ok(_) => {}
        Err(FetchError::Final { errcode: code, rid, .. }) => errcode(span, *code, rid),
        Err(FetchError::Transient { errcode: Some(code), .. }) => errcode(span, *code, ""),
        Err(FetchError::Transient { errcode: None, .. }) => failed(span),
    }
}

/// Notes what the question for a quota was answered with.
pub fn counted(span: &Span, quota: &Result<Quota, QuotaError>) {
    match quota {
        Ok(_) => {}
        Err(QuotaError::Refused { errcode: code, rid }) => errcode(span, *code, rid),
        Err(QuotaError::Unanswered(_)) => failed(span),
    }
}

/// The work on one bucket of a broadcast: a trace of its own, linked to the call that ordered the broadcast.
pub fn bucket(broadcast: &BroadcastId, ordered_by: Option<&str>) -> Span {
    let span = info_span!(target: TARGET, parent: None, "broadcast bucket", formid.broadcast = %broadcast);
    if let Some(link) = ordered_by {
        traces::link_to(&span, link);
    }
    span
}

/// The step that takes users out of an audience, with a credential for each.
pub fn page() -> Span {
    info_span!(target: TARGET, "page", formid.messages = Empty)
}

/// The step that settles messages which ended.
pub fn settle_page(messages: usize) -> Span {
    info_span!(target: TARGET, "settle", formid.messages = messages)
}
