//! Limits the number of open streams of each caller, so that no caller takes all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::Caller;

/// The open streams of all callers. A caller may open another stream as long as it has fewer than are still free. So it
/// gets half of all streams if no other caller has any, and half of the rest if another caller has taken its half. It
/// always gets one while one is free.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    room: Arc<Semaphore>,
    held: Held,
}

/// The number of open streams of each caller, by name.
type Held = Arc<Mutex<HashMap<Box<str>, usize>>>;

/// The permit of a call. Dropping it releases the permit.
#[derive(Debug)]
pub(super) struct Permit {
    _room: OwnedSemaphorePermit,
    /// The caller that a stream counts for. `None` for other calls, and if there is no callers file.
    share: Option<(Box<str>, Held)>,
}

impl From<OwnedSemaphorePermit> for Permit {
    fn from(room: OwnedSemaphorePermit) -> Self {
        Self { _room: room, share: None }
    }
}

/// Why a stream cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The maximum number of streams is open.
    All,
    /// This caller has reached its share.
    Share,
}

impl Streams {
    pub(super) fn new(streams: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(streams)), held: Arc::default() }
    }

    pub(super) fn open(&self, caller: &Caller) -> Result<Permit, Full> {
        // Held until the end, so that two concurrent calls of a caller do not both count on the same free stream.
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
        Ok(Permit { _room: room, share })
    }
}

impl Drop for Permit {
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
    // Each change is one insert or one remove, so a panic elsewhere leaves the map consistent.
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}
