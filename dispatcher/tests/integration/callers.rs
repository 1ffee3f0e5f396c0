//! Permissions of callers on the dispatcher, and the audit log.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use domain::TemplateId;
use server::auth::Permission;
use server::auth::methods::METHODS;
use server::proto::dispatcher_service_client::DispatcherServiceClient as Client;
use server::proto::lift_stop_request::Target;
use server::proto::{
    AddRecipientsRequest, AllStops, BroadcastRequest, CancelBroadcastRequest, GetBroadcastRequest, LiftStopRequest,
    ListBroadcastsRequest, ListStopsRequest, ListUndeliveredRequest, PauseBroadcastRequest, ResumeBroadcastRequest,
    SendTemplateRequest, StartBroadcastRequest, WatchBroadcastRequest,
};
use store::stops::{Stop, StopScope};
use testing::{CallersFile, Process, bearer, called, eventually, free_port, now, whole};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::broadcast::{to_all, to_list};
use crate::fixture::{APP, Fixture, Running, connect, fact, message, reason, request, serving};

const OTHER_APP: &str = "wxfedcba9876543210";
const SOON: Duration = Duration::from_secs(20);
const ALL: (&str, &str) = (
    "all",
    "token_sha256 = ['TOKEN(all)']\napps = ['*']\npermissions = ['read', 'send', 'broadcast', 'broadcast_all', 'operate']",
);

/// A dispatcher with a callers file and two apps. Only [`APP`] exists in the sandbox.
async fn guarded(fixture: &mut Fixture, callers: &[(&str, &str)], flags: &[&str]) -> (Running, Channel, CallersFile) {
    // The settings of the second app differ in everything that an answer could reveal.
    let different = "timeout = '500ms'\nconnect_timeout = '200ms'\ndelivery = 'subscription'";
    fixture.app_settings =
        format!("[apps.{OTHER_APP}]\nsecret = 'x'\nbase_url = '{}'\n{different}\n", fixture.base_url);
    let file = CallersFile::new(callers);
    let given = file.flags();
    let mut all = vec![given[0].as_str(), given[1].as_str()];
    all.extend(flags);
    let running = fixture.dispatcher_with(&all).await;
    let channel = connect(running.address.port()).await;
    (running, channel, file)
}

#[tokio::test]
async fn every_rpc_requires_exactly_its_permission() {
    let mut fixture = Fixture::patient().await;
    let permissions = Permission::ALL.into_iter().filter(|permission| *permission != Permission::BroadcastAll);
    let permissions: Vec<Permission> = permissions.collect();
    let tables: Vec<_> = permissions
        .iter()
        .map(|name| (name.name(), format!("token_sha256 = ['TOKEN({name})']\napps = ['*']\npermissions = ['{name}']")))
        .collect();
    let callers: Vec<_> = tables.iter().map(|(name, table)| (*name, table.as_str())).collect();
    let (_running, channel, _file) = guarded(&mut fixture, &callers, &[]).await;
    let mut walked = 0;
    for method in METHODS.iter().filter(|method| method.path.contains("Dispatcher")) {
        let status = called(channel.clone(), method.path, Request::new(())).await.unwrap_err();
        assert_eq!(reason(&status), "UNAUTHENTICATED");
        for permission in &permissions {
            let status = called(channel.clone(), method.path, bearer(permission.name(), ())).await.unwrap_err();
            if method.needs.contains(permission) {
                assert_eq!(reason(&status), "INVALID_FIELDS", "{} with {permission}", method.path);
            } else {
                assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "NOT_PERMITTED"));
                assert_eq!(fact(&status, "permission").as_deref(), Some(method.needs[0].name()), "{}", method.path);
            }
            walked += 1;
        }
    }
    assert_eq!(walked, 13 * 6);
}

#[tokio::test]
async fn broadcast_to_all_requires_more_than_a_broadcast_to_a_list() {
    let mut fixture = Fixture::patient().await;
    fixture.submit("oUser", 1).await;
    let one = "token_sha256 = ['TOKEN(one)']\napps = ['*']\npermissions = ['broadcast']";
    let (_running, channel, _file) = guarded(&mut fixture, &[ALL, ("one", one)], &[]).await;
    let mut client = Client::new(channel);
    for validate_only in [false, true] {
        for app_id in [APP, "wx0000000000000000", "not an app"] {
            let all = BroadcastRequest { validate_only, app_id: app_id.into(), ..to_all() };
            let status = client.broadcast(bearer("one", all)).await.unwrap_err();
            assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "NOT_PERMITTED"));
            assert_eq!(fact(&status, "permission").as_deref(), Some("broadcast_all"));
        }
    }
    let list = ListBroadcastsRequest { app_id: APP.into(), ..Default::default() };
    let listed = client.list_broadcasts(bearer("one", list.clone())).await.unwrap().into_inner();
    assert!(listed.broadcasts.is_empty(), "{listed:?}");
    client.broadcast(bearer("one", to_list(&["oUser"]))).await.unwrap();
    client.broadcast(bearer("all", to_all())).await.unwrap();
    assert_eq!(client.list_broadcasts(bearer("one", list)).await.unwrap().into_inner().broadcasts.len(), 2);
}

