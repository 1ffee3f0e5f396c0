//! Subscription messages: the generation of messages that spends grants.

mod broadcasts;
mod crash;
mod recipients;
mod rests;
mod sends;
mod stops;
mod turns;
mod values;

use std::collections::HashMap;

use server::proto::{Delivery, SendTemplateRequest, TemplateValue};

use crate::fixture::APP;

pub const TEMPLATE: &str = "order-ready";

/// A message to a user. Messages differ by their text.
pub fn message(openid: &str, text: &str) -> SendTemplateRequest {
    SendTemplateRequest {
        app_id: APP.into(),
        openid: openid.into(),
        template_id: TEMPLATE.into(),
        data: data("thing1", text),
        ..Default::default()
    }
}

/// The same message with a request id, so that the request can be repeated.
pub fn request(openid: &str, text: &str, request_id: &str) -> SendTemplateRequest {
    SendTemplateRequest { request_id: request_id.into(), ..message(openid, text) }
}

pub fn data(key: &str, text: &str) -> HashMap<String, TemplateValue> {
    HashMap::from([(key.into(), TemplateValue { value: text.into(), color: String::new() })])
}

/// The same message as a template message, which spends a form id.
pub fn by_form_id(request: SendTemplateRequest) -> SendTemplateRequest {
    SendTemplateRequest { delivery: Delivery::FormId.into(), ..request }
}
