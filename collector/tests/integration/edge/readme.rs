//! What the README says about callers, pasted.

use std::process::Command;

use testing::{Redis, free_port, replaced};

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_make_a_token_that_the_readme_shows_works() {
    let redis = Redis::start();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let pasted = readme.split("```sh\n").find(|block| block.contains("openssl rand")).expect("no way to make a token");
    let pasted = pasted.split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let here = [
        ("./target/debug/collector", env!("CARGO_BIN_EXE_collector")),
        ("redis://127.0.0.1:7000", &redis.url()),
        ("7011", &port),
        // The checkout, and so the program, may be in the temporary folder too.
        ("/tmp/", &format!("{}/", folder.path().display())),
    ];
    for (shown, _) in here {
        assert!(pasted.contains(shown), "{shown} in {pasted}");
    }
    let pasted = replaced(pasted, &here);
    let script = format!("[ -z \"$FORMID_GRPCURL\" ] || grpcurl() {{ \"$FORMID_GRPCURL\" \"$@\"; }}\n{pasted}\n");
    let run = move || Command::new("timeout").args(["600", "bash", "-c", &script]).output().unwrap();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("countedAt"), "{out}\n{err}");
}
