//! Compares the documentation for callers with what the services do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use prost::Message as _;
use prost_types::FileDescriptorSet;
use serde_json::Value;
use server::rpc::reason::Reason;
use testing::readme::blocks;

use crate::fixture::{root, text};

/// Error reasons and their codes.
type Reasons = BTreeMap<String, String>;

fn is_constant(word: &str) -> bool {
    word.len() > 3 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// The reasons in the comments at the heads of the protos.
fn in_protos() -> Reasons {
    let protos = ["collector", "dispatcher"].map(|name| text(&format!("proto/formid/v1/{name}.proto")));
    let lines = protos.iter().flat_map(|proto| proto.lines());
    lines
        .filter_map(|line| {
            let mut words = line.strip_prefix("//   ")?.split_whitespace();
            let (reason, code) = (words.next()?, words.next()?);
            (is_constant(reason) && is_constant(code)).then(|| (reason.to_owned(), code.to_owned()))
        })
        .collect()
}

/// The rows of a table of a README, as cells without backquotes.
fn rows(readme: &str, heading: &str) -> Vec<Vec<String>> {
    let start = readme.find(heading).unwrap_or_else(|| panic!("no table {heading}"));
    let rows = readme[start..].lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()).collect()
}

/// The reasons in a table. A row may contain several.
fn in_table(readme: &str, heading: &str) -> Reasons {
    let rows = rows(readme, heading);
    let reasons = rows.iter().flat_map(|row| row[0].split(", ").map(|reason| (reason.to_owned(), row[1].clone())));
    reasons.collect()
}

/// The table of reasons.
fn in_source() -> Reasons {
    Reason::ALL.iter().map(|reason| (reason.name().to_owned(), capitals(&format!("{:?}", reason.code())))).collect()
}

