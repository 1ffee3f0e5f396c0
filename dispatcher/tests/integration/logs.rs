//! Log lines of the dispatcher as a process: during outages of Redis and WeChat, and when it refuses to start.

use std::path::PathBuf;
use std::time::Duration;

use sandbox::{Endpoint, FaultKind, Rule};
use serde_json::{Value, json};
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{BroadcastRequest, BroadcastState};
use testing::{CallersFile, Process, Redis, Scrape, eventually, free_port};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::broadcast::{look, tally, to_all};
use crate::fixture::{APP, Fixture, any_port, connect, message, reason, request, serving};

/// An outage takes longer on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// The maximum number of log lines for one outage, including start and stop: two for each kind of work, and some more.
const FEW: usize = 30;

/// Timeout of a call to WeChat. It is long, since many calls are in flight at once.
const TIMEOUT: &str = "timeout = \"25s\"";

/// A dispatcher that logs JSON lines to a file.
struct Logging {
    process: Process,
    client: DispatcherServiceClient<Channel>,
    metrics: std::net::SocketAddr,
    path: PathBuf,
}

impl Logging {
    async fn start(fixture: &Fixture) -> Self {
        Self::start_where(fixture, true, &[]).await
    }

    /// Starts a dispatcher with further flags. Waits until it serves if `redis` is true.
    async fn start_where(fixture: &Fixture, redis: bool, extra: &[&str]) -> Self {
        let (port, metrics) = (any_port(), std::net::SocketAddr::from(([127, 0, 0, 1], free_port())));
        let path = PathBuf::from(fixture.file("log", ""));
        let metrics_listen = metrics.to_string();
        let mut flags = vec!["--log", "info", "--log-format", "json", "--metrics-listen", &metrics_listen];
        flags.extend(extra);
        let mut command = fixture.command(port, &flags);
        let apps = command.get_args().skip_while(|flag| *flag != "--apps-file").nth(1).unwrap();
        let text = std::fs::read_to_string(apps).unwrap().replace("timeout = \"20s\"", TIMEOUT);
        assert!(text.contains(TIMEOUT), "{text}");
        std::fs::write(apps, text).unwrap();
        let process = Process::start_printing(&mut command, &path);
        let channel = connect(port).await;
        serving(channel.clone(), redis).await;
        Self { process, client: DispatcherServiceClient::new(channel), metrics, path }
    }

    fn lines(&self) -> Vec<Value> {
        lines(&std::fs::read_to_string(&self.path).unwrap())
    }

    /// The lines with this message.
    fn said(&self, message: &str) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["fields"]["message"] == message).collect()
    }

    async fn until_said(&self, message: &str) {
        eventually(message, SOON, async || !self.said(message).is_empty()).await;
    }

    async fn retries(&self, operation: &str) -> u64 {
        Scrape::of(self.metrics).await.sum("formid_retries_total", &[("operation", operation)])
    }
}

