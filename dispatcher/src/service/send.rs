//! SendTemplate, from the request to an order and from its end to the response; and what it shares with broadcasts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use shared::credential::{AppId, MAX_ID, OpenId, RequestId, visible};
use shared::fields::Fields;
use shared::proto::{self, SendTemplateRequest, SendTemplateResponse};
use shared::status::Failure;
use shared::store::leases::Request;

use crate::outcome::End;
use crate::send::{Order, Sent};
use crate::wechat::message::{Message, Value};

/// The longest page, in bytes: WeChat's bound.
const MAX_PAGE: usize = 1024;
/// The most keys in a message's data; templates have fewer than ten.
const MAX_KEYS: usize = 64;
/// The longest key, in bytes.
const MAX_KEY: usize = 64;
/// The longest value, in bytes.
const MAX_VALUE: usize = 4096;
/// The longest colour, in bytes.
const MAX_COLOR: usize = 32;

/// Checks every field of a request at once.
pub(super) fn parse(request: SendTemplateRequest, known: impl Fn(&AppId) -> bool) -> Result<(AppId, Order), Failure> {
    let mut fields = Fields::default();
    let app = fields.take("app_id", AppId::parse(request.app_id));
    let openid = fields.take("openid", OpenId::parse(request.openid));
    let request_id = request_id(&mut fields, &request.request_id);
    let message = message(&mut fields, request.template_id, request.page, request.data, request.emphasis_keyword);
    let app = fields.finish_for(app, |app| known(app).then(|| app.clone()))?;
    // Without an openid there was a bad field.
    let openid = openid.ok_or_else(Failure::internal)?;
    let request_of = request_id.map(|id| Request { id, fingerprint: message.fingerprint() });
    Ok((app, Order { openid, message: Arc::new(message), request: request_of, retry_unknown: request.retry_unknown }))
}

/// The request id, if there is one.
pub(super) fn request_id(fields: &mut Fields, text: &str) -> Option<RequestId> {
    if text.is_empty() { None } else { fields.take("request_id", RequestId::parse(text)) }
}

/// The message of a request.
pub(super) fn message(
    fields: &mut Fields,
    template_id: String,
    page: String,
    data: HashMap<String, proto::TemplateValue>,
    emphasis_keyword: String,
) -> Message {
    // A template id looks like any other of WeChat's ids.
    fields.take("template_id", visible(&template_id, MAX_ID));
    fields.text("page", &page, MAX_PAGE);
    check_data(fields, "data", &data);
    check_emphasis(fields, &emphasis_keyword, &data);
    Message { template_id, page, data: values(data), emphasis_keyword }
}

/// The values of a template, in order.
pub(super) fn values(data: HashMap<String, proto::TemplateValue>) -> BTreeMap<String, Value> {
    data.into_iter().map(|(key, value)| (key, Value { value: value.value, color: value.color })).collect()
}

/// Notes what is wrong with the values of a template; `field` is what the request calls them.
pub(super) fn check_data(fields: &mut Fields, field: &str, data: &HashMap<String, proto::TemplateValue>) {
    if data.len() > MAX_KEYS {
        fields.refuse(field, format_args!("must not have more than {MAX_KEYS} keys"));
        return;
    }
    let mut keys: Vec<_> = data.iter().collect();
    keys.sort_by_key(|(key, _)| *key);
    for (key, value) in keys {
        if key.is_empty()
            || key.len() > MAX_KEY
            || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            fields.refuse(
                field,
                format_args!("has a key that is not 1 to {MAX_KEY} letters, digits and '_', such as keyword1"),
            );
            continue;
        }
        fields.text(&format!("{field}.{key}.value"), &value.value, MAX_VALUE);
        fields.text(&format!("{field}.{key}.color"), &value.color, MAX_COLOR);
    }
}

fn check_emphasis(fields: &mut Fields, emphasis: &str, data: &HashMap<String, proto::TemplateValue>) {
    if emphasis.is_empty() {
        return;
    }
    if !emphasis.strip_suffix(".DATA").is_some_and(|key| data.contains_key(key)) {
        fields.refuse("emphasis_keyword", "must be a key of data followed by .DATA, such as keyword1.DATA");
    }
}

/// What the caller gets.
pub(super) fn respond(sent: Sent) -> SendTemplateResponse {
    let outcome = match sent.outcome.end {
        End::Delivered => proto::Outcome::Delivered,
        // A refusal is an error to its caller and does not come here; "unknown" claims the least.
        End::Unknown | End::Refused => proto::Outcome::Unknown,
    };
    let kind = sent.outcome.kind.map_or(proto::CredentialKind::Unspecified, Into::into);
    SendTemplateResponse {
        outcome: outcome.into(),
        errcode: sent.outcome.verdict.errcode,
        rid: sent.outcome.verdict.rid,
        attempts: sent.outcome.attempts,
        kind: kind.into(),
        messages_left: sent.messages_left,
        repeated: sent.repeated,
    }
}
