//! The memory budget: how much memory the requests of all connections may use together.
//!
//! Each message that arrives is charged for its estimated memory: twice its size, because it is in memory both as
//! received and as decoded, and a fixed amount for each element of a list or map, however small the element is on the
//! wire. A call holds its charge until its response is sent.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntCounter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The cost of a call in addition to its messages, in bytes.
const CALL: usize = 16 << 10;
/// The cost of an element of a list or map in addition to its bytes. It is about the size of the largest element type
/// when empty, plus the overhead of the allocator and of a growing list.
const ELEMENT: usize = 256;
/// The size of one semaphore permit, in bytes. Larger than one byte, so that the number of permits fits the semaphore.
const UNIT: usize = 1 << 10;

/// Returns the cost of a message, in bytes.
pub(super) fn cost(size: usize, elements: usize) -> usize {
    CALL.saturating_add(size.saturating_mul(2)).saturating_add(elements.saturating_mul(ELEMENT))
}

/// Returns the minimum budget for messages of up to `largest` bytes, in bytes.
pub(crate) fn least_bytes(largest: usize) -> usize {
    cost(largest, 0).saturating_mul(2)
}

/// The free part of the memory budget.
#[derive(Debug)]
pub(super) struct Budget {
    free: Arc<Semaphore>,
    most: usize,
    /// Counts the calls that are rejected because too little memory is free.
    shed: IntCounter,
}

impl Budget {
    pub(super) fn new(bytes: usize, shed: IntCounter) -> Self {
        Self { free: Arc::new(Semaphore::new(bytes / UNIT)), most: bytes / 2, shed }
    }

    /// The maximum cost of one message: half of the budget, so that a single message cannot block all others.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Raises the charge of a call to `bytes` in total. Returns false if that much is not free.
    pub(super) fn charge(&self, charge: &Charge, bytes: usize) -> bool {
        let mut held = charge.lock();
        let more = units(bytes).saturating_sub(held.as_ref().map_or(0, |held| held.num_permits()));
        if more == 0 {
            return true;
        }
        let Ok(permit) = Arc::clone(&self.free).try_acquire_many_owned(more as u32) else {
            self.shed.inc();
            return false;
        };
        match &mut *held {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
        true
    }

    /// Waits until this many bytes are free. The caller must not hold any, or two waiting callers could block each
    /// other.
    pub(super) fn wait(&self, bytes: usize) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send + use<> {
        let free = Arc::clone(&self.free);
        async move { free.acquire_many_owned(units(bytes) as u32).await.ok() }
    }
}

/// Converts bytes to permits. At most half of a budget is ever requested, and the settings bound the budget.
fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT).min(u32::MAX as usize)
}

/// The charge of a call, in the extensions of its request. Code that uses the content of the request after the call has
/// ended must keep a clone.
#[derive(Debug, Clone, Default)]
pub struct Charge(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Charge {
    /// Returns the charge of a request. It is empty if the request did not arrive over a connection.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    pub(super) fn replace(&self, permit: Option<OwnedSemaphorePermit>) {
        *self.lock() = permit;
    }

    /// Returns whether at least this many bytes are held.
    pub(super) fn covers(&self, bytes: usize) -> bool {
        self.lock().as_ref().is_some_and(|held| held.num_permits() >= units(bytes))
    }

    /// Releases what is held beyond this many bytes.
    pub(super) fn reduce(&self, bytes: usize) {
        if let Some(held) = &mut *self.lock() {
            drop(held.split(held.num_permits().saturating_sub(units(bytes))));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        // Code that holds the lock does not panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(bytes: usize) -> Budget {
        Budget::new(bytes, IntCounter::new("shed", "shed").unwrap())
    }

    #[test]
    fn charge_is_released_when_its_last_clone_is_dropped() {
        let budget = budget(10 * UNIT);
        let (first, second) = (Charge::default(), Charge::default());
        assert!(budget.charge(&first, 3 * UNIT) && budget.charge(&first, 6 * UNIT - 1) && budget.charge(&first, UNIT));
        assert_eq!(budget.free.available_permits(), 4);
        assert!(!budget.charge(&second, 5 * UNIT));
        assert_eq!(budget.shed.get(), 1);
        first.reduce(UNIT);
        assert!(budget.charge(&second, 5 * UNIT));
        let clone = second.clone();
        drop((first, second));
        assert_eq!(budget.free.available_permits(), 5);
        drop(clone);
        assert_eq!(budget.free.available_permits(), 10);
    }

    #[tokio::test]
    async fn waiting_caller_gets_the_memory_that_others_release() {
        let budget = budget(10 * UNIT);
        let (first, second) = (Charge::default(), Charge::default());
        assert!(budget.charge(&first, 8 * UNIT));
        let waits = tokio::spawn(budget.wait(5 * UNIT));
        drop(first);
        second.replace(waits.await.unwrap());
        assert_eq!(budget.free.available_permits(), 5);
        second.replace(None);
        assert_eq!(budget.free.available_permits(), 10);
    }
}
