//! Authentication and permissions of callers.

use std::time::Duration;

use server::auth::Permission;
use server::auth::methods::METHODS;
use server::proto::{
    CollectRequest, CollectStreamRequest, EraseUserRequest, GetInventoryRequest, GetStockRequest, ReportEventsRequest,
};
use testing::{Redis, bearer, called, reason, whole};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::*;

#[tokio::test]
async fn every_rpc_needs_exactly_its_permission() {
    let redis = Redis::start();
    let permissions = Permission::ALL.into_iter().filter(|permission| *permission != Permission::BroadcastAll);
    let permissions: Vec<Permission> = permissions.collect();
    let tables: Vec<_> = permissions
        .iter()
        .map(|name| (name.name(), format!("token_sha256 = ['TOKEN({name})']\napps = ['*']\npermissions = ['{name}']")))
        .collect();
    let callers: Vec<_> = tables.iter().map(|(name, table)| (*name, table.as_str())).collect();
    let (_collector, channel, _file) = guarded(&redis, &callers, &[]).await;
    let own = METHODS.iter().filter(|method| method.path.contains("Collector"));
    let mut walked = 0;
    for method in own {
        for permission in &permissions {
            let outcome = called(channel.clone(), method.path, bearer(permission.name(), ())).await;
            let status = outcome.unwrap_err();
            if method.needs.contains(permission) {
                assert_eq!(reason(&status), "INVALID_FIELDS", "{} with {permission}", method.path);
            } else {
                let details = status.get_error_details();
                let info = details.error_info().unwrap();
                assert_eq!((status.code(), info.reason.as_str()), (Code::PermissionDenied, "NOT_PERMITTED"));
                assert_eq!(info.metadata["permission"], method.needs[0].name(), "{}", method.path);
            }
            walked += 1;
        }
    }
    assert_eq!(walked, 6 * 6);
}

fn with_header(value: &str) -> Request<()> {
    let mut request = Request::new(());
    request.metadata_mut().insert("authorization", value.parse().unwrap());
    request
}

#[tokio::test]
async fn all_invalid_tokens_get_the_same_answer() {
    let redis = Redis::start();
    let (_collector, channel, _file) = guarded(&redis, &[ALL], &[]).await;
    let reflection = [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/formid.v1.CollectorService/NoSuchMethod",
    ];
    let methods = METHODS.iter().map(|method| method.path).filter(|path| path.contains("Collector"));
    let mut answers = Vec::new();
    for path in methods.chain(reflection) {
        for header in [None, Some("Bearer wrong"), Some("Bearer "), Some("Basic all"), Some("all")] {
            let request = header.map_or_else(|| Request::new(()), with_header);
            answers.push(whole(&called(channel.clone(), path, request).await.unwrap_err()));
        }
    }
    assert_eq!((answers[0].0, answers.len()), (Code::Unauthenticated, 9 * 5));
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
    let status = called(channel.clone(), METHODS[0].path, Request::new(())).await.unwrap_err();
    assert_eq!(reason(&status), "UNAUTHENTICATED");
    // A valid caller gets UNIMPLEMENTED for an unknown method, with a reason as for all errors.
    let status = called(channel, reflection[2], bearer("all", ())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unimplemented, "UNIMPLEMENTED"));
}

#[tokio::test]
async fn large_unauthenticated_request_keeps_the_connection_usable() {
    let redis = Redis::start();
    let (_collector, channel, _file) = guarded(&redis, &[ALL], &[]).await;
    let mut client = Client::new(channel.clone());
    for _ in 0..20 {
        let credentials = (0..1000).map(|n| form(&"o".repeat(64), &format!("{n:0128}"))).collect();
        let status = client.collect(request(credentials)).await.unwrap_err();
        assert_eq!(reason(&status), "UNAUTHENTICATED");
    }
    assert_eq!(stock(&channel, "all").await, "OK");
}

