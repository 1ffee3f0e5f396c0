//! Runs the commands of proto/README.md in order.

use std::process::Command;

use crate::rig::{Rig, Service, python, root, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_the_proto_readme_work() {
    let Some(python) = python() else { return };
    let rig = Rig::start(&[]).await;
    let readme = text("proto/README.md");
    let blocks = readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut script = format!("set -e\npython3() {{ {python:?} \"$@\"; }}\n");
    for (name, variable) in [("grpcurl", "FORMID_GRPCURL"), ("buf", "FORMID_BUF")] {
        script.push_str(&format!("[ -z \"${variable}\" ] || {name}() {{ \"${variable}\" \"$@\"; }}\n"));
    }
    script.extend(blocks.map(|block| block.replace("127.0.0.1:7002", &rig.addresses(Service::Dispatcher)[0])));
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("proto"), folder.path().join("proto")).unwrap();
    let command = Command::new("bash").args(["-c", &script]).current_dir(folder.path()).output();
    let output = command.unwrap();
    assert!(output.status.success(), "{script}{}", String::from_utf8_lossy(&output.stderr));
    assert!(folder.path().join("gen/formid/v1/dispatcher_pb2_grpc.py").is_file());
    assert!(folder.path().join("dispatcher.binpb").is_file());
}
