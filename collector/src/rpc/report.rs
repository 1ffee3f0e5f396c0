//! ReportEvents: processes an event that WeChat pushed, item by item.

use std::fmt::Display;

use domain::AppId;
use server::auth::{Caller, audit};
use server::proto::{EventAction, EventResult, ReportEventsRequest, ReportEventsResponse};
use server::rpc::fields::Fields;
use server::rpc::reason::Reason;
use server::rpc::status::Failure;
use server::telemetry::traces::rpc;
use store::credentials::Packed;
use store::delivery_failures::{LateFailure, MsgId};

use super::Inner;
use crate::callback::{EventError, Item, Location, Pushed, Report, Revoked, Status, parse};
use crate::clock::unix_time;

/// The maximum length in bytes of a query parameter of the signature. WeChat's have at most 40.
const MAX_PARAMETER: usize = 128;

/// Processes one event. Items are processed one after the other, and a repeated item changes nothing. So if an event
/// fails halfway, the whole event can be reported again.
pub(super) async fn report(
    inner: &Inner,
    caller: &Caller,
    request: ReportEventsRequest,
) -> Result<ReportEventsResponse, Failure> {
    let ReportEventsRequest { app_id, body, timestamp, nonce, signature } = request;
    let mut fields = Fields::default();
    for (field, value) in [("timestamp", &timestamp), ("nonce", &nonce), ("signature", &signature)] {
        fields.fits(field, value, MAX_PARAMETER);
    }
    let (app, index) = inner.app(caller, app_id, fields)?;
    rpc::note_app(app);
    let max_age = inner.settings.callback_max_age;
    if let Some(token) = inner.settings.callback_tokens.get(app) {
        if !token.signs(&timestamp, &nonce, &signature) {
            return Err(bad_signature("is not made with the app's callback token from this timestamp and nonce"));
        }
        let signed = timestamp.parse().map_err(|_| bad_signature("is made from a timestamp that is not a number"))?;
        let age = max_age.check(signed, unix_time());
        age.map_err(|fault| bad_signature(format_args!("is made from a timestamp that {fault}")))?;
    }
    let recent = |created| {
        let age = max_age.check(created, unix_time());
        age.map_err(|fault| bad_body(fault.of(Location::Field("CreateTime"))))
    };
    let ignored = |event: String| Ok(ReportEventsResponse { event, results: Vec::new() });
    match parse(&body).map_err(bad_body)? {
        Report::Subscription(pushed) => {
            recent(pushed.created)?;
            let mut results = Vec::with_capacity(pushed.items.len());
            for item in &pushed.items {
                results.push(match item {
                    Ok(item) => act(inner, app, index, &pushed, item).await?,
                    Err(error) => EventResult {
                        action: EventAction::Refused.into(),
                        message: error.to_string(),
                        ..EventResult::default()
                    },
                });
            }
            Ok(ReportEventsResponse { event: pushed.event.name().into(), results })
        }
        Report::Revocation { name, .. } if !inner.settings.erase_on_revoke.contains(app) => ignored(name.into()),
        Report::Revocation { name, of } => {
            let revoked = of.map_err(bad_body)?;
            recent(revoked.created)?;
            let results = vec![erase(inner, caller, app, name, &revoked).await?];
            Ok(ReportEventsResponse { event: name.into(), results })
        }
        Report::Other { name } => ignored(name.map(String::from).unwrap_or_default()),
    }
}

fn bad_signature(why: impl Display) -> Failure {
    Failure::new(Reason::BAD_SIGNATURE, format!("the signature {why}"))
}

fn bad_body(error: EventError) -> Failure {
    let mut fields = Fields::default();
    fields.refuse(error.place.to_string(), error.fault);
    fields.finish().err().unwrap_or_else(Failure::internal)
}

/// Erases a user who took back an authorization, once. What the user grants after that stays, even if the event is
/// reported again.
async fn erase(
    inner: &Inner,
    caller: &Caller,
    app: &AppId,
    name: &'static str,
    revoked: &Revoked,
) -> Result<EventResult, Failure> {
    let (openid, once) = (&revoked.openid, revoked.once_key(name));
    if inner.store.is_processed(app, openid, once).await? {
        return Ok(EventResult { action: EventAction::Duplicate.into(), ..EventResult::default() });
    }
    let messages = inner.store.erase(app, openid).await?;
    // Recorded last: if erasing fails halfway, the event can be reported again.
    inner.store.set_processed(app, openid, once).await?;
    audit::erased(name, caller, app, messages);
    Ok(EventResult { action: EventAction::Erased.into(), messages, ..EventResult::default() })
}

async fn act(inner: &Inner, app: &AppId, index: usize, pushed: &Pushed, item: &Item) -> Result<EventResult, Failure> {
    // Recent, so it fits.
    let at = u32::try_from(pushed.created).unwrap_or(u32::MAX);
    // Every decision has a dedup key.
    let once = || pushed.once_key(item).ok_or_else(Failure::internal);
    let (template, action, messages, msgid) = match item {
        Item::Decision { template, status: Status::Accept, .. } => {
            let packed = Packed::accept(pushed.openid.clone(), template.clone(), once()?, at);
            if inner.ingest.collect(index, vec![packed]).await?.is_empty() {
                (template, EventAction::Granted, 1, 0)
            } else if inner.store.rejected_after(app, &pushed.openid, template, at).await? {
                (template, EventAction::Outdated, 0, 0)
            } else {
                (template, EventAction::Duplicate, 0, 0)
            }
        }
        Item::Decision { template, status: Status::Reject, .. } => {
            match inner.store.void(app, &pushed.openid, template, once()?, at).await? {
                Some(messages) => (template, EventAction::Voided, messages, 0),
                None => (template, EventAction::Duplicate, 0, 0),
            }
        }
        Item::Decision { template, status: Status::NotAsked, .. } => (template, EventAction::Ignored, 0, 0),
        Item::Outcome { template, msgid, error_code: 0, .. } => (template, EventAction::Delivered, 0, *msgid),
        Item::Outcome { template, msgid, error_code, error_status } => {
            let failure = LateFailure { errcode: *error_code, status: error_status.to_string() };
            let new = inner.store.fail_late(app, &pushed.openid, MsgId(*msgid), &failure).await?;
            let action = if new { EventAction::FailureRecorded } else { EventAction::Duplicate };
            (template, action, 0, *msgid)
        }
    };
    let template_id = template.as_str().to_owned();
    Ok(EventResult { action: action.into(), template_id, messages, msgid, message: String::new() })
}
