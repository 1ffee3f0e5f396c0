//! Locking that survives a panic of another call.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A poisoned lock only means that another call panicked. The values it guards are still the best available.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
