//! Logs of the gRPC layer, secrets that must never be logged, and settings that prevent the start.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use server::proto::{EraseUserRequest, ReportEventsRequest};
use testing::tls::{Authority, channel};
use testing::{CallersFile, Process, Redis, bearer, eventually, free_port};

use super::*;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
    command.env_clear().args(["--apps", APP]);
    command
}

/// The exit code and the error output of a program that refuses its settings.
fn refused(flags: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = program().args(flags).envs(environment.iter().copied()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn public_port_needs_a_callers_file_or_insecure() {
    let (code, said) = refused(&["--listen", "0.0.0.0:0"], &[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("--listen is 0.0.0.0:0") && said.contains("--callers-file") && said.contains("--insecure"));
    let file = CallersFile::new(&[ALL]);
    let [flag, path] = file.flags();
    for insecure in ["1", "true", "yes"] {
        let (code, said) = refused(&[&flag, &path], &[("FORMID_INSECURE", insecure)]);
        assert_eq!(code, Some(2));
        assert!(said.contains("contradict"), "{said}");
    }
}

#[test]
fn all_errors_of_edge_settings_are_reported_together() {
    let file = CallersFile::new(&[("a", "apps = []"), ("b", "permissions = ['x']")]);
    let [flag, path] = file.flags();
    let flags = [&flag, &path, "--tls-cert", "/does/not/exist", "--max-streams", "0", "--max-connection-age", "10"];
    let (code, said) = refused(&flags, &[]);
    assert_eq!(code, Some(2));
    for part in ["[callers.a]", "[callers.b]", "--tls-cert needs --tls-key", "--max-streams", "--max-connection-age"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_has_no_tokens_hashes_or_keys_but_who_erased() {
    const TOKEN: &str = "CANARYtoken0123456789";
    let redis = Redis::start();
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("ours"));
    let path = |name: &str| folder.path().join(name);
    let pair = authority.server();
    pair.write(&path("cert"), &path("key"));
    std::fs::write(path("ca"), &authority.pem).unwrap();
    let table = format!("token_sha256 = ['TOKEN({TOKEN})']\napps = ['*']\npermissions = ['read', 'erase', 'collect']");
    let callers = CallersFile::new(&[("privacy-team", &table)]);
    let hash = std::fs::read_to_string(callers.path()).unwrap().split('\'').nth(1).unwrap().to_owned();
    assert_eq!(hash.len(), 64);

    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = program();
    command.args([
        "--listen",
        &address.to_string(),
        "--redis-url",
        &redis.url(),
        "--log",
        "trace",
        "--drain-wait",
        "0s",
        "--erase-on-revoke",
        APP,
    ]);
    command.args(callers.flags()).stderr(Stdio::from(File::create(path("log")).unwrap()));
    for (flag, name) in [("--tls-cert", "cert"), ("--tls-key", "key"), ("--tls-client-ca", "ca")] {
        command.arg(flag).arg(path(name));
    }
    let mut process = Process::start(&mut command);
    let client_pair = authority.client("spiffe://test/CANARYuri");
    let mut client = Client::new(channel(address, &authority.pem, Some(&client_pair)));
    let erase = || EraseUserRequest { app_id: APP.into(), openid: "oCANARYuser".into() };
    eventually("it serves", SOON, async || client.erase_user(bearer(TOKEN, erase())).await.is_ok()).await;
    let body = format!(
        r#"{{"MsgType":"event","Event":"user_authorization_revoke","OpenID":"oCANARYuser","CreateTime":{}}}"#,
        testing::now()
    );
    let event = ReportEventsRequest { app_id: APP.into(), body: body.into(), ..ReportEventsRequest::default() };
    client.report_events(bearer(TOKEN, event)).await.unwrap();
    client.erase_user(bearer("CANARYwrong", erase())).await.unwrap_err();
    client.erase_user(erase()).await.unwrap_err();
    let strange = Authority::new("other").client("spiffe://test/CANARYother");
    Client::new(channel(address, &authority.pem, Some(&strange))).erase_user(erase()).await.unwrap_err();
    // Files that become invalid are logged, without their contents.
    callers.write_text(&format!("[callers.a]\ntoken_sha256 = ['{hash}CANARY', 'CANARY\napps = ['CANARY']"));
    std::fs::write(path("key"), pair.key.replace("PRIVATE KEY", "CANARY")).unwrap();
    let refused = |log: &str, what: &str| log.lines().any(|line| line.contains(what) && line.contains("is invalid"));
    eventually("the invalid files are logged", SOON, async || {
        let log = std::fs::read_to_string(path("log")).unwrap();
        refused(&log, "the callers file") && refused(&log, "the TLS certificate")
    })
    .await;
    process.signal("TERM");
    assert_eq!(process.wait(SOON).await, Some(0));

    let log = std::fs::read_to_string(path("log")).unwrap();
    for did in ["EraseUser", "user_authorization_revoke"] {
        let audit = log.lines().find(|line| line.contains(did)).expect("no audit event");
        assert!(audit.contains("privacy-team") && audit.contains(APP), "{audit}");
    }
    let key_lines = pair.key.lines().chain(client_pair.key.lines()).filter(|line| !line.starts_with("-----"));
    for secret in ["CANARY", &hash, &hash.to_uppercase()].into_iter().chain(key_lines) {
        let found = log.lines().find(|line| line.contains(secret));
        assert!(found.is_none(), "{secret} in {found:?}");
    }
}
