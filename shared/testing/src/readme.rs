//! The Markdown files of the checkout: their text, and their blocks of shell commands, which tests run.
//!
//! A block of `sh` belongs to the test `default` of its file. A comment in the line above it changes that:
//! `<!-- test: NAME -->` names another test, `<!-- not run: REASON -->` says why no test can run it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::replaced;

/// The top of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The text of a file of the checkout.
pub fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files of the checkout whose names end in `end`, relative to its top. Hidden folders are left out, except
/// `.github`, and so are build results.
pub fn files(end: &str) -> Vec<String> {
    fn visit(root: &Path, folder: &Path, end: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let hidden = name.starts_with('.') && name != ".github";
            if path.is_dir() && !hidden && name != "target" {
                visit(root, &path, end, found);
            } else if path.is_file() && name.ends_with(end) {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    visit(&root, &root, end, &mut found);
    found.sort();
    found
}

/// Who runs a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunBy {
    /// The test of this name.
    Test(String),
    /// No test, for this reason.
    Nobody(String),
}

/// A block of shell commands.
#[derive(Debug, Clone)]
pub struct Block {
    /// Its file and line, for messages.
    pub place: String,
    /// Who runs it.
    pub run_by: RunBy,
    /// The commands.
    pub commands: String,
    /// The block that begins on the next line, which shows what the commands print; empty if there is none.
    pub shown: String,
}

/// The blocks of shell commands of a file.
pub fn blocks(path: &str) -> Vec<Block> {
    let text = text(path);
    let mut lines = text.lines().enumerate();
    let mut blocks: Vec<Block> = Vec::new();
    let (mut above, mut after_commands) = ("", false);
    while let Some((at, line)) = lines.next() {
        let language = line.strip_prefix("```");
        if let Some(language) = language {
            let inside: Vec<_> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            let inside = inside.join("\n");
            if language == "sh" {
                let (place, run_by) = (format!("{path}:{}", at + 1), run_by(above));
                blocks.push(Block { place, run_by, commands: inside, shown: String::new() });
            } else if let (true, Some(block)) = (after_commands, blocks.last_mut()) {
                block.shown = inside;
            }
        }
        (above, after_commands) = (line, language == Some("sh"));
    }
    blocks
}

fn run_by(above: &str) -> RunBy {
    let comment = |start| above.strip_prefix(start)?.strip_suffix(" -->");
    match (comment("<!-- test: "), comment("<!-- not run: ")) {
        (Some(name), _) => RunBy::Test(name.to_owned()),
        (_, Some(reason)) => RunBy::Nobody(reason.to_owned()),
        _ => RunBy::Test("default".to_owned()),
    }
}

/// The blocks of a file that one test runs, in order.
pub struct Steps {
    blocks: Vec<Block>,
    before: String,
}

/// How a block ended.
#[derive(Debug)]
pub struct Ran {
    /// The block.
    pub block: Block,
    /// The exit code of the last command that failed; 0 if all succeeded.
    pub code: i32,
    /// The output of the commands, standard error included.
    pub output: String,
}

impl Steps {
    /// The blocks of a file that the test of this name runs.
    pub fn of(path: &str, test: &str) -> Self {
        let mine = RunBy::Test(test.to_owned());
        let blocks: Vec<_> = blocks(path).into_iter().filter(|block| block.run_by == mine).collect();
        assert!(!blocks.is_empty(), "{path} has no commands for the test {test}");
        Self { blocks, before: String::new() }
    }

    /// Runs these commands before all blocks.
    pub fn after(mut self, commands: &str) -> Self {
        self.before += &format!("{commands}\n");
        self
    }

    /// Runs these commands as one more block at the end.
    pub fn and_then(mut self, commands: &str) -> Self {
        let (run_by, shown) = (RunBy::Nobody("a command of the test".into()), String::new());
        self.blocks.push(Block { place: "the end".into(), run_by, commands: commands.into(), shown });
        self
    }

    /// Whether one of the commands contains this text.
    pub fn have(&self, text: &str) -> bool {
        self.blocks.iter().any(|block| block.commands.contains(text))
    }

    /// Runs the blocks in one shell, so that a block may use what another one has set, with each pair's first text
    /// replaced by its second. The folder is the current folder, and in place of `/tmp`.
    pub async fn run(self, folder: &Path, places: &[(&str, &str)]) -> Vec<Ran> {
        for (shown, _) in places {
            assert!(self.have(shown), "no command has {shown}");
        }
        // The checkout, and so a program, may be in the temporary folder too: nothing that is put in is replaced again.
        let tmp = format!("{}/", folder.display());
        let places = [places, &[("/tmp/", tmp.as_str())]].concat();
        let files = tempfile::tempdir().unwrap();
        let mut script = "set -o pipefail\ncurl() { command curl -fS \"$@\"; }\n".to_owned();
        for (name, variable) in [("grpcurl", "FORMID_GRPCURL"), ("buf", "FORMID_BUF")] {
            script += &format!("[ -z \"${variable}\" ] || {name}() {{ \"${variable}\" \"$@\"; }}\n");
        }
        script += &self.before;
        for (number, block) in self.blocks.iter().enumerate() {
            let file = files.path().join(format!("{number}.sh"));
            std::fs::write(&file, replaced(&block.commands, &places)).unwrap();
            let file = file.display();
            script += &format!("code=0\ntrap 'code=$?' ERR\n. '{file}' >'{file}.out' 2>&1\ntrap - ERR\n");
            script += &format!("echo $code >'{file}.code'\n");
        }
        let mut shell = Command::new("timeout");
        shell.args(["600", "bash", "-c", &script]).current_dir(folder);
        // The services may be served by the test's own threads, which must stay free to answer.
        let status = tokio::task::spawn_blocking(move || shell.status()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
        let read =
            |number: usize, end| std::fs::read_to_string(files.path().join(format!("{number}.sh.{end}"))).unwrap();
        let ran = self.blocks.into_iter().enumerate().map(|(number, block)| {
            let code = read(number, "code").trim().parse().unwrap();
            Ran { block, code, output: read(number, "out") }
        });
        ran.collect()
    }
}

impl Ran {
    /// Whether the README says that the last command fails.
    pub fn is_to_fail(&self) -> bool {
        self.block.shown.starts_with("ERROR:")
    }

    /// Fails unless the commands succeeded or failed as shown, and printed what does not differ from run to run.
    pub fn assert_as_shown(&self) {
        let Self { block: Block { place, commands, shown, .. }, code, output } = self;
        assert_eq!(*code != 0, self.is_to_fail(), "{place}\n{commands}\n{output}");
        for constant in constants(shown) {
            assert!(output.contains(&constant), "{place} shows {constant}, which is missing in\n{commands}\n{output}");
        }
    }
}

/// Of JSON and of an error of grpcurl, the field names and the values of enumerations; of other text, the first line.
fn constants(shown: &str) -> Vec<String> {
    if !shown.starts_with("ERROR:") && !shown.starts_with('{') {
        return shown.lines().next().map(str::to_owned).into_iter().collect();
    }
    let quoted: Vec<_> = shown.split('"').collect();
    let quoted = quoted.iter().zip(quoted.iter().skip(1)).enumerate().filter(|(at, _)| at % 2 == 1);
    let constant = |text: &str, after: &str| {
        after.starts_with(':')
            || (text.contains('_') && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'))
    };
    quoted.filter(|(_, (text, after))| constant(text, after)).map(|(_, (text, _))| format!("\"{text}\"")).collect()
}
