//! Requests with oversized values.

use prost::Message as _;
use server::proto::{
    CollectResponse, CollectStatus, CollectStreamResponse, EraseUserRequest, GetInventoryRequest, GetStockRequest,
    Grant, ReportEventsRequest,
};
use testing::{Redis, called_raw, oversized_requests};
use tonic::Code;

use crate::fixture::*;

/// A valid message of this type.
fn valid(message: &str) -> Vec<u8> {
    let (app_id, openid) = (APP.to_owned(), "oUser".to_owned());
    let body = br#"{"MsgType":"text"}"#.to_vec();
    match message.strip_prefix("formid.v1.").unwrap_or_default() {
        "CollectRequest" => request(vec![form("oUser", "f")]).encode_to_vec(),
        "CollectStreamRequest" => batch(1, vec![form("oUser", "f")]).encode_to_vec(),
        "Credential" => form("oUser", "f").encode_to_vec(),
        "Grant" => Grant { template_id: "t".into(), ..Grant::default() }.encode_to_vec(),
        "ReportEventsRequest" => ReportEventsRequest { app_id, body, ..Default::default() }.encode_to_vec(),
        "GetInventoryRequest" => GetInventoryRequest { app_id, openid }.encode_to_vec(),
        "EraseUserRequest" => EraseUserRequest { app_id, openid }.encode_to_vec(),
        "GetStockRequest" => GetStockRequest { app_id }.encode_to_vec(),
        _ => Vec::new(),
    }
}

/// Whether the oversized credential was refused within its batch.
fn is_refused(path: &str, responses: &[Vec<u8>]) -> bool {
    match path.rsplit_once('/').unwrap().1 {
        "Collect" => {
            let results = CollectResponse::decode(responses[0].as_slice()).unwrap().results;
            results.last().unwrap().status() == CollectStatus::Refused
        }
        "CollectStream" => !CollectStreamResponse::decode(responses[0].as_slice()).unwrap().refusals.is_empty(),
        _ => false,
    }
}

#[tokio::test]
async fn every_field_of_variable_size_is_bounded() {
    let redis = Redis::start();
    let (collector, _) = collector(&redis, &[]).await;
    let channel = connect(collector.address()).await;
    let requests = oversized_requests("formid.v1.CollectorService", valid);
    assert!(requests.len() > 20, "{}", requests.len());
    let mut unbounded = Vec::new();
    for oversized in &requests {
        let answer = called_raw(channel.clone(), &oversized.path, oversized.request.clone()).await;
        let bounded = match &answer {
            Ok(responses) => is_refused(&oversized.path, responses),
            // A list may need more memory than one message may use, which is checked before decoding.
            Err(status) if status.code() == Code::ResourceExhausted => reason(status) == "MESSAGE_TOO_LARGE",
            Err(status) => status.code() == Code::InvalidArgument && oversized.is_named(&bad_fields(status)),
        };
        if !bounded {
            unbounded.push(format!("{} {}: {answer:.200?}", oversized.path, oversized.field));
        }
    }
    assert!(unbounded.is_empty(), "{unbounded:#?}");
}
