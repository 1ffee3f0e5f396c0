//! The commands of the README, run in order.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]

use sandbox::{Sandbox, Settings};
use testing::readme::Steps;
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_readme_do_what_is_shown() {
    let sandbox = Sandbox::new(Settings::default());
    sandbox.add_app("wx0123456789abcdef", "0123456789abcdef0123456789abcdef").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(sandbox::serve(listener, sandbox.clone(), std::future::pending()));
    let folder = tempfile::tempdir().unwrap();
    let ran =
        Steps::of("deploy/sandbox/README.md", "default").run(folder.path(), &[("127.0.0.1:8700", &address)]).await;
    assert!(ran.len() >= 12, "{} blocks", ran.len());
    for ran in ran {
        ran.assert_as_shown();
    }
}
