//! The Markdown files of the checkout: every command is run by a test or says why not, and every link leads somewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed assumption should end the test, loudly")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use testing::readme::{RunBy, Steps, blocks, files, root, text};

#[test]
fn every_command_is_run_by_a_test_or_says_why_not() {
    let sources: String = files(".rs").iter().map(|path| text(path)).collect();
    let sources: String = sources.split_whitespace().collect();
    let mut run = 0;
    for path in files(".md") {
        for block in blocks(&path) {
            match block.run_by {
                RunBy::Nobody(reason) => assert!(reason.len() > 10, "{}: {reason:?} is no reason", block.place),
                RunBy::Test(name) => {
                    let call = format!("Steps::of(\"{path}\",\"{name}\")");
                    assert!(sources.contains(&call), "{}: no test has {call}", block.place);
                    run += 1;
                }
            }
        }
    }
    assert!(run >= 40, "{run} blocks");
}

#[test]
fn the_first_readme_can_be_read_in_two_minutes() {
    let lines = text("README.md").lines().count();
    assert!(lines <= 200, "README.md has {lines} lines");
}

/// The lines of a file outside its blocks.
fn prose(path: &str) -> Vec<String> {
    let mut inside = false;
    let text = text(path);
    let lines = text.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.map(str::to_owned).collect()
}

/// The anchors of a file, as GitHub makes them from its headings.
fn anchors(path: &str) -> BTreeSet<String> {
    let headings = prose(path).into_iter().filter(|line| line.starts_with('#'));
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    let anchor = |heading: String| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        heading.chars().filter(kept).map(|letter| if letter == ' ' { '-' } else { letter }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_of_every_document_leads_somewhere() {
    let documents = files(".md");
    let anchors: BTreeMap<_, _> = documents.iter().map(|path| (root().join(path), anchors(path))).collect();
    let mut links = 0;
    for path in &documents {
        let folder = root().join(path).parent().unwrap().to_owned();
        let prose = prose(path).join("\n");
        for link in prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { root().join(path) } else { folder.join(Path::new(file)) };
            let target = target.canonicalize().unwrap_or_else(|_| panic!("{path} links to {link}, which is missing"));
            let known = || anchors.get(&target).is_some_and(|anchors| anchors.contains(anchor));
            assert!(anchor.is_empty() || known(), "{path} links to {link}, and there is no such heading");
            links += 1;
        }
    }
    assert!(links >= 100, "{links} links");
}

#[tokio::test]
async fn the_commands_that_make_a_token_work() {
    let folder = tempfile::tempdir().unwrap();
    let steps = Steps::of("deploy/kubernetes/README.md", "token").and_then("echo ${#token} ${#hash}");
    let ran = steps.run(folder.path(), &[]).await;
    for ran in &ran {
        ran.assert_as_shown();
    }
    assert_eq!(ran.last().unwrap().output.trim(), "64 64", "both are 32 bytes in hex");
}