/// The answers of every RPC about an app: once with no other error, and once with an invalid field where the RPC has
/// one.
async fn answers(channel: &Channel, app: &str) -> Vec<Status> {
    let mut client = Client::new(channel.clone());
    let id = || "1a2046afe69-830532f5".to_owned();
    let mut answers = Vec::new();
    for openid in ["oUser", "o User"] {
        let send = SendTemplateRequest { app_id: app.into(), ..message(openid, "hello") };
        answers.push(client.send_template(bearer("t", send.clone())).await.unwrap_err());
        let validate = SendTemplateRequest { validate_only: true, ..send };
        answers.push(client.send_template(bearer("t", validate)).await.unwrap_err());
        for audience in [to_list(&[openid]), to_all()] {
            let broadcast = BroadcastRequest { app_id: app.into(), exclude: vec![openid.into()], ..audience };
            answers.push(client.broadcast(bearer("t", broadcast)).await.unwrap_err());
        }
    }
    for broadcast_id in [id(), "none".into()] {
        macro_rules! ask {
            ($($call:ident $request:ident),*) => { $(
                let request = $request { app_id: app.into(), broadcast_id: broadcast_id.clone(), ..Default::default() };
                answers.push(client.$call(bearer("t", request)).await.unwrap_err());
            )* };
        }
        #[allow(clippy::needless_update, reason = "some requests have further fields")]
        {
            ask!(
                add_recipients AddRecipientsRequest, start_broadcast StartBroadcastRequest,
                get_broadcast GetBroadcastRequest, pause_broadcast PauseBroadcastRequest,
                resume_broadcast ResumeBroadcastRequest, cancel_broadcast CancelBroadcastRequest,
                list_undelivered ListUndeliveredRequest, watch_broadcast WatchBroadcastRequest
            );
        }
    }
    for page_token in [String::new(), "x".into()] {
        let list = ListBroadcastsRequest { app_id: app.into(), page_token, ..Default::default() };
        answers.push(client.list_broadcasts(bearer("t", list)).await.unwrap_err());
    }
    let stops = ListStopsRequest { app_id: app.into() };
    answers.push(client.list_stops(bearer("t", stops)).await.unwrap_err());
    for target in [Some(Target::All(AllStops {})), None] {
        let lift = LiftStopRequest { app_id: app.into(), target };
        answers.push(client.lift_stop(bearer("t", lift)).await.unwrap_err());
    }
    answers
}

#[tokio::test]
async fn app_of_another_caller_is_answered_like_an_unknown_app() {
    let mut fixture = Fixture::patient().await;
    let caller = format!(
        "token_sha256 = ['TOKEN(t)']\napps = ['{APP}']\npermissions = ['read', 'send', 'broadcast', 'broadcast_all', 'operate']"
    );
    let (_running, channel, _file) = guarded(&mut fixture, &[("one", &caller), ALL], &[]).await;
    let (others, nobodys) = (answers(&channel, OTHER_APP).await, answers(&channel, "wx0000000000000000").await);
    assert_eq!((others.len(), nobodys.len()), (29, 29));
    for (other, nobody) in others.iter().zip(&nobodys) {
        assert_eq!(whole(other), whole(nobody));
        assert!(["UNKNOWN_APP", "INVALID_FIELDS"].contains(&reason(other).as_str()), "{other:?}");
    }
    // The app exists for callers that may use it.
    let list = ListBroadcastsRequest { app_id: OTHER_APP.into(), ..Default::default() };
    Client::new(channel).list_broadcasts(bearer("all", list)).await.unwrap();
}

