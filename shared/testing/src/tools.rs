//! Runs the command-line clients that people use for manual calls. They get no proto file, so they depend on
//! reflection.

use std::process::{Command, Output};

/// Runs grpcurl, which uses reflection v1alpha, with an address and its other arguments.
pub async fn grpcurl(arguments: &[&str]) -> Output {
    run("FORMID_GRPCURL", "grpcurl", &["-plaintext", "-max-time", "300"], arguments).await
}

/// Runs grpcurl like [`grpcurl`], over TLS.
pub async fn grpcurl_tls(arguments: &[&str]) -> Output {
    run("FORMID_GRPCURL", "grpcurl", &["-max-time", "300"], arguments).await
}

/// Runs `buf curl`, which uses reflection v1.
pub async fn buf_curl(arguments: &[&str]) -> Output {
    run("FORMID_BUF", "buf", &["curl", "--protocol", "grpc", "--http2-prior-knowledge"], arguments).await
}

/// Runs the program that an environment variable names, which deploy/test.sh sets, otherwise the one in the search
/// path.
async fn run(variable: &str, name: &str, first: &[&str], arguments: &[&str]) -> Output {
    let program = std::env::var(variable).unwrap_or_else(|_| name.into());
    let mut command = Command::new(&program);
    command.args(first).args(arguments);
    // The service under test may run on the thread of the test, which must not block.
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    output.unwrap_or_else(|error| panic!("cannot run {program} ({error}); ./deploy/test.sh installs it"))
}

/// The standard output of a client. Panics if the client failed.
pub fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}", complained(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The standard error of a client.
pub fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
