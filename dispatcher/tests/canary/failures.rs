//! Failures around the services: invalid settings, invalid files, and a Redis that cannot be used.

use server::proto::CollectRequest;
use testing::{Process, Redis, TraceCollector, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::faulty_calls::{form, message, redis_says};
use crate::fixture::{APP, Fixture, SOON, collector, dispatcher, port};
use crate::secrets::{CALLBACK_TOKEN, EXPORTER, PASSWORD, SECRET};

/// Both services log this while no usable Redis answers.
const WAITING: &str = "not serving: waiting for Redis";

pub async fn all(fixture: &Fixture) {
    bad_settings(fixture).await;
    bad_apps_files(fixture).await;
    bad_callback_tokens(fixture).await;
    bad_collector_of_traces(fixture).await;
    let (closed, echo) = (format!("127.0.0.1:{}", port()), echo().await);
    let sentinel = format!("main?sentinel_user=watch&sentinel_password={PASSWORD}");
    for redis in [
        format!("redis://:{PASSWORD}@{closed}"),
        format!("redis://{PASSWORD}:{PASSWORD}@no-such-host.invalid"),
        format!("redis://:{PASSWORD}@{echo}"),
        format!("rediss://app:{PASSWORD}@{echo}"),
        format!("redis-cluster://app:{PASSWORD}@{closed},no-such-host.invalid:1"),
        format!("redis-cluster://app:{PASSWORD}@{echo}"),
        format!("redis-sentinel://app:{PASSWORD}@{closed},no-such-host.invalid:1/{sentinel}"),
        format!("redis-sentinel://app:{PASSWORD}@{echo}/{sentinel}"),
    ] {
        with_redis(fixture, &redis, WAITING).await;
    }
    other_passwords(fixture).await;
    // A Redis that quotes the rejected command in its error.
    let poor = Redis::alone_with(&["--save", "", "--rename-command", "EVALSHA", ""]);
    redis_says(&poor, &[&format!("CONFIG SET requirepass {PASSWORD}")]).await;
    with_redis(fixture, &with_password(&poor), "Redis rejected a command").await;
    // A Redis whose user lacks permissions.
    let strict = Redis::alone();
    redis_says(&strict, &[&format!("ACL SETUSER app on >{PASSWORD} ~* &* +@all -evalsha -eval")]).await;
    with_redis(fixture, &as_user(&strict), "no permissions to run").await;
}

/// The URL has another user or password than the Redis.
async fn other_passwords(fixture: &Fixture) {
    let alone = Redis::alone();
    redis_says(&alone, &["CONFIG SET requirepass another"]).await;
    with_redis(fixture, &with_password(&alone), "Password authentication failed").await;
    with_redis(fixture, &as_user(&alone), "Password authentication failed").await;
    let cluster = Redis::cluster();
    cluster.everywhere("CONFIG SET requirepass another");
    with_redis(fixture, &cluster.url().replace("://", &format!("://app:{PASSWORD}@")), WAITING).await;
    let sentinel = Redis::sentinel();
    sentinel.everywhere("CONFIG SET requirepass another");
    let asked = format!("?sentinel_user=watch&sentinel_password={PASSWORD}");
    with_redis(fixture, &(sentinel.url().replace("://", &format!("://app:{PASSWORD}@")) + &asked), WAITING).await;
}

/// The URL of a Redis with a user and the password.
fn as_user(redis: &Redis) -> String {
    redis.url().replace("redis://", &format!("redis://app:{PASSWORD}@"))
}

/// The address for spans is a server that echoes the request headers in its answer.
async fn bad_collector_of_traces(fixture: &Fixture) {
    let (redis, quoting, port) = (Redis::alone(), TraceCollector::quoting().await, port());
    let (url, listen, traces) = (redis.url(), format!("127.0.0.1:{port}"), quoting.url());
    let flags = ["--apps", APP, "--redis-url", &url, "--listen", &listen, "--otlp-endpoint", &traces];
    let mut process = fixture.collector(&flags);
    let mut collector = collector(port).await;
    eventually("traces are lost", SOON, async || {
        let credentials = vec![form(1, 1)];
        let _ = collector.collect(CollectRequest { app_id: APP.into(), credentials }).await;
        fixture.printed().contains("traces are lost")
    })
    .await;
    process.signal("TERM");
    assert_eq!(process.wait(SOON).await, Some(0));
    assert!(quoting.headers("authorization").contains(&EXPORTER.to_owned()), "no header to quote");
}

/// The URL of a Redis with the password.
pub fn with_password(redis: &Redis) -> String {
    redis.url().replace("redis://", &format!("redis://:{PASSWORD}@"))
}

/// Starts both services on a Redis that cannot be used, and calls them until both have logged `phrase`.
async fn with_redis(fixture: &Fixture, url: &str, phrase: &str) {
    let before = fixture.printed().matches(phrase).count();
    let (front, back) = (port(), port());
    let (apps, [listen_front, listen_back]) =
        (fixture.apps_file(), [front, back].map(|port| format!("127.0.0.1:{port}")));
    let processes = [
        fixture.collector(&["--apps", APP, "--redis-url", url, "--listen", &listen_front]),
        fixture.dispatcher(&["--apps-file", &apps, "--redis-url", url, "--listen", &listen_back]),
    ];
    let (mut collector, mut dispatcher) = (collector(front).await, dispatcher(back).await);
    eventually(&format!("{phrase} on {url}"), SOON, async || {
        let credentials = vec![form(1, 1)];
        let collected = collector.collect(CollectRequest { app_id: APP.into(), credentials }).await;
        let _ = fixture.note("a Collect without Redis", collected);
        let sent = dispatcher.send_template(message(1)).await;
        let _ = fixture.note("a SendTemplate without Redis", sent);
        fixture.printed().matches(phrase).count() > before + 1
    })
    .await;
    fixture.read_pages().await;
    for mut process in processes {
        process.signal("TERM");
        assert_eq!(process.wait(SOON).await, Some(0));
    }
}

/// A TCP server that is not a Redis: it echoes its input.
async fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                    let _ = stream.write_all(&bytes[..count]).await;
                }
            });
        }
    });
    address
}

