//! The README's commands, pasted in order as a new user would, against services in the state that the quickstart leaves.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use testing::{Redis, eventually, replaced};

use crate::rig::{Rig, message};
use crate::whole::Collector;

/// A command of the README with the block after it, which shows what comes of it.
struct Step {
    command: String,
    shown: String,
}

/// What is done with the quickstart's services, and needs nothing but a shell.
fn is_pasted(command: &str) -> bool {
    let calls = command.contains("grpcurl -plaintext") || command.contains("curl -s");
    calls && !["./deploy", "cargo", "redis-cli", "Bearer"].iter().any(|other| command.contains(other))
}

fn steps(readme: &str) -> Vec<Step> {
    let mut blocks = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((language, block.join("\n")));
        }
    }
    let shown = |after: usize| match blocks.get(after) {
        Some((language, text)) if *language != "sh" => text.clone(),
        _ => String::new(),
    };
    let commands = blocks.iter().enumerate().filter(|(_, (language, text))| *language == "sh" && is_pasted(text));
    commands.map(|(at, (_, text))| Step { command: text.clone(), shown: shown(at + 1) }).collect()
}

/// Names of fields, and values of enumerations: what of a shown answer does not differ from run to run.
fn constants(shown: &str) -> Vec<String> {
    let quoted: Vec<_> = shown.split('"').collect();
    let quoted = quoted.iter().zip(quoted.iter().skip(1)).enumerate().filter(|(at, _)| at % 2 == 1);
    let constant = |text: &str, after: &str| {
        after.starts_with(':')
            || (text.contains('_') && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'))
    };
    quoted.filter(|(_, (text, after))| constant(text, after)).map(|(_, (text, _))| format!("\"{text}\"")).collect()
}

/// Runs all steps in one shell, so that one may use what another has set; answers the exit code and output of each.
fn run(steps: &[Step], folder: &Path, places: &[(&str, &str)]) -> Vec<(i32, String)> {
    let mut script = "[ -z \"$FORMID_GRPCURL\" ] || grpcurl() { \"$FORMID_GRPCURL\" \"$@\"; }\n".to_owned();
    for (number, Step { command, .. }) in steps.iter().enumerate() {
        let file = folder.join(format!("{number}.sh"));
        std::fs::write(&file, replaced(command, places)).unwrap();
        let file = file.display();
        script.push_str(&format!(". '{file}' >'{file}.out' 2>&1; echo $? >'{file}.code'\n"));
    }
    let status = Command::new("timeout").args(["600", "bash", "-c", &script]).status().unwrap();
    assert!(status.success(), "{status}");
    (0..steps.len())
        .map(|number| {
            let read = |end| std::fs::read_to_string(folder.join(format!("{number}.sh.{end}"))).unwrap();
            (read("code").trim().parse().unwrap(), read("out"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_grpcurl_command_of_the_readme_does_what_is_shown() {
    // As many buckets as the services have unless told otherwise.
    let rig = Rig::with_buckets(Redis::start(), 512).await;
    let collector = Collector::start(&rig, &[]).await;
    let dispatcher = rig.dispatcher_with(&["--lease", "30s"]).await;
    rig.submit("alice", 2).await;
    dispatcher.send(message("alice", "ready")).await.unwrap();
    rig.submit("bob", 1).await;
    for user in 1..=300 {
        rig.submit(&format!("user-{user}"), 1).await;
    }

    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let steps = steps(&readme);
    let folder = tempfile::tempdir().unwrap();
    let places = [
        ("127.0.0.1:7001", collector.address.to_string()),
        ("127.0.0.1:7002", dispatcher.address.to_string()),
        ("http://127.0.0.1:8700", rig.base_url.clone()),
    ];
    let results = {
        let folder = folder.path().to_owned();
        let (steps, results) = tokio::task::spawn_blocking(move || {
            let places = places.each_ref().map(|(shown, here)| (*shown, here.as_str()));
            let results = run(&steps, &folder, &places);
            (steps, results)
        })
        .await
        .unwrap();
        steps.into_iter().zip(results)
    };
    let (mut seen, mut refused) = (0, 0);
    for (Step { command, shown }, (code, output)) in results {
        let fails = shown.starts_with("ERROR:");
        assert_eq!(code != 0, fails, "{command}\n{output}");
        for constant in constants(&shown) {
            // grpcurl prints the details of an error without the quotes around a reason.
            assert!(output.contains(&constant), "{constant} is shown, and not in the answer of\n{command}\n{output}");
        }
        (seen, refused) = (seen + 1, refused + usize::from(fails));
    }
    assert!(seen >= 16 && refused >= 2, "{seen} commands, {refused} of which are to fail");
    // Both generations were sent.
    let delivered = rig.sandbox.deliveries(crate::rig::APP, &sandbox::Reading::default()).unwrap();
    assert!(delivered.iter().any(|delivery| delivery.msgid.is_some()));
    assert!(delivered.iter().any(|delivery| delivery.msgid.is_none()));
    eventually("nothing is under way", Duration::from_secs(20), async || {
        rig.store.ledger(&rig.app()).await.unwrap().leased == 0
    })
    .await;
}
