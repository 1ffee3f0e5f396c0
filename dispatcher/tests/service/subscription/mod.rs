//! Subscription messages: the generation that spends grants.

mod broadcasts;
mod crash;
mod sends;
mod stops;
mod turns;
mod values;

use std::collections::HashMap;

use shared::proto::{Delivery, SendTemplateRequest, TemplateValue};

use crate::rig::APP;

pub const TEMPLATE: &str = "order-ready";

/// A message to a user; its text tells messages apart.
pub fn message(openid: &str, text: &str) -> SendTemplateRequest {
    SendTemplateRequest {
        app_id: APP.into(),
        openid: openid.into(),
        template_id: TEMPLATE.into(),
        data: data("thing1", text),
        ..Default::default()
    }
}

/// The same as a request that may be repeated.
pub fn request(openid: &str, text: &str, request_id: &str) -> SendTemplateRequest {
    SendTemplateRequest { request_id: request_id.into(), ..message(openid, text) }
}

pub fn data(key: &str, text: &str) -> HashMap<String, TemplateValue> {
    HashMap::from([(key.into(), TemplateValue { value: text.into(), color: String::new() })])
}

/// The same by the other generation.
pub fn by_form_id(request: SendTemplateRequest) -> SendTemplateRequest {
    SendTemplateRequest { delivery: Delivery::FormId.into(), ..request }
}
