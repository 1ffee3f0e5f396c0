//! How much memory requests may take up at once, over all connections.
//!
//! Each message that arrives is charged for what it will cost: twice its size, since it is in memory as it came and as it
//! was decoded, and a fixed amount for each element of a list or map, however small it is on the wire. A call holds its
//! charge until its answer is sent.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntCounter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a call costs beside its message, in bytes.
const CALL: usize = 16 << 10;
/// What an element of a list or map costs beside its bytes: about what the largest of them takes up when it is empty, with
/// what the allocator and a list that grows add to that.
const ELEMENT: usize = 256;
/// Permits are of so many bytes, so that their number fits the semaphore.
const UNIT: usize = 1 << 10;

/// What a message costs, in bytes.
pub(super) fn cost(size: usize, elements: usize) -> usize {
    CALL.saturating_add(size.saturating_mul(2)).saturating_add(elements.saturating_mul(ELEMENT))
}

/// The least there must be for messages of so many bytes, in bytes.
pub(crate) fn least_bytes(largest: usize) -> usize {
    cost(largest, 0).saturating_mul(2)
}

/// The bytes that are free.
#[derive(Debug)]
pub(super) struct Budget {
    free: Arc<Semaphore>,
    most: usize,
    /// Counts the calls that find nothing free.
    shed: IntCounter,
}

impl Budget {
    pub(super) fn new(bytes: usize, shed: IntCounter) -> Self {
        Self { free: Arc::new(Semaphore::new(bytes / UNIT)), most: bytes / 2, shed }
    }

    /// What one message may cost: no more than half, so that one alone does not keep out all others.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Charges a call for so many bytes in all, at once; false where they are not free.
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

    /// Waits until so many bytes are free. Whoever waits must not hold any, or two might wait for each other.
    pub(super) fn wait(&self, bytes: usize) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send + use<> {
        let free = Arc::clone(&self.free);
        async move { free.acquire_many_owned(units(bytes) as u32).await.ok() }
    }
}

/// In permits. The most that is ever asked for is half of a budget, which the settings bound.
fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT).min(u32::MAX as usize)
}

/// What a call is charged for, in the extensions of its request. Whatever goes on with the request's content when the call
/// has ended keeps a clone.
#[derive(Debug, Clone, Default)]
pub struct Charge(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Charge {
    /// The one of a request; one of nothing for a request that came by no connection.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// Holds these permits in place of those before.
    pub(super) fn replace(&self, permit: Option<OwnedSemaphorePermit>) {
        *self.lock() = permit;
    }

    /// Whether as much is held.
    pub(super) fn covers(&self, bytes: usize) -> bool {
        self.lock().as_ref().is_some_and(|held| held.num_permits() >= units(bytes))
    }

    /// Gives back what is held beyond so many bytes.
    pub(super) fn reduce(&self, bytes: usize) {
        if let Some(held) = &mut *self.lock() {
            drop(held.split(held.num_permits().saturating_sub(units(bytes))));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        // Nothing panics while it holds the lock.
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
    fn what_is_charged_is_free_again_when_the_last_clone_is_dropped() {
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
    async fn who_waits_gets_what_others_give_back() {
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