#[tokio::test]
async fn watch_ends_when_its_caller_loses_the_permission() {
    let mut fixture = Fixture::patient().await;
    let reader = ("reader", "token_sha256 = ['TOKEN(reader)']\napps = ['*']\npermissions = ['read']");
    let (_running, channel, file) = guarded(&mut fixture, &[ALL, reader], &[]).await;
    let mut client = Client::new(channel);
    let held = BroadcastRequest { hold: true, ..to_list(&["oUser"]) };
    let begun = client.broadcast(bearer("all", held)).await.unwrap().into_inner().broadcast.unwrap();
    let watch = WatchBroadcastRequest { app_id: APP.into(), broadcast_id: begun.broadcast_id, interval: None };
    let mut stream = client.watch_broadcast(bearer("reader", watch)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    file.write(&[ALL, (reader.0, &reader.1.replace('*', OTHER_APP))]);
    let end = stream.message().await.unwrap_err();
    assert_eq!(reason(&end), "UNKNOWN_APP");
}

#[tokio::test]
async fn sends_of_disconnected_callers_count_toward_the_limit() {
    let fixture = Fixture::patient().await;
    fixture.submit("oUser", 8).await;
    let dispatcher = fixture.dispatcher_with(&["--max-requests", "2"]).await;
    dispatcher.send(message("oUser", "to have a token")).await.unwrap();
    let slow = sandbox::Settings { latency_ms: 4000, ..fixture.sandbox.settings() };
    fixture.sandbox.set_settings(slow).unwrap();
    for n in 0..2 {
        let mut given_up = Request::new(request("oUser", "hello", &format!("r{n}")));
        given_up.set_timeout(Duration::from_millis(200));
        dispatcher.client.clone().send_template(given_up).await.unwrap_err();
    }
    let status = dispatcher.send(request("oUser", "hello", "r2")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    // A repeated request that joins a send in flight does not count a second time.
    dispatcher.send(request("oUser", "hello", "r0")).await.unwrap();
    let sent = async || dispatcher.send(request("oUser", "hello", "r2")).await.is_ok();
    eventually("a new send is accepted again", SOON, sent).await;
    assert_eq!(fixture.delivered(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_log_names_who_changed_a_broadcast_or_lifted_a_stop_and_no_user() {
    let fixture = Fixture::patient().await;
    fixture.submit("oCANARY", 2).await;
    let file = CallersFile::new(&[("night-shift", ALL.1)]);
    let port = free_port();
    let log = fixture.file("log", "");
    // Audit lines are logged at every log level.
    let mut flags = fixture.flags(&["--log", "error"]);
    flags[1] = format!("127.0.0.1:{port}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dispatcher"));
    command.args(flags).args(file.flags()).stderr(Stdio::from(File::create(&log).unwrap()));
    let process = Process::start(&mut command);
    let channel = connect(port).await;
    serving(channel.clone(), true).await;
    let mut client = Client::new(channel);
    let held = BroadcastRequest { hold: true, ..to_all() };
    let begun = client.broadcast(bearer("all", held)).await.unwrap().into_inner().broadcast.unwrap();
    let id = begun.broadcast_id;
    let cancel = CancelBroadcastRequest { app_id: APP.into(), broadcast_id: id.clone() };
    client.cancel_broadcast(bearer("all", cancel.clone())).await.unwrap();
    // A repeated call and a failed call change nothing, so neither is logged.
    client.cancel_broadcast(bearer("all", cancel)).await.unwrap();
    let resume = ResumeBroadcastRequest { app_id: APP.into(), broadcast_id: id.clone() };
    client.resume_broadcast(bearer("all", resume)).await.unwrap_err();
    let stop = Stop { until_ms: (now() as u64 + 600) * 1000, errcode: 43116, rid: String::new(), address: None };
    let template = StopScope::Template(TemplateId::parse("template-1").unwrap());
    fixture.store.stop(&fixture.app(), &template, &stop).await.unwrap();
    let lift = LiftStopRequest { app_id: APP.into(), target: Some(Target::All(AllStops {})) };
    for _ in 0..2 {
        client.lift_stop(bearer("all", lift.clone())).await.unwrap();
    }
    drop(process);
    let log = std::fs::read_to_string(log).unwrap();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("night-shift")).collect();
    assert_eq!(lines.len(), 3, "{log}");
    assert!(
        lines.iter().all(|line| line.contains(APP)) && lines[..2].iter().all(|line| line.contains(&id)),
        "{lines:?}"
    );
    assert!(lines[0].contains("Broadcast") && lines[0].contains("everyone=true"), "{lines:?}");
    assert!(lines[1].contains("CancelBroadcast"), "{lines:?}");
    assert!(["LiftStop", "template:template-1", "43116"].iter().all(|word| lines[2].contains(word)), "{lines:?}");
    assert!(!log.contains("CANARY"), "{log}");
}
