//! Fields that are far too large.

use prost::Message as _;
use server::proto::broadcast_request::Audience;
use server::proto::lift_stop_request::Target;
use server::proto::{
    AddRecipientsRequest, AllReachable, AllStops, BroadcastRequest, GetBroadcastRequest, LiftStopRequest, Recipient,
};
use testing::{called_raw, oversized_requests};
use tonic::Code;

use crate::fixture::{APP, Fixture, connect, fields, message};

/// A request that the dispatcher accepts, apart from a broadcast id that does not exist.
fn valid(name: &str) -> Vec<u8> {
    let (app_id, broadcast_id) = (APP.to_owned(), "0192a3b4c5d-01234567".to_owned());
    let recipient = |openid: &str| Recipient { openid: openid.into(), ..Recipient::default() };
    match name.strip_prefix("formid.v1.").unwrap_or_default() {
        "SendTemplateRequest" => message("oUser", "x").encode_to_vec(),
        "BroadcastRequest" => {
            let audience = Some(Audience::AllReachable(AllReachable {}));
            let request = BroadcastRequest { app_id, template_id: "t".into(), audience, ..Default::default() };
            request.encode_to_vec()
        }
        "Recipient" => recipient("oOther").encode_to_vec(),
        // No recipients: next to a good one, a bad one would be refused alone.
        "AddRecipientsRequest" => {
            AddRecipientsRequest { app_id, broadcast_id, recipients: Vec::new(), exclude: Vec::new() }.encode_to_vec()
        }
        "LiftStopRequest" => LiftStopRequest { app_id, target: Some(Target::All(AllStops {})) }.encode_to_vec(),
        // All other requests begin with the same two fields. ListBroadcastsRequest has no broadcast_id.
        "ListBroadcastsRequest" => GetBroadcastRequest { app_id, broadcast_id: String::new() }.encode_to_vec(),
        request if request.ends_with("Request") => GetBroadcastRequest { app_id, broadcast_id }.encode_to_vec(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn every_field_of_variable_size_has_a_bound() {
    let fixture = Fixture::new().await;
    let dispatcher = fixture.dispatcher().await;
    let channel = connect(dispatcher.address.port()).await;
    let requests = oversized_requests("formid.v1.DispatcherService", valid);
    assert!(requests.len() > 50, "{}", requests.len());
    let mut unbounded = Vec::new();
    for oversized in &requests {
        let answer = called_raw(channel.clone(), &oversized.path, oversized.request.clone()).await;
        let bounded = answer
            .as_ref()
            .is_err_and(|status| status.code() == Code::InvalidArgument && oversized.is_named(&fields(status)));
        if !bounded {
            unbounded.push(format!("{} {}: {answer:.200?}", oversized.path, oversized.field));
        }
    }
    assert!(unbounded.is_empty(), "{unbounded:#?}");
}