#[tokio::test]
async fn forbidden_app_is_answered_like_an_unknown_one() {
    let redis = Redis::start();
    let caller = format!("token_sha256 = ['TOKEN(t)']\napps = ['{APP}']\npermissions = ['collect', 'read', 'erase']");
    let (_collector, channel, _file) = guarded(&redis, &[("one", &caller)], &[]).await;
    let client = Client::new(channel);
    assert!(client.clone().collect(bearer("t", request(vec![form("oUser", "f")]))).await.is_ok());
    let answers = async |app: &str| {
        let (app_id, openid) = (app.to_owned(), "oUser".to_owned());
        let mut client = client.clone();
        let batch = |credentials| CollectStreamRequest { sequence: 7, app_id: app_id.clone(), credentials };
        let good = CollectStreamRequest { sequence: 6, app_id: APP.into(), credentials: vec![form("oUser", "f")] };
        let mut answers: Vec<Status> = Vec::new();
        for batch in [batch(vec![form("oUser", "f")]), batch(Vec::new())] {
            let stream = tokio_stream::iter([good.clone(), batch]);
            let mut read = client.collect_stream(bearer("t", stream)).await.unwrap().into_inner();
            assert_eq!(read.message().await.unwrap().unwrap().sequence, 6);
            answers.push(read.message().await.unwrap_err());
        }
        for credentials in [vec![form("oUser", "f")], Vec::new()] {
            let collect = CollectRequest { app_id: app_id.clone(), credentials };
            answers.push(client.collect(bearer("t", collect)).await.unwrap_err());
        }
        for openid in [openid, String::new()] {
            let inventory = GetInventoryRequest { app_id: app_id.clone(), openid: openid.clone() };
            answers.push(client.get_inventory(bearer("t", inventory)).await.unwrap_err());
            let erase = EraseUserRequest { app_id: app_id.clone(), openid };
            answers.push(client.erase_user(bearer("t", erase)).await.unwrap_err());
        }
        let events = ReportEventsRequest { app_id: app_id.clone(), body: b"{}".into(), ..Default::default() };
        answers.push(client.report_events(bearer("t", events)).await.unwrap_err());
        answers.push(client.get_stock(bearer("t", GetStockRequest { app_id })).await.unwrap_err());
        answers
    };
    // No answer contains the app id, so the answers can be compared byte for byte.
    let (others, nobodys) = (answers(OTHER_APP).await, answers("wx0000000000000000").await);
    assert_eq!(others.len(), 10);
    assert!(others.iter().any(|status| reason(status) == "UNKNOWN_APP"));
    assert!(others.iter().any(|status| reason(status) == "INVALID_FIELDS"));
    for (other, nobody) in others.iter().zip(&nobodys) {
        assert_eq!(whole(other), whole(nobody));
    }
}

#[tokio::test]
async fn health_needs_no_token_and_reflection_needs_one() {
    let redis = Redis::start();
    let (collector, channel, _file) = guarded(&redis, &[ALL], &[]).await;
    assert!(collector.is_serving().await);
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let status = called(channel.clone(), reflection, Request::new(())).await.unwrap_err();
    assert_eq!(reason(&status), "UNAUTHENTICATED");
    let list = testing::printed(
        testing::grpcurl(&["-H", "authorization: Bearer all", &collector.address().to_string(), "list"]).await,
    );
    assert!(list.contains("formid.v1.CollectorService"), "{list}");
}

#[tokio::test]
async fn rate_limit_of_one_caller_does_not_affect_others() {
    let redis = Redis::start();
    let slow = "token_sha256 = ['TOKEN(slow)']\napps = ['*']\npermissions = ['read']\ncalls_per_second = 0.01";
    let quicker = "token_sha256 = ['TOKEN(quicker)']\napps = ['*']\npermissions = ['read']\ncalls_per_second = 0.5";
    let (_collector, channel, _file) = guarded(&redis, &[ALL, ("slow", slow), ("quicker", quicker)], &[]).await;
    assert_eq!(stock(&channel, "slow").await, "OK");
    let mut client = Client::new(channel.clone());
    let status = client.get_stock(bearer("slow", GetStockRequest { app_id: APP.into() })).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
    let wait = status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    assert!(wait > Duration::from_secs(1) && wait <= Duration::from_millis(100_001), "{wait:?}");
    for _ in 0..50 {
        assert_eq!(stock(&channel, "all").await, "OK");
    }
    assert_eq!(stock(&channel, "slow").await, "RATE_LIMITED");
    // A call after the given delay is accepted.
    let wait = loop {
        let Err(status) = client.get_stock(bearer("quicker", GetStockRequest { app_id: APP.into() })).await else {
            continue;
        };
        assert_eq!(reason(&status), "RATE_LIMITED");
        break status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    };
    assert!(wait <= Duration::from_millis(2001), "{wait:?}");
    tokio::time::sleep(wait).await;
    assert_eq!(stock(&channel, "quicker").await, "OK");
}
