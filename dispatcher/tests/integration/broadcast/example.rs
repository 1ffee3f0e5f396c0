//! The example client `broadcast`, run as a process.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::{tally, to_all};
use crate::fixture::{APP, Fixture, Running, any_port, connect, serving};
use sandbox::{FaultKind, Match, Reading, Rule};
use server::proto::BroadcastState;
use testing::tls::Authority;
use testing::{CallersFile, eventually};

/// The program of the client. It is built with the tests, in a folder beside theirs, unless only a single target is
/// built.
pub fn program() -> PathBuf {
    let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/broadcast");
    assert!(program.is_file(), "{} is missing: cargo build -p dispatcher --example broadcast", program.display());
    program
}

/// The client for a dispatcher.
fn client(address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(["--address", address, "--app", APP]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the client until it exits: returns its exit code, stdout and stderr.
async fn run(address: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = client(address, arguments);
    told(tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap())
}

fn told(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A folder for the client's files.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Fixture {
    fn text_of(&self, openid: &str) -> String {
        let reading = Reading { openid: Some(openid.into()), ..Reading::default() };
        self.sandbox.deliveries(APP, &reading).unwrap()[0].data["keyword1"].value.clone()
    }
}

impl Running {
    fn at(&self) -> String {
        self.address.to_string()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_of_users_with_their_own_data_is_sent_and_counted() {
    let (fixture, files) = (Fixture::patient().await, Files::new());
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..40).await;
    let mut list = String::from("oUser0 {\"keyword1\": \"you\"}\noUser1\t{\"keyword1\": {\"value\": \"and you\"}}\n\n");
    (2..40).for_each(|user| writeln!(list, "oUser{user}").unwrap());
    list.push_str("oNobody\noUser2\n");
    let (list, exclude) = (files.write("list", &list), files.write("exclude", "oUser39\n"));
    let arguments = ["--template", "t1", "--data", "keyword1=hello", "--list", &list, "--exclude", &exclude];

    let preview = run(&dispatcher.at(), &[&arguments[..], &["--validate-only", "--per-second", "10"]].concat()).await;
    assert_eq!(preview.0, Some(0), "{preview:?}");
    assert_eq!(
        preview.1,
        "40 users, of whom 39 would get the message; 39 credentials would be spent\n        1 without a credential\n        \
         1 excluded\nat the configured rate it would take 3.900s\n"
    );
    assert_eq!(fixture.delivered(), 0);

    let (code, printed, beside) = run(&dispatcher.at(), &[&arguments[..], &["--request-id", "r1"]].concat()).await;
    assert_eq!((code, &*printed), (Some(0), "done: 39 of 40 delivered\n        1 without a credential\n"), "{beside}");
    for part in ["1 lines repeat a user and are ignored", "(request id r1)"] {
        assert!(beside.contains(part), "{part} in {beside}");
    }
    assert_eq!([0, 1, 2].map(|user| fixture.text_of(&format!("oUser{user}"))), ["you", "and you", "hello"]);

    // A second run with the same request id finds the same broadcast.
    let again = run(&dispatcher.at(), &[&arguments[..], &["--request-id", "r1"]].concat()).await;
    assert_eq!((again.0, again.1), (Some(0), printed));
    assert_eq!((fixture.delivered(), fixture.left("oUser39").await), (39, 1));
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_too_long_for_one_call_is_sent_in_several() {
    let (fixture, files) = (Fixture::patient().await, Files::new());
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(9_990..10_020).await;
    let list: String = (0..10_020).rev().map(|user| format!("oUser{user}\n")).collect();
    let exclude: String = (0..10_010).map(|user| format!("oUser{user}\n")).collect();
    let (list, exclude) = (files.write("list", &list), files.write("exclude", &exclude));
    let arguments = ["--template", "t1", "--list", &list, "--exclude", &exclude];
    let (code, printed, beside) = run(&dispatcher.at(), &arguments).await;
    assert_eq!((code, &*printed), (Some(0), "done: 10 of 10 delivered\n"), "{beside}");
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn existing_broadcast_is_watched_paused_resumed_and_cancelled() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..20).await;
    let mut canary = to_all();
    canary.limit = 5;
    let id = dispatcher.broadcast(canary).await.unwrap().broadcast_id;
    dispatcher.until(&id, BroadcastState::Paused).await;
    let watching = client(&dispatcher.at(), &["--watch", &id]).spawn().unwrap();
    // Watch for a while, then interrupt the client with Ctrl-C.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let signal = format!("kill -INT {}", watching.id());
    assert!(Command::new("sh").args(["-c", &signal]).status().unwrap().success());
    let (code, printed, beside) = told(watching.wait_with_output().unwrap());
    assert_eq!((code, &*printed), (Some(1), ""), "{beside}");
    assert!(
        beside.contains("paused: its limit is reached; check the result, then --resume; 5 of 20 delivered"),
        "{beside}"
    );
    assert!(
        beside
            .contains(&format!("to watch the broadcast again: --address {} --app {APP} --watch {id}", dispatcher.at()))
    );

    let (code, printed, beside) = run(&dispatcher.at(), &["--resume", &id]).await;
    assert_eq!((code, &*printed), (Some(0), "done: 20 of 20 delivered\n"), "{beside}");

    fixture.submit_crowd(20..40).await;
    let mut slow = to_all();
    slow.messages_per_second = 1;
    let id = dispatcher.broadcast(slow).await.unwrap().broadcast_id;
    eventually("the audience has been counted", Duration::from_secs(20), async || {
        let info = dispatcher.look(&id).await;
        tally(&info).delivered > 0 && !tally(&info).estimated
    })
    .await;
    assert_eq!(run(&dispatcher.at(), &["--pause", &id]).await.1, "paused by a caller\n");
    let (code, printed, beside) = run(&dispatcher.at(), &["--cancel", &id]).await;
    assert!(code == Some(0) && printed.contains("not processed"), "{printed}{beside}");
    let (code, printed, _) = run(&dispatcher.at(), &["--watch", &id]).await;
    assert!(code == Some(1) && printed.starts_with("cancelled: "), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_reconnects_when_its_dispatcher_stops() {
    let fixture = Fixture::patient().await;
    fixture.submit_crowd(0..150).await;
    let port = any_port();
    let mut first = fixture.process(port);
    serving(connect(port).await, true).await;
    let address = format!("127.0.0.1:{port}");
    let arguments = ["--template", "t1", "--per-second", "50"];
    let watching = client(&address, &arguments).spawn().unwrap();
    eventually("the broadcast has begun", Duration::from_secs(20), async || fixture.delivered() > 10).await;
    first.signal("TERM");
    assert_eq!(first.wait(Duration::from_secs(20)).await, Some(0));
    let _second = fixture.process(port);
    let (code, printed, beside) =
        told(tokio::task::spawn_blocking(move || watching.wait_with_output()).await.unwrap().unwrap());
    assert_eq!((code, &*printed), (Some(0), "done: 150 of 150 delivered\n"), "{beside}");
    assert!(
        beside.contains("lost the connection to the dispatcher") && beside.contains("reconnected to the dispatcher"),
        "{beside}"
    );
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_shown_with_their_reason() {
    let (fixture, files) = (Fixture::patient().await, Files::new());
    let dispatcher = fixture.dispatcher().await;
    fixture.submit_crowd(0..10).await;
    let (code, printed, beside) = run(&dispatcher.at(), &["--template", "", "--page", &"p".repeat(2000)]).await;
    assert_eq!((code, &*printed), (Some(1), ""), "{beside}");
    for part in ["reason: INVALID_FIELDS", "template_id must not be empty", "page must not be longer"] {
        assert!(beside.contains(part), "{part} in {beside}");
    }
    let missing = run(&dispatcher.at(), &["--watch", "0192a3b4c5d-01234567"]).await;
    assert!(missing.0 == Some(1) && missing.2.contains("reason: BROADCAST_NOT_FOUND"), "{missing:?}");
    let list = files.write("list", "oUser1\noUser2 {\"keyword1\": 7}\n");
    let bad = run(&dispatcher.at(), &["--template", "t1", "--list", &list]).await;
    assert!(bad.0 == Some(1) && bad.2.contains("line 2: each value must be a text"), "{bad:?}");
    let list = files.write("list", "oUser1\nöUser\n");
    let refused = run(&dispatcher.at(), &["--template", "t1", "--list", &list, "--validate-only"]).await;
    assert!(refused.0 == Some(0) && refused.1.contains("1 refused"), "{refused:?}");
    assert!(refused.2.contains("\n  user 2 of the list: openid must consist of visible ASCII"), "{refused:?}");
    assert_eq!(run(&dispatcher.at(), &["--page", "index"]).await.0, Some(2));

    // A failure for one user is shown next to the deliveries.
    let matching = Match { openid: Some("oUser3".into()), ..Match::default() };
    let rule = Rule { matching, errcode: Some(40003), ..Rule::new(FaultKind::Answer) };
    fixture.sandbox.add_faults(vec![rule]).unwrap();
    let (code, printed, beside) = run(&dispatcher.at(), &["--template", "t1"]).await;
    assert_eq!(
        (code, &*printed),
        (Some(0), "done: 9 of 10 delivered\n        1 failed (USER_REFUSED 40003)\n"),
        "{beside}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscription_messages_reach_the_users_with_a_grant() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept_crowd(0..5, "order-ready", 1).await;
    fixture.submit_crowd(5..9).await;
    let arguments =
        ["--template", "order-ready", "--delivery", "subscription", "--data", "thing1=hello", "--lang", "en_US"];
    let (code, printed, told) = run(&dispatcher.at(), &arguments).await;
    assert_eq!(code, Some(0), "{printed} {told}");
    let received = fixture.sandbox.deliveries(APP, &Reading::default()).unwrap();
    assert!(received.iter().all(|delivery| delivery.lang.as_deref() == Some("en_US")));
    assert_eq!(received.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_dispatcher_is_called_with_a_token_and_never_in_plaintext() {
    let (fixture, files, authority) = (Fixture::patient().await, Files::new(), Authority::new("ours"));
    fixture.submit_crowd(0..5).await;
    let everything =
        "token_sha256 = ['TOKEN(all)']\napps = ['*']\npermissions = ['read', 'broadcast', 'broadcast_all']";
    let callers = CallersFile::new(&[("all", everything)]);
    let server = authority.server();
    let (cert, key) = (files.write("cert", &server.cert), files.write("key", &server.key));
    let given = callers.flags();
    let flags = ["--tls-cert", &cert, "--tls-key", &key, &given[0], &given[1]];
    let dispatcher = Running::start(fixture.settings(&flags)).await;
    let (ca, token) = (files.write("ca", &authority.pem), files.write("token", "all\n"));
    let start = ["--template", "t1", "--data", "keyword1=hello"];
    let to = |flags: &[&str]| client(&dispatcher.at(), &[flags, &start[..]].concat());
    let of = async |mut command: Command| {
        told(tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap())
    };

    let done = of(to(&["--ca", &ca, "--token-file", &token])).await;
    assert_eq!((done.0, done.1.as_str()), (Some(0), "done: 5 of 5 delivered\n"), "{done:?}");
    fixture.submit_crowd(0..3).await;
    let mut by_environment = to(&["--ca", &ca]);
    by_environment.env("FORMID_TOKEN", "all");
    let done = of(by_environment).await;
    assert_eq!((done.0, done.1.as_str()), (Some(0), "done: 3 of 3 delivered\n"), "{done:?}");

    let mut wrong = to(&["--ca", &ca]);
    wrong.env("FORMID_TOKEN", "CANARY");
    let clear = to(&["--token-file", &token]);
    let nothing = to(&["--ca", &ca]);
    for (command, sentence) in [(wrong, "UNAUTHENTICATED"), (clear, "over TLS only"), (nothing, "UNAUTHENTICATED")] {
        let (code, printed, told) = of(command).await;
        assert_eq!((code, printed.as_str()), (Some(1), ""), "{told}");
        assert!(told.contains(sentence) && !told.contains("CANARY"), "{told}");
    }
}
