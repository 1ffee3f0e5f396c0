//! ReportEvents: what WeChat pushed, acted on item by item.

use shared::auth::Caller;
use shared::credential::{AppId, Grant, GrantUses};
use shared::fields::Fields;
use shared::proto::{EventAction, EventResult, ReportEventsRequest, ReportEventsResponse};
use shared::status::Failure;
use shared::store::credentials::Packed;
use shared::store::late::{LateFailure, MsgId};
use tonic::Code;

use super::Inner;
use crate::events::{EventError, Item, Pushed, Report, Status, parse};

/// Takes in one event. Each item is acted on before the next, and once however often it is told; so after a failure
/// halfway the whole event can be reported again.
pub(super) async fn report(
    inner: &Inner,
    caller: &Caller,
    request: ReportEventsRequest,
) -> Result<ReportEventsResponse, Failure> {
    let (app, place) = inner.app(caller, request.app_id, Fields::default())?;
    if let Some(token) = inner.callback_tokens.get(app)
        && !token.signs(&request.timestamp, &request.nonce, &request.signature)
    {
        let sentence = "the signature is not made with the app's callback token from this timestamp and nonce";
        return Err(Failure::new(Code::PermissionDenied, "BAD_SIGNATURE", sentence));
    }
    let pushed = match parse(&request.body).map_err(bad_body)? {
        Report::Subscription(pushed) => pushed,
        Report::Other { name } => {
            let event = name.map(String::from).unwrap_or_default();
            return Ok(ReportEventsResponse { event, results: Vec::new() });
        }
    };
    let mut results = Vec::with_capacity(pushed.items.len());
    for item in &pushed.items {
        results.push(match item {
            Ok(item) => act(inner, app, place, &pushed, item).await?,
            Err(error) => EventResult {
                action: EventAction::Refused.into(),
                message: error.to_string(),
                ..EventResult::default()
            },
        });
    }
    Ok(ReportEventsResponse { event: pushed.event.name().into(), results })
}

fn bad_body(error: EventError) -> Failure {
    let mut fields = Fields::default();
    fields.refuse(error.place.to_string(), error.fault);
    fields.finish().err().unwrap_or_else(Failure::internal)
}

async fn act(inner: &Inner, app: &AppId, place: usize, pushed: &Pushed, item: &Item) -> Result<EventResult, Failure> {
    let (template, action, messages, msgid) = match item {
        Item::Decision { template, status: Status::Accept, .. } => {
            let grant = Grant { template: template.clone(), uses: GrantUses::Count(1) };
            let packed = Packed::grant(pushed.openid.clone(), &grant, pushed.once_key(item));
            let duplicates = inner.store(place, vec![packed]).await?;
            if duplicates.is_empty() {
                (template, EventAction::Granted, 1, 0)
            } else {
                (template, EventAction::Duplicate, 0, 0)
            }
        }
        Item::Decision { template, status: Status::Reject, .. } => {
            // Every decision has a key.
            let once = pushed.once_key(item).ok_or_else(Failure::internal)?;
            match inner.store.void(app, &pushed.openid, template, once).await? {
                Some(messages) => (template, EventAction::Voided, messages, 0),
                None => (template, EventAction::Duplicate, 0, 0),
            }
        }
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
