//! Files that are read at start and may be replaced while a service runs: who may call, certificates.
//!
//! They are looked at every [`INTERVAL`] by what they hold, so it makes no difference whether a file was written anew,
//! renamed over, or, as Kubernetes does it, a link before it points elsewhere. What is found has to stay the same from one
//! look to the next before it counts: a file is not read half written, nor a certificate with the key of another.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use ring::digest::{SHA256, digest};
use tracing::{error, info};

use crate::outage::Outages;

/// How often files are looked at.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// What files hold, in their order.
pub type Contents = Vec<Vec<u8>>;

/// A file that can not be read.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be read: {error}", path.display())]
pub struct Unreadable {
    /// Which one.
    pub path: PathBuf,
    /// Why not.
    pub error: io::Error,
}

/// What files held, as a hash each: no secret stays in memory for this.
type Seen = Vec<u8>;

/// Files, and what they held when they were last read.
#[derive(Debug, Clone)]
pub struct Watched {
    paths: Arc<[PathBuf]>,
    seen: Seen,
}

impl Watched {
    /// Reads files, whole. Fails with the first that can not be read.
    pub fn read(paths: impl IntoIterator<Item = PathBuf>) -> Result<(Self, Contents), Unreadable> {
        let paths: Arc<[PathBuf]> = paths.into_iter().collect();
        let contents = read(&paths)?;
        Ok((Self { paths, seen: seen(&contents) }, contents))
    }

    /// Hands what the files hold to `change` whenever it is something else than before, for ever. What `change` refuses is
    /// logged, and not tried again until it is something else once more. `what` is what people call the files.
    /// `in_use` is 1 while the content of the files is in use, and 0 while it is refused or cannot be read.
    pub async fn follow<E: Display>(
        self,
        what: &str,
        in_use: &IntGauge,
        outages: &Outages,
        mut change: impl FnMut(Contents) -> Result<(), E>,
    ) {
        let begins = format!("{what} cannot be read; what was read last stays in use");
        let mut reading = outages.loop_outage("reload", begins, format!("{what} can be read again")).operation();
        let (mut tried, mut last, mut accepted) = (self.seen.clone(), self.seen, true);
        in_use.set(1);
        loop {
            tokio::time::sleep(INTERVAL).await;
            let paths = Arc::clone(&self.paths);
            // A disk that is slow must not hold up calls. The task can only fail with the runtime.
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
                    Ok(()) => info!("{what} changed, and is in use"),
                    Err(error) => error!(%error, "{what} changed and is refused; what was known stays"),
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

    /// Waits for as many looks as it takes on a machine that is not busy to find something and believe it, where nothing is
    /// to be found.
    async fn two_looks() {
        tokio::time::sleep(INTERVAL * 2 + INTERVAL / 2).await;
    }

    #[tokio::test]
    async fn a_change_is_told_once_also_when_it_is_a_link_that_moves_and_a_refused_one_when_it_is_repaired() {
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
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
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
        assert!(told.lock().unwrap().is_empty());
        let becomes = async |all: &[&str]| {
            let holds = async || told.lock().unwrap().len() >= all.len();
            testing::eventually("the change is told", INTERVAL * 10, holds).await;
            assert_eq!(*told.lock().unwrap(), all);
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
    async fn the_gauge_is_0_while_the_content_is_refused_or_missing() {
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
        // A file that comes back as it was is no change.
        std::fs::rename(&file, &away).unwrap();
        becomes(0).await;
        std::fs::rename(&away, &file).unwrap();
        becomes(1).await;
        // One that is refused, goes and comes back is still refused.
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
