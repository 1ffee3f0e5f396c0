//! Runs the commands of proto/README.md that generate code.

use testing::readme::Steps;

use crate::fixture::{Fixture, Service, python, root};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_the_proto_readme_work() {
    let Some(python) = python() else { return };
    let fixture = Fixture::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("proto"), folder.path().join("proto")).unwrap();
    let steps = Steps::of("proto/README.md", "stubs").after(&format!("python3() {{ {python:?} \"$@\"; }}"));
    let dispatcher = &fixture.addresses(Service::Dispatcher)[0];
    for ran in steps.run(folder.path(), &[("127.0.0.1:7002", dispatcher)]).await {
        ran.assert_as_shown();
    }
    assert!(folder.path().join("gen/formid/v1/dispatcher_pb2_grpc.py").is_file());
    assert!(folder.path().join("dispatcher.binpb").is_file());
}
