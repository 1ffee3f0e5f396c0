//! Messages of an app without a secret. While its source gives no usable token, nothing is spent and nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use dispatcher::wechat::client::Client;
use server::proto::{BroadcastState, Outcome};
use testing::{Process, eventually};
use tonic::Code;

use crate::broadcast::{tally, to_all};
use crate::fixture::{APP, Fixture, any_port, connect, reason, request, serving};
use crate::token_server::Tokens;

const SOON: Duration = Duration::from_secs(60);

/// Somebody with the secret of the app: the token server, or the one who writes the token file.
fn owner(fixture: &Fixture) -> Client {
    let app = Arc::clone(fixture.settings(&[]).apps.get(&fixture.app()).unwrap());
    Client::new(app, None).unwrap()
}

fn body(token: &str) -> String {
    format!(r#"{{"code":0,"data":{{"token":"{token}","expires_in":7200}}}}"#)
}

#[tokio::test]
async fn app_with_a_token_server_sends_and_reports_a_rejected_token() {
    let mut fixture = Fixture::patient().await;
    let owner = owner(&fixture);
    let token = owner.fetch_token(false).await.unwrap().token;
    let server = Tokens::start(&body(&token)).await;
    fixture.token_source =
        format!("token_url = \"{}\"\ntoken_path = \"data.token\"\ntoken_report = \"invalid\"", server.url);
    let replicas = [fixture.dispatcher().await, fixture.dispatcher().await];
    fixture.submit("oUser", 3).await;
    for (number, replica) in replicas.iter().enumerate() {
        let text = number.to_string();
        let answer = replica.send(request("oUser", &text, &format!("r{number}"))).await.unwrap();
        assert_eq!((answer.outcome(), answer.attempts), (Outcome::Delivered, 1));
    }
    assert_eq!(server.calls(), 1, "one replica asks for all");

    // Somebody forces a new token. The server does not know, and gives the old one: nothing is spent.
    let new = owner.fetch_token(true).await.unwrap().token;
    for _ in 0..20 {
        let status = replicas[0].send(request("oUser", "hello", "r2")).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "TOKEN_UNAVAILABLE"));
        assert!(status.message().contains("token_url: the source still gives the token that WeChat rejected"));
        assert!(!status.message().contains(&token));
    }
    assert!(server.calls() < 10, "{}", server.calls());
    assert!(server.requests()[1].uri.contains(&format!("&invalid={token}")));
    assert_eq!(fixture.left("oUser").await, 1);
    server.answers(200, &body(&new));
    eventually("the same request id is sent", SOON, async || {
        replicas[0]
            .send(request("oUser", "hello", "r2"))
            .await
            .is_ok_and(|answer| answer.outcome() == Outcome::Delivered)
    })
    .await;
    assert_eq!((fixture.delivered(), fixture.left("oUser").await), (3, 0));
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_waits_for_a_token_file_and_goes_on_by_itself() {
    let mut fixture = Fixture::patient().await;
    let owner = owner(&fixture);
    let file = fixture.file("token", &owner.fetch_token(false).await.unwrap().token);
    fixture.token_source = format!("token_file = {file:?}");
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    for user in 0..60 {
        fixture.submit(&format!("oUser{user}"), 1).await;
    }
    // The token dies, and whoever rotates the file fails: first it keeps the dead token, then it writes an error page.
    let new = owner.fetch_token(true).await.unwrap().token;
    let id = dispatchers[0].answer(to_all()).await.unwrap().broadcast.unwrap().broadcast_id;
    // To WeChat, a call with a dead token belongs to no app.
    eventually("the dead token was tried", SOON, async || fixture.sandbox.books(None).unwrap().calls > 0).await;
    fixture.file("token", "<html>try later</html>");
    tokio::time::sleep(server::reload::INTERVAL * 3).await;
    let info = dispatchers[0].look(&id).await;
    assert_eq!((info.state(), tally(&info).delivered, fixture.delivered()), (BroadcastState::Running, 0, 0));
    fixture.file("token", &new);
    eventually("the broadcast is done", SOON, async || dispatchers[1].look(&id).await.state() == BroadcastState::Done)
        .await;
    assert_eq!((tally(&dispatchers[0].look(&id).await).delivered, fixture.delivered()), (60, 60));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn each_failing_source_is_logged_with_its_app_and_spends_nothing() {
    let mut fixture = Fixture::patient().await;
    let server = Tokens::start("<html>").await;
    let away = format!("http://127.0.0.1:{}", any_port());
    let empty = fixture.file("empty", "\n");
    for (number, (source, key, fault)) in [
        (format!("token_url = \"{}\"", server.url), "token_url", "it is not a JSON object"),
        (format!("token_url = \"{away}\""), "token_url", "there is no connection"),
        ("token_file = \"/does/not/exist\"".into(), "token_file", "the file cannot be read (entity not found)"),
        (format!("token_file = {empty:?}"), "token_file", "there is no token"),
        // The sandbox is not WeChat's cloud run.
        ("token = \"none\"".into(), "token = \"none\"", "WeChat wants an access token"),
    ]
    .into_iter()
    .enumerate()
    {
        fixture.token_source = source;
        let (port, log) = (any_port(), fixture.file(&format!("log-{number}"), ""));
        let mut process = Process::start_printing(&mut fixture.command(port, &["--log-format", "json"]), log.as_ref());
        serving(connect(port).await, true).await;
        let openid = format!("oUser{number}");
        fixture.submit(&openid, 1).await;
        let mut client = server::proto::dispatcher_service_client::DispatcherServiceClient::new(connect(port).await);
        let mut reasons = Vec::new();
        eventually("the source is reported to the caller", SOON, async || {
            let status = client.send_template(request(&openid, "hello", "r1")).await.unwrap_err();
            reasons.push(reason(&status));
            status.message().contains(fault)
        })
        .await;
        let last = reasons.pop().unwrap();
        assert_eq!(last, "TOKEN_UNAVAILABLE");
        // Without a token, WeChat refuses the first calls.
        assert!(reasons.iter().all(|reason| reason == "WECHAT_BUSY"), "{reasons:?}");
        assert_eq!((fixture.left(&openid).await, fixture.delivered()), (1, 0));
        process.signal("TERM");
        assert_eq!(process.wait(SOON).await, Some(0));
        let log = std::fs::read_to_string(log).unwrap();
        let told: Vec<_> = log.lines().filter(|line| line.contains("gives no usable token")).collect();
        assert_eq!(told.len(), 1, "{log}");
        let told: serde_json::Value = serde_json::from_str(told[0]).unwrap();
        let text = told.to_string();
        assert!(text.contains(APP) && text.contains("ERROR"), "{text}");
        assert!(text.contains(&key.replace('"', "\\\"")) && text.contains(fault), "{text}");
    }
    fixture.assert_settled(0).await;
}
