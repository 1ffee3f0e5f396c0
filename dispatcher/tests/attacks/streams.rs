//! Streams that stay open after their caller has lost its permission.

use std::time::Duration;

use server::proto::broadcast_request::Audience;
use server::proto::{AllReachable, BroadcastRequest, WatchBroadcastRequest};
use testing::{CallersFile, SilentStream, bearer, reason};
use tonic::Status;

use crate::fixture::{APP, Fixture, connect};

const WATCH: &str = "/formid.v1.DispatcherService/WatchBroadcast";
const BOUND: Duration = Duration::from_secs(30);

fn table(token: &str, app: &str) -> String {
    format!("token_sha256 = ['TOKEN({token})']\napps = ['{app}']\npermissions = ['broadcast', 'broadcast_all']")
}

#[tokio::test]
async fn open_streams_end_soon_after_their_caller_loses_its_rights() {
    let fixture = Fixture::new().await;
    fixture.submit("oUser", 1).await;
    let file = CallersFile::new(&[("a", &table("a", APP)), ("b", &table("b", APP))]);
    let flags = file.flags();
    let dispatcher = fixture.dispatcher_with(&[&flags[0], &flags[1]]).await;
    let audience = Some(Audience::AllReachable(AllReachable {}));
    let (app_id, template_id) = (APP.to_owned(), "t".to_owned());
    let request = BroadcastRequest { app_id, template_id, hold: true, audience, ..BroadcastRequest::default() };
    let broadcast = dispatcher.client.clone().broadcast(bearer("a", request)).await.unwrap().into_inner().broadcast;
    let broadcast_id = broadcast.unwrap().broadcast_id;

    let mut watched = Vec::new();
    for token in ["a", "b"] {
        // The stream reads the state once a minute.
        let interval = Some(prost_types::Duration { seconds: 60, nanos: 0 });
        let request = WatchBroadcastRequest { app_id: APP.into(), broadcast_id: broadcast_id.clone(), interval };
        let mut stream = dispatcher.client.clone().watch_broadcast(bearer(token, request)).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        watched.push(stream);
    }
    // A stream whose request is never sent.
    let channel = connect(dispatcher.address.port()).await;
    let silent = tokio::spawn(async move { SilentStream::open(channel, WATCH, "a").await.map(drop) });

    file.write(&[("b", &table("b", "wxfedcba9876543210"))]);
    let told = |ended: Result<(), Status>| reason(&ended.unwrap_err());
    assert_eq!(
        told(tokio::time::timeout(BOUND, silent).await.expect("the stream did not end").unwrap()),
        "UNAUTHENTICATED"
    );
    for (stream, expected) in watched.iter_mut().zip(["UNAUTHENTICATED", "UNKNOWN_APP"]) {
        let ended = tokio::time::timeout(BOUND, stream.message()).await.expect("the stream did not end");
        assert_eq!(told(ended.map(drop)), expected);
    }
}
