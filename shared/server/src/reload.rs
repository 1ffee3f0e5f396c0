//! Reloads files that may be replaced while a service runs: the callers file and certificates.
//!
//! The files are read every [`INTERVAL`] and compared by content. So it makes no difference whether a file was
//! rewritten, replaced by a rename, or, as in Kubernetes, a symbolic link in its path was changed. New content must be
//! the same in two successive checks before it is used. So a half-written file is never used, and neither is a
//! certificate with the key of another one.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use ring::digest::{SHA256, digest};
use tracing::{error, info};

use crate::telemetry::outage::Outages;

/// The interval between two checks of the files.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// The contents of the files, in the order of the paths.
pub type Contents = Vec<Vec<u8>>;

#[derive(Debug, thiserror::Error)]
#[error("{} cannot be read: {error}", path.display())]
pub struct Unreadable {
    pub path: PathBuf,
    pub error: io::Error,
}

/// The contents of the files, as one hash each, so that no secret stays in memory for the comparison.
type Seen = Vec<u8>;

/// The paths of files, and the content at the last read.
#[derive(Debug, Clone)]
pub struct Watched {
    paths: Arc<[PathBuf]>,
    seen: Seen,
}

impl Watched {
    /// Reads the files. Fails with the first that cannot be read.
    pub fn read(paths: impl IntoIterator<Item = PathBuf>) -> Result<(Self, Contents), Unreadable> {
        let paths: Arc<[PathBuf]> = paths.into_iter().collect();
        let contents = read(&paths)?;
        Ok((Self { paths, seen: seen(&contents) }, contents))
    }

    /// Watches the files forever and passes their contents to `change` when they change. If `change` rejects a version,
    /// the error is logged, and the version is not tried again until the contents change again. `what` is how log
    /// messages call the files. `in_use` is 1 while the current contents are in use, and 0 while they are rejected or
    /// cannot be read.
    pub async fn follow<E: Display>(
        self,
        what: &str,
        in_use: &IntGauge,
        outages: &Outages,
        mut change: impl FnMut(Contents) -> Result<(), E>,
    ) {
        let begins = format!("{what} cannot be read; the previous content stays in use");
        let mut reading = outages.loop_outage("reload", begins, format!("{what} can be read again")).operation();
        let (mut tried, mut last, mut accepted) = (self.seen.clone(), self.seen, true);
        in_use.set(1);
        loop {
            tokio::time::sleep(INTERVAL).await;
            let paths = Arc::clone(&self.paths);
            // Runs in a blocking thread, so that a slow disk does not delay calls. The task fails only if the runtime
            // shuts down.
            let Ok(contents) = tokio::task::spawn_blocking(move || read(&paths)).await else { return };
            reading.note(&contents);
            let Ok(contents) = contents else {
                in_use.set(0);
                continue;
            };
            let now = seen(&contents);
            let settled = now == last;
            last.clone_from(&now);
            if settled && now != tried {
                tried = now;
                let changed = change(contents);
                accepted = changed.is_ok();
                match changed {
                    Ok(()) => info!("{what} changed; the new content is in use"),
                    Err(error) => error!(%error, "{what} changed but is invalid; the previous content stays in use"),
                }
            }
            in_use.set(accepted.into());
        }
    }
}

fn read(paths: &[PathBuf]) -> Result<Contents, Unreadable> {
    let one = |path: &PathBuf| std::fs::read(path).map_err(|error| Unreadable { path: path.clone(), error });
    paths.iter().map(one).collect()
}

fn seen(contents: &[Vec<u8>]) -> Seen {
    contents.iter().flat_map(|content| digest(&SHA256, content).as_ref().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Waits long enough for two checks of the files on a machine that is not busy. For tests that expect no change.
    async fn two_looks() {
        tokio::time::sleep(INTERVAL * 2 + INTERVAL / 2).await;
    }

    #[tokio::test]
    async fn changes_are_reported_once_also_of_links_and_after_a_rejection() {
        let folder = tempfile::tempdir().unwrap();
        let (file, now) = (folder.path().join("file"), folder.path().join("now"));
        for version in ["1", "2"] {
            std::fs::create_dir(folder.path().join(version)).unwrap();
            std::fs::write(folder.path().join(version).join("file"), version).unwrap();
        }
        let point = |to: &str| {
            let next = folder.path().join("next");
            std::os::unix::fs::symlink(to, &next).unwrap();
            std::fs::rename(&next, &now).unwrap();
        };
        point("1");
        std::os::unix::fs::symlink("now/file", &file).unwrap();

        let (watched, contents) = Watched::read([file.clone()]).unwrap();
        assert_eq!(contents, [b"1"]);
        let reported = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&reported);
        let following = tokio::spawn(async move {
            let change = |contents: Contents| {
                let text = String::from_utf8(contents.concat()).unwrap();
                tell.lock().unwrap().push(text.clone());
                if text == "bad" { Err("it is bad") } else { Ok(()) }
            };
            let in_use = IntGauge::new("in_use", "test").unwrap();
            watched.follow("the file", &in_use, &Outages::default(), change).await;
        });
        two_looks().await;
        assert!(reported.lock().unwrap().is_empty());
        let becomes = async |all: &[&str]| {
            let holds = async || reported.lock().unwrap().len() >= all.len();
            testing::eventually("the change is reported", INTERVAL * 10, holds).await;
            assert_eq!(*reported.lock().unwrap(), all);
        };
        point("2");
        becomes(&["2"]).await;
        std::fs::write(&file, "bad").unwrap();
        becomes(&["2", "bad"]).await;
        std::fs::remove_file(&now).unwrap();
        two_looks().await;
        becomes(&["2", "bad"]).await;
        point("1");
        becomes(&["2", "bad", "1"]).await;
        following.abort();
    }

    #[tokio::test]
    async fn gauge_is_0_while_the_content_is_rejected_or_missing() {
        let folder = tempfile::tempdir().unwrap();
        let (file, away) = (folder.path().join("file"), folder.path().join("away"));
        std::fs::write(&file, "good").unwrap();
        let (watched, _) = Watched::read([file.clone()]).unwrap();
        let in_use = IntGauge::new("in_use", "test").unwrap();
        let gauge = in_use.clone();
        let following = tokio::spawn(async move {
            let change = |contents: Contents| if contents == [b"bad"] { Err("it is bad") } else { Ok(()) };
            watched.follow("the file", &gauge, &Outages::default(), change).await;
        });
        let becomes = async |value| {
            testing::eventually("the gauge follows", INTERVAL * 30, async || in_use.get() == value).await;
        };
        becomes(1).await;
        std::fs::write(&file, "bad").unwrap();
        becomes(0).await;
        std::fs::write(&file, "better").unwrap();
        becomes(1).await;
        // A file that reappears with the same content is not a change.
        std::fs::rename(&file, &away).unwrap();
        becomes(0).await;
        std::fs::rename(&away, &file).unwrap();
        becomes(1).await;
        // Rejected content that disappears and reappears is still rejected.
        std::fs::write(&file, "bad").unwrap();
        becomes(0).await;
        std::fs::rename(&file, &away).unwrap();
        tokio::time::sleep(INTERVAL * 2).await;
        std::fs::rename(&away, &file).unwrap();
        tokio::time::sleep(INTERVAL * 3).await;
        assert_eq!(in_use.get(), 0);
        following.abort();
    }
}
