//! Who has how many streams open: no caller keeps the others from theirs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::Caller;

/// Room for streams. A caller may have as many as are still free: half of them while nobody else has any, half of the rest
/// when another has taken its half, and one as long as there is one.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    room: Arc<Semaphore>,
    held: Held,
}

/// How many streams each caller has open, by name.
type Held = Arc<Mutex<HashMap<Box<str>, usize>>>;

/// An open stream's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Stream {
    _room: OwnedSemaphorePermit,
    /// Whose share it counts to; nobody's where everybody may do everything.
    share: Option<(Box<str>, Held)>,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// All are open.
    All,
    /// This caller has its share.
    Share,
}

impl Streams {
    pub(super) fn new(streams: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(streams)), held: Arc::default() }
    }

    /// A place for one more stream of a caller.
    pub(super) fn open(&self, caller: &Caller) -> Result<Stream, Full> {
        // Held to the end, so that two calls of one caller do not count the same room.
        let mut held = lock(&self.held);
        let free = self.room.available_permits();
        let mine = held.get(caller.name()).copied().unwrap_or_default();
        if caller.is_known() && free > 0 && mine >= free {
            return Err(Full::Share);
        }
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| Full::All)?;
        let share = caller.is_known().then(|| {
            held.insert(caller.name().into(), mine + 1);
            (caller.name().into(), Arc::clone(&self.held))
        });
        Ok(Stream { _room: room, share })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some((name, held)) = &self.share else { return };
        let mut held = lock(held);
        match held.get_mut(name) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => _ = held.remove(name),
        }
    }
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one insert or one remove, so a panic elsewhere leaves the map whole.
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}