pub async fn refused(mut process: Process) {
    assert_eq!(process.wait(SOON).await, Some(2));
}

async fn bad_settings(fixture: &Fixture) {
    let apps = fixture.apps_file();
    for url in [
        "redis://:P@host:no-port",
        "http://:P@host",
        "redis://:P@[::1",
        "P",
        "rediss+x://P@h",
        "redis-cluster://app:P@host",
        "redis-cluster://app:P@host:1/P",
        "redis-sentinel://:P@host:1",
        "redis-sentinel://:P@host:1/main/P",
        "redis-sentinel://host:1/main?password=P",
        "redis-sentinel://host:1/main?sentinel_password=P&P",
    ] {
        let url = url.replace('P', PASSWORD);
        refused(fixture.dispatcher(&["--apps-file", &apps, "--redis-url", &url])).await;
        refused(fixture.collector(&["--apps", APP, "--redis-url", &url])).await;
    }
    let url = format!("http://user:{PASSWORD}@otel:4317");
    refused(fixture.collector(&["--apps", APP, "--otlp-endpoint", &url])).await;
}

async fn bad_apps_files(fixture: &Fixture) {
    let secret_file = fixture.file("secret", &format!("{SECRET} {SECRET}"));
    for (number, text) in [
        "[apps.wx1]\nsecret = \"S",
        "[apps.wx1]\nsecret = S",
        "[apps.wx1]\nsecret = 'S'\nsecret = 'S'",
        "[apps.wx1]\nsecret = ['S']",
        "[apps.wx1]\nsecret = 'S S'",
        "[apps.wx1]\nsecret 'S'",
        "[apps.wx1]\nS = 'S'",
        "[apps.wx1]\nsecret.S = 'S'",
        "[apps.wx1\nsecret = 'S'",
        "secret = 'S'",
        "S = 'S'",
        "[S]\nsecret = 'S'",
        "apps = 'S'",
        "[apps]\nwx1 = 'S'",
        "{\"secret\": \"S\"}",
        "[apps.wx1]\nsecret = 'S'\nsecret_file = 'S'",
        "[apps.wx1]\nsecret = 'S'\nbase_url = 'http://user:S@host'",
        "[apps.wx1]\nsecret = 'S'\nbase_url = 'http://host?secret=S'",
        "[apps.wx1]\nsecret = 'S'\nbase_url = 'S://host'",
        "[apps.wx1]\nsecret = 'S'\nbase_url = 'S'",
        "[apps.wx1]\nsecret = 'S'\nbase_url = 'http://S:no-port'",
        "[apps.wx1]\nsecret = 'S'\ntoken = 'S'\ndelivery = 'S'\nbroadcast_credentials = ['S']\ndaily_quota = 'S'",
        "[apps.wx1]\nsecret_file = 'F'",
        "[apps.wx1]\ntoken_url = 'S'\ntoken_method = 'S'\ntoken_path = '.S'\ntoken_report = ['S']",
        "[apps.wx1]\ntoken_url = 'http://S:S@host'\ntoken_headers_file = 'F'",
        "[apps.wx1]\ntoken_url = 'http://host#S'\nsecret = 'S'\ntoken_file = 'S'",
        "[apps.wx1]\nsecret = 'S'\nproxy = 'S'",
        "[apps.wx1]\nsecret = 'S'\nproxy = 'https://user:S@host'\nproxy_file = 'F'",
        "[apps.wx1]\nsecret = 'S'\nproxy = 'http://user:S@host/S'",
        "[apps.wx1]\nsecret = 'S'\nproxy_file = 'F'",
    ]
    .into_iter()
    .enumerate()
    {
        let text = text.replace('S', SECRET).replace('F', &secret_file);
        let apps = fixture.file(&format!("apps-{number}.toml"), &text);
        refused(fixture.dispatcher(&["--apps-file", &apps])).await;
    }
}

async fn bad_callback_tokens(fixture: &Fixture) {
    for (number, text) in [
        "[callback_tokens]\nwx0000000000000000 = \"S",
        "[callback_tokens]\nwx0000000000000000 = S",
        "[callback_tokens]\nwx0000000000000000 = 'S S'",
        "[callback_tokens]\nwx0000000000000000 = ['S']",
        "[callback_tokens]\nwx0000000000000000 = 'S'\nwx0000000000000000 = 'S'",
        "[callback_tokens]\nS = 'wx0000000000000000'",
        "[callback_tokens]\nwx0000000000000001 = 'S'",
        "[callback_tokens]\n'S' = 'S'",
        "wx0000000000000000 = 'S'",
        "S",
        "[S]",
    ]
    .into_iter()
    .enumerate()
    {
        let file = fixture.file(&format!("callbacks-{number}.toml"), &text.replace('S', CALLBACK_TOKEN));
        refused(fixture.collector(&["--apps", APP, "--callback-tokens", &file])).await;
    }
}
