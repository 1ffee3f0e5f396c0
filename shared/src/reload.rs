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

use ring::digest::{SHA256, digest};
use tracing::{error, info};

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
    pub async fn follow<E: Display>(self, what: &str, mut change: impl FnMut(Contents) -> Result<(), E>) {
        let (mut tried, mut last, mut readable) = (self.seen.clone(), self.seen, true);
        loop {
            tokio::time::sleep(INTERVAL).await;
            let paths = Arc::clone(&self.paths);
            // A disk that is slow must not hold up calls. The task can only fail with the runtime.
            let Ok(contents) = tokio::task::spawn_blocking(move || read(&paths)).await else { return };
            let contents = match contents {
                Ok(contents) => contents,
                Err(error) => {
                    if std::mem::replace(&mut readable, false) {
                        error!(%error, "{what} is gone; what was known stays");
                    }
                    continue;
                }
            };
            readable = true;
            let now = seen(&contents);
            let settled = now == last;
            last.clone_from(&now);
            if settled && now != tried {
                tried = now;
                match change(contents) {
                    Ok(()) => info!("{what} changed, and is in use"),
                    Err(error) => error!(%error, "{what} changed and is refused; what was known stays"),
                }
            }
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

    /// Waits for as many looks as it takes to find something and believe it.
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
            watched.follow("the file", change).await;
        });
        two_looks().await;
        assert!(told.lock().unwrap().is_empty());
        point("2");
        two_looks().await;
        assert_eq!(*told.lock().unwrap(), ["2"]);
        std::fs::write(&file, "bad").unwrap();
        two_looks().await;
        std::fs::remove_file(&now).unwrap();
        two_looks().await;
        assert_eq!(*told.lock().unwrap(), ["2", "bad"]);
        point("1");
        two_looks().await;
        assert_eq!(*told.lock().unwrap(), ["2", "bad", "1"]);
        following.abort();
    }
}
