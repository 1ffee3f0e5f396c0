//! The command-line clients people use for manual calls: the real ones, with no proto file.

use std::process::{Command, Output};

/// Runs grpcurl, which asks for reflection v1alpha, with an address and what else it takes.
pub async fn grpcurl(arguments: &[&str]) -> Output {
    run("FORMID_GRPCURL", "grpcurl", &["-plaintext", "-max-time", "300"], arguments).await
}

/// Runs grpcurl like [`grpcurl`], over TLS.
pub async fn grpcurl_tls(arguments: &[&str]) -> Output {
    run("FORMID_GRPCURL", "grpcurl", &["-max-time", "300"], arguments).await
}

/// Runs `buf curl`, which asks for reflection v1.
pub async fn buf_curl(arguments: &[&str]) -> Output {
    run("FORMID_BUF", "buf", &["curl", "--protocol", "grpc", "--http2-prior-knowledge"], arguments).await
}

/// The program that the environment names, as deploy/test.sh does; from the search path otherwise.
async fn run(variable: &str, name: &str, first: &[&str], arguments: &[&str]) -> Output {
    let program = std::env::var(variable).unwrap_or_else(|_| name.into());
    let mut command = Command::new(&program);
    command.args(first).args(arguments);
    // The service under test may live on the test's own thread, which must stay free to answer.
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    output.unwrap_or_else(|error| panic!("{program} does not run ({error}); ./deploy/test.sh gets it"))
}

/// What a client printed; fails the test when it failed.
pub fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}", complained(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What a client had to complain about.
pub fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