/// The lines of a log. Each must be a JSON object.
fn lines(log: &str) -> Vec<Value> {
    let line = |line: &str| match serde_json::from_str(line) {
        Ok(object @ Value::Object(_)) => object,
        _ => panic!("no JSON object: {line}"),
    };
    log.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_outage_logs_few_lines_regardless_of_the_message_count() {
    tokio::join!(outage_under_sends(5), outage_under_sends(100));
}

/// Kills Redis while `users` messages are in flight. As many sends are refused before Redis is back.
async fn outage_under_sends(users: usize) {
    let mut fixture = Fixture::on(Redis::durable_alone()).await.patiently();
    let dispatcher = Logging::start(&fixture).await;
    fixture.submit_crowd(0..users).await;
    fixture.change(json!({"latency_ms": 6000}));
    let mut sends = JoinSet::new();
    for user in 0..users {
        let mut client = dispatcher.client.clone();
        let send = request(&format!("oUser{user}"), "x", &format!("r{user}"));
        sends.spawn(async move { client.send_template(send).await.map(drop) });
    }
    eventually("all messages are leased", SOON, async || {
        fixture.store.ledger(&fixture.app()).await.unwrap().leased == users as u64
    })
    .await;
    fixture.redis.kill();
    eventually("settling each message has failed twice", SOON, async || {
        dispatcher.retries("settle").await >= 2 * users as u64
    })
    .await;
    for _ in 0..users {
        let refused = dispatcher.client.clone().send_template(message("oUser0", "y")).await.unwrap_err();
        assert_eq!(reason(&refused), "REDIS_UNAVAILABLE");
    }
    fixture.redis.resume();
    while let Some(sent) = sends.join_next().await {
        sent.unwrap().unwrap();
    }
    dispatcher.until_said("messages are settled again").await;
    dispatcher.until_said("commands to Redis succeed again").await;

    let all = dispatcher.lines();
    assert!(all.len() <= FEW, "{} lines for {users} messages: {all:#?}", all.len());
    let begins = dispatcher.said("messages cannot be settled yet");
    assert_eq!((begins.len(), &begins[0]["level"]), (1, &json!("WARN")), "{begins:?}");
    assert!(begins[0]["fields"]["error"].as_str().unwrap().contains("Redis"), "{begins:?}");
    let ends = dispatcher.said("messages are settled again");
    assert_eq!((ends.len(), &ends[0]["fields"]["concerned"]), (1, &json!(users)), "{ends:?}");
    assert!(ends[0]["fields"]["failures"].as_u64() >= Some(2 * users as u64), "{ends:?}");
    assert!(ends[0]["fields"]["seconds"].as_f64() > Some(0.0), "{ends:?}");
    assert_eq!(dispatcher.said("commands to Redis fail").len(), 1);
    assert_eq!(dispatcher.said("not serving: waiting for Redis").len(), 1);
    assert_eq!(fixture.delivered(), users as u64);
    fixture.store = fixture.redis.store().await;
    fixture.assert_settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_before_redis_is_not_logged_as_an_outage_of_all_work() {
    let mut fixture = Fixture::on(Redis::durable_alone()).await.patiently();
    fixture.redis.kill();
    let dispatcher = Logging::start_where(&fixture, false, &[]).await;
    eventually("the dispatcher has retried Redis", SOON, async || dispatcher.retries("readiness").await >= 3).await;
    fixture.redis.resume();
    dispatcher.until_said("serving: Redis is ready").await;
    let of = |line: Value| line["fields"]["operation"].as_str().unwrap().to_owned();
    let mut warned: Vec<_> = dispatcher.lines().into_iter().filter(|line| line["level"] == "WARN").map(of).collect();
    warned.sort();
    assert_eq!(warned, ["readiness", "redis"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_waiting_for_redis_logs_few_lines() {
    let mut fixture = Fixture::on(Redis::durable_alone()).await.patiently();
    let mut dispatcher = Logging::start(&fixture).await;
    fixture.submit_crowd(0..300).await;
    fixture.change(json!({"latency_ms": 100}));
    let order = BroadcastRequest { messages_per_second: 200, ..to_all() };
    let id = dispatcher.client.broadcast(order).await.unwrap().into_inner().broadcast.unwrap().broadcast_id;
    eventually("the broadcast is in progress", SOON, async || fixture.delivered() > 50).await;
    fixture.redis.kill();
    // The broadcast's buckets, its state and the search for other broadcasts are all retried.
    eventually("the broadcast work is retried", SOON, async || dispatcher.retries("broadcasts").await >= 30).await;
    fixture.redis.resume();
    eventually("the broadcast is done", SOON, async || {
        let info = look(&mut dispatcher.client.clone(), &id).await;
        info.is_ok_and(|info| info.state() == BroadcastState::Done && tally(&info).delivered == 300)
    })
    .await;
    dispatcher.until_said("broadcasts continue").await;
    dispatcher.process.signal("TERM");
    assert_eq!(dispatcher.process.wait(SOON).await, Some(0));
    let all = dispatcher.lines();
    assert!(all.len() <= FEW, "{} lines: {all:#?}", all.len());
    assert_eq!(dispatcher.said("broadcasts wait for Redis").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wechat_outage_logs_one_line_at_each_end() {
    let fixture = Fixture::patient().await;
    let dispatcher = Logging::start(&fixture).await;
    fixture.submit("oUser", 60).await;
    fixture.sandbox.add_faults(vec![Rule::new(FaultKind::Http500Before)]).unwrap();
    for n in 0..40 {
        dispatcher.client.clone().send_template(request("oUser", "x", &n.to_string())).await.unwrap_err();
    }
    assert!(dispatcher.retries("wechat").await >= 40 * 5);
    fixture.sandbox.clear_faults();
    dispatcher.client.clone().send_template(message("oUser", "x")).await.unwrap();
    dispatcher.until_said("WeChat answers again").await;
    let begins = dispatcher.said("WeChat cannot be reached or does not answer");
    assert_eq!((begins.len(), &begins[0]["fields"]["app"]), (1, &json!(APP)), "{begins:?}");
    assert_eq!(begins[0]["fields"]["error"], "WeChat answered with the HTTP status 500");
    let all = dispatcher.lines();
    assert!(all.len() <= FEW, "{} lines: {all:#?}", all.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn app_stop_that_many_messages_meet_is_logged_once() {
    let fixture = Fixture::patient().await;
    let dispatcher = Logging::start(&fixture).await;
    fixture.submit_crowd(0..50).await;
    fixture.change(json!({"latency_ms": 1000}));
    fixture.answer(48001, 50);
    let mut sends = JoinSet::new();
    for user in 0..50 {
        let mut client = dispatcher.client.clone();
        sends.spawn(async move { client.send_template(message(&format!("oUser{user}"), "x")).await.unwrap_err() });
    }
    while let Some(refused) = sends.join_next().await {
        assert_eq!(reason(&refused.unwrap()), "APP_STOPPED");
    }
    assert!(fixture.calls() > 1, "only one message was in flight");
    assert_eq!(dispatcher.said("WeChat stopped the app").len(), 1);
}

#[tokio::test]
async fn refused_address_is_logged_with_what_to_do() {
    let fixture = Fixture::patient().await;
    let answer = |errcode, endpoint| Rule {
        errcode: Some(errcode),
        endpoint,
        detail: Some("203.0.113.7".into()),
        times: Some(1),
        ..Rule::new(FaultKind::Answer)
    };
    for (errcode, endpoint, line, advice) in [
        (61004, Endpoint::Token, "WeChat refuses an access token: nothing is sent for this app", "todo"),
        (40164, Endpoint::Send, "WeChat stopped the app", "why"),
    ] {
        // A token is fetched at the start.
        fixture.sandbox.add_faults(vec![answer(errcode, endpoint)]).unwrap();
        let dispatcher = Logging::start(&fixture).await;
        fixture.submit("oUser", 1).await;
        dispatcher.client.clone().send_template(message("oUser", "x")).await.unwrap_err();
        dispatcher.until_said(line).await;
        let said = dispatcher.said(line);
        assert_eq!(said.len(), 1, "{said:?}");
        let fields = &said[0]["fields"];
        assert_eq!(
            (fields["errcode"].as_i64(), fields["address"].as_str()),
            (Some(errcode.into()), Some("203.0.113.7"))
        );
        assert!(fields[advice].as_str().unwrap().contains("IP list"), "{fields}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_file_is_logged_once_at_each_end() {
    let fixture = Fixture::patient().await;
    let callers = CallersFile::new(&[("one", "token_sha256 = ['TOKEN(one)']\napps = ['*']\npermissions = ['send']")]);
    let flags = callers.flags();
    let dispatcher = Logging::start_where(&fixture, true, &flags.each_ref().map(String::as_str)).await;
    let away = callers.path().with_extension("away");
    std::fs::rename(callers.path(), &away).unwrap();
    eventually("reading the file has been retried", SOON, async || dispatcher.retries("reload").await >= 3).await;
    std::fs::rename(&away, callers.path()).unwrap();
    dispatcher.until_said("the callers file can be read again").await;
    let begins = dispatcher.said("the callers file cannot be read; the previous content stays in use");
    assert_eq!(begins.len(), 1, "{begins:?}");
    assert_eq!(dispatcher.said("the callers file can be read again").len(), 1);
}

/// The command that starts a dispatcher with the fixture's flags, some of which are replaced by `flags`.
fn command(fixture: &Fixture, flags: &[&str]) -> std::process::Command {
    let mut all = fixture.flags(&[]);
    for pair in flags.chunks(2) {
        match all.iter().position(|flag| flag == pair[0]) {
            Some(place) => all[place + 1] = pair[1].into(),
            None => all.extend(pair.iter().map(ToString::to_string)),
        }
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dispatcher"));
    command.args(all);
    command
}

/// The exit code and the log of a dispatcher that refuses to start.
fn refused(command: &mut std::process::Command) -> (Option<i32>, Vec<Value>) {
    let output = command.env("NO_COLOR", "").env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), lines(&String::from_utf8(output.stderr).unwrap()))
}

#[tokio::test]
async fn refusal_to_start_is_logged_in_json_if_the_log_is() {
    let fixture = Fixture::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (taken, bad) =
        (taken.local_addr().unwrap().to_string(), fixture.file("bad.toml", "[callers.x]\napps = 3\n[ap"));
    for (flags, code, expected) in [
        (vec!["--no-such-flag"], 2, vec!["--no-such-flag"]),
        (
            vec!["--attempts", "0", "--lease", "x", "--max-streams", "0"],
            2,
            vec!["--attempts", "--lease", "--max-streams"],
        ),
        (vec!["--apps-file", &bad], 2, vec!["the apps file"]),
        (vec!["--callers-file", &bad], 2, vec!["the callers file"]),
        (vec!["--listen", &taken], 1, vec!["--listen"]),
        (vec!["--metrics-listen", &taken], 1, vec!["--metrics-listen"]),
        (vec!["--probe-listen", &taken], 1, vec!["--probe-listen"]),
        // The Redis of the fixture was prepared with another number of buckets.
        (vec!["--buckets", "7"], 1, vec!["buckets per app"]),
    ] {
        for by_flag in [true, false] {
            let mut command = command(&fixture, &flags);
            if by_flag {
                command.arg("--log-format=json")
            } else {
                command.env("FORMID_LOG_FORMAT", "json")
            };
            let (ended, said) = refused(&mut command);
            assert_eq!(ended, Some(code), "{flags:?} {said:?}");
            let errors: Vec<_> = said.iter().filter(|line| line["level"] == "ERROR").collect();
            assert_eq!(errors.len(), expected.len(), "{flags:?} {said:#?}");
            for part in expected.iter() {
                assert!(errors.iter().any(|line| line["fields"].to_string().contains(part)), "{part} in {errors:?}");
            }
        }
    }
    // A required flag is missing.
    let mut bare = std::process::Command::new(env!("CARGO_BIN_EXE_dispatcher"));
    let (ended, said) = refused(bare.env_clear().env("FORMID_LOG_FORMAT", "json"));
    assert!(
        ended == Some(2) && said.len() == 1 && said[0]["fields"]["problem"].to_string().contains("--apps-file"),
        "{said:?}"
    );
    // The flag takes precedence over the environment. Plain text has no colors, since stderr is not a terminal.
    let mut plain = command(&fixture, &["--attempts", "0", "--log-format", "human"]);
    let plain = plain.env("FORMID_LOG_FORMAT", "json").output().unwrap();
    let text = String::from_utf8(plain.stderr).unwrap();
    assert!(text.starts_with("the settings are not usable:\n  --attempts") && !text.contains('\u{1b}'), "{text}");
}
