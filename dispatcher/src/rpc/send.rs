//! Converts the request and the response of SendTemplate.

use std::sync::Arc;

use domain::{AppId, OpenId, RequestId};
use server::auth::Caller;
use server::proto::{self, LateFailure, SendTemplateRequest, SendTemplateResponse, ValueWarning};
use server::rpc::fields::Fields;
use server::rpc::status::Failure;
use store::leases::Request;

use super::Service;
use super::message::{self, Parts};
use crate::context::AppContext;
use crate::send::outcome::End;
use crate::send::{SendRequest, Sent};

pub(super) struct Parsed<'a> {
    pub(super) context: &'a Arc<AppContext>,
    pub(super) order: SendRequest,
    pub(super) warnings: Vec<ValueWarning>,
    pub(super) validate_only: bool,
}

impl Service {
    pub(super) fn parse_send(&self, caller: &Caller, request: SendTemplateRequest) -> Result<Parsed<'_>, Failure> {
        let mut fields = Fields::default();
        let app = fields.take("app_id", AppId::parse(request.app_id));
        let openid = fields.take("openid", OpenId::parse(request.openid));
        let request_id = request_id(&mut fields, &request.request_id);
        let parts = Parts {
            delivery: request.delivery,
            template_id: request.template_id,
            data: request.data,
            page: request.page,
            emphasis_keyword: request.emphasis_keyword,
            miniprogram_state: request.miniprogram_state,
            lang: request.lang,
            fit: request.fit,
        };
        let message = message::read(&mut fields, parts, self.default_delivery(caller, app.as_ref()));
        let service = self.finish(caller, fields, app)?;
        // Without either, `fields` has reported a bad field.
        let (openid, (message, warnings)) = openid.zip(message).ok_or_else(Failure::internal)?;
        let order = SendRequest {
            openid,
            request: request_id.map(|id| Request { id, fingerprint: message.fingerprint() }),
            message: Arc::new(message),
            retry_unknown: request.retry_unknown,
        };
        Ok(Parsed { context: &service.context, order, warnings: warnings.list, validate_only: request.validate_only })
    }
}

pub(super) fn request_id(fields: &mut Fields, text: &str) -> Option<RequestId> {
    if text.is_empty() { None } else { fields.take("request_id", RequestId::parse(text)) }
}

pub(super) fn respond(sent: Sent, warnings: Vec<ValueWarning>) -> SendTemplateResponse {
    let Sent { outcome, messages_left, repeated, late } = sent;
    let end = match outcome.end {
        End::Delivered => proto::Outcome::Delivered,
        // A refusal is returned as an error and does not get here; "unknown" claims the least.
        End::Unknown | End::Refused => proto::Outcome::Unknown,
    };
    let kind = outcome.kind.map_or(proto::CredentialKind::Unspecified, Into::into);
    SendTemplateResponse {
        outcome: end.into(),
        errcode: outcome.answer.errcode,
        rid: outcome.answer.rid,
        attempts: outcome.attempts,
        kind: kind.into(),
        messages_left,
        repeated,
        msgid: outcome.answer.msgid.map_or(0, |msgid| msgid.0),
        late_failure: late.map(|late| LateFailure { errcode: late.errcode, status: late.status }),
        warnings,
    }
}