#[test]
fn each_reason_is_given_somewhere() {
    let mut given = BTreeSet::new();
    for folder in ["shared/server/src", "collector/src", "dispatcher/src"] {
        visit(&root().join(folder), &mut |source| {
            let words = source.split("Reason::").skip(1);
            given.extend(
                words.map(|word| word.split(|c: char| !c.is_ascii_uppercase() && c != '_').next().unwrap().to_owned()),
            );
        });
    }
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !given.contains(reason.name())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn visit(folder: &Path, look: &mut impl FnMut(&str)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, look);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            look(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// `FailedPrecondition` as FAILED_PRECONDITION.
fn capitals(code: &str) -> String {
    let mut name = String::new();
    for letter in code.chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[test]
fn protos_and_readmes_list_exactly_the_reasons_of_the_source() {
    let (protos, source) = (in_protos(), in_source());
    assert!(source.len() >= 25, "{source:?}");
    assert_eq!(protos, source, "the heads of the protos and the source");
    let told = in_table(&text("proto/README.md"), "| reason | code | what happened |");
    assert_eq!(told, source, "proto/README.md and the source");
}

/// The settings of a method in the service config.
#[derive(Debug, Default, PartialEq)]
struct Rules {
    deadline: Option<Duration>,
    repeated: bool,
}

fn service_config() -> BTreeMap<String, Rules> {
    let config: Value = serde_json::from_str(&text("proto/service-config.json")).unwrap();
    let mut methods = BTreeMap::new();
    for part in config["methodConfig"].as_array().unwrap() {
        let policy = &part["retryPolicy"];
        if policy.is_object() {
            // Every other code is either final or asks for its own wait.
            assert_eq!(policy["retryableStatusCodes"], serde_json::json!(["UNAVAILABLE"]));
            // Libraries limit the attempts to 5.
            assert!(policy["maxAttempts"].as_u64().unwrap() <= 5);
        }
        for name in part["name"].as_array().unwrap() {
            let deadline = Some(humantime(part["timeout"].as_str().unwrap()));
            let name = format!("{}.{}", name["service"].as_str().unwrap(), name["method"].as_str().unwrap());
            let twice = methods.insert(name, Rules { deadline, repeated: policy.is_object() });
            assert_eq!(twice, None);
        }
    }
    methods
}

fn humantime(seconds: &str) -> Duration {
    Duration::from_secs(seconds.strip_suffix('s').unwrap().trim().parse().unwrap())
}

#[test]
fn service_config_matches_the_table_of_methods() {
    let table: BTreeMap<String, Rules> = rows(&text("proto/README.md"), "| method | deadline |")
        .into_iter()
        .map(|row| {
            let deadline = (row[1] != "none").then(|| humantime(&row[1]));
            (row[0].clone(), Rules { deadline, repeated: row[2].starts_with("yes") })
        })
        .collect();
    let mut config = service_config();
    let mut methods = BTreeSet::new();
    for file in FileDescriptorSet::decode(server::proto::DESCRIPTORS).unwrap().file {
        for service in &file.service {
            for method in &service.method {
                let rules = config.remove(&format!("{}.{}.{}", file.package(), service.name(), method.name()));
                assert_eq!(table.get(method.name()), Some(&rules.unwrap_or_default()), "{}", method.name());
                methods.insert(method.name().to_owned());
            }
        }
    }
    assert!(config.is_empty(), "no such method: {config:?}");
    for method in &methods {
        let call = format!("Service/{method}");
        assert!(blocks("proto/README.md").iter().any(|block| block.commands.contains(&call)), "no command has {call}");
    }
    assert_eq!(methods, table.into_keys().collect());
}

#[test]
fn deadline_of_a_send_suffices_for_a_default_dispatcher() {
    let folder = tempfile::tempdir().unwrap();
    let apps = folder.path().join("apps.toml");
    std::fs::write(&apps, "[apps.wx0123456789abcdef]\nsecret = \"secret\"\n").unwrap();
    let args = clap::Parser::parse_from(["dispatcher", "--apps-file", &apps.display().to_string()]);
    let settings = dispatcher::settings::Settings::read(&args).unwrap();
    let timeout = settings.apps.iter().next().unwrap().timeout;
    let pauses: Duration =
        (1..settings.limits.attempts).map(|tries| settings.limits.backoff * (1 << (tries - 1))).sum();
    let asked = timeout * settings.limits.attempts + pauses;
    assert_eq!(asked, Duration::from_millis(26_500), "the time that proto/README.md gives");
    let turn = timeout;
    let redis = 2 * settings.store.redis.timeout;
    let deadline = service_config()["formid.v1.DispatcherService.SendTemplate"].deadline.unwrap();
    assert!(settings.limits.terms.duration + turn + redis <= deadline && asked + turn + redis <= deadline);
    // Both clients have the same deadlines.
    let collect = service_config()["formid.v1.CollectorService.Collect"].deadline.unwrap();
    for (name, deadline) in [("COLLECT", collect.as_secs()), ("SEND", deadline.as_secs())] {
        let rust = format!("const {name}: Duration = Duration::from_secs({deadline});\n");
        assert!(text("proto/clients/rust/src/main.rs").contains(&rust), "{rust}");
        let python = format!("\n{name} = {deadline}\n");
        assert!(text("proto/clients/python/client.py").contains(&python), "{python}");
    }
}

#[test]
fn readme_lines_that_read_an_error_are_in_the_clients() {
    let readme = text("proto/README.md");
    for (language, file) in
        [("rust", "proto/clients/rust/src/problem.rs"), ("python", "proto/clients/python/client.py")]
    {
        let block = readme.split(&format!("```{language}\n")).nth(1).unwrap().split("```").next().unwrap();
        let source = text(file);
        for line in block.lines() {
            let line = line.split("  # ").next().unwrap().split(" //").next().unwrap().trim();
            assert!(source.lines().any(|of_client| of_client.trim() == line), "{file} has no line {line}");
        }
    }
}
