//! The gRPC edge of the dispatcher: converts, calls one function, converts back.

use std::collections::HashMap;
use std::sync::Arc;

use shared::credential::{AppId, MAX_ID, OpenId, RequestId, visible};
use shared::fields::Fields;
use shared::proto::dispatcher_service_server::DispatcherService;
use shared::proto::{self, SendTemplateRequest, SendTemplateResponse};
use shared::status::Failure;
use shared::store::leases::Request;
use tonic::{Response, Status};

use crate::desk::Desk;
use crate::outcome::End;
use crate::send::{Order, Sender, Sent};
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

/// Answers the calls of `formid.v1.DispatcherService`.
pub struct Service {
    senders: HashMap<AppId, Arc<Sender>>,
    desk: Desk,
}

impl Service {
    /// A service for the given apps.
    pub fn new(senders: HashMap<AppId, Arc<Sender>>, desk: Desk) -> Self {
        Self { senders, desk }
    }
}

#[tonic::async_trait]
impl DispatcherService for Service {
    async fn send_template(
        &self,
        request: tonic::Request<SendTemplateRequest>,
    ) -> Result<Response<SendTemplateResponse>, Status> {
        let (app, order) = parse(request.into_inner(), |app| self.senders.contains_key(app))?;
        let sender = self.senders.get(&app).ok_or_else(Failure::unknown_app)?;
        let sent = self.desk.send(app, Arc::clone(sender), order).await?;
        Ok(Response::new(respond(sent)))
    }
}

/// Checks every field of a request at once.
fn parse(request: SendTemplateRequest, known: impl Fn(&AppId) -> bool) -> Result<(AppId, Order), Failure> {
    let mut fields = Fields::default();
    let app = fields.take("app_id", AppId::parse(request.app_id));
    let openid = fields.take("openid", OpenId::parse(request.openid));
    // A template id looks like any other of WeChat's ids.
    fields.take("template_id", visible(&request.template_id, MAX_ID));
    fields.text("page", &request.page, MAX_PAGE);
    let request_id = match request.request_id.as_str() {
        "" => None,
        text => fields.take("request_id", RequestId::parse(text)),
    };
    check_data(&mut fields, &request.data);
    check_emphasis(&mut fields, &request.emphasis_keyword, &request.data);
    let app = fields.finish_for(app, |app| known(app).then(|| app.clone()))?;
    // Without an openid there was a bad field.
    let openid = openid.ok_or_else(Failure::internal)?;
    let data = request.data.into_iter().map(|(key, value)| (key, Value { value: value.value, color: value.color }));
    let message = Message {
        template_id: request.template_id,
        page: request.page,
        data: data.collect(),
        emphasis_keyword: request.emphasis_keyword,
    };
    let request_of = |id| Request { id, fingerprint: message.fingerprint() };
    let request_of = request_id.map(request_of);
    Ok((app, Order { openid, message, request: request_of, retry_unknown: request.retry_unknown }))
}

fn check_data(fields: &mut Fields, data: &HashMap<String, proto::TemplateValue>) {
    if data.len() > MAX_KEYS {
        fields.refuse("data", format_args!("must not have more than {MAX_KEYS} keys"));
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
                "data",
                format_args!("has a key that is not 1 to {MAX_KEY} letters, digits and '_', such as keyword1"),
            );
            continue;
        }
        fields.text(&format!("data.{key}.value"), &value.value, MAX_VALUE);
        fields.text(&format!("data.{key}.color"), &value.color, MAX_COLOR);
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

fn respond(sent: Sent) -> SendTemplateResponse {
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
