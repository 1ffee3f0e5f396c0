//! Adaptive limit of the messages of a broadcast in flight on a replica (AIMD: additive increase, multiplicative
//! decrease). It starts at one and grows with each delivery. It is halved when WeChat asks to slow down or does not
//! answer, and is nearly zero while WeChat cannot be reached.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Minimum time between two cuts: messages that were already in flight say nothing new.
const CUT_PAUSE: Duration = Duration::from_millis(100);

/// First and longest time without any send while WeChat cannot be reached.
const CLOSED: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

#[derive(Debug)]
pub struct AdaptiveLimit {
    max: f64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    cap: f64,
    /// True until the first cut: the limit grows by one per delivery. After it: by one per round of deliveries.
    slow_start: bool,
    in_flight: usize,
    cut_at: Option<Instant>,
    closed_until: Option<Instant>,
    closed_for: Duration,
}

impl State {
    fn reopens_in(&self) -> Option<Duration> {
        let left = self.closed_until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

/// The slot of a message in flight, released on drop.
#[derive(Debug)]
pub struct Slot {
    limit: Arc<AdaptiveLimit>,
}

impl AdaptiveLimit {
    /// Starts with one message, and never permits more than `max`.
    pub fn new(max: usize) -> Self {
        let state =
            State { cap: 1.0, slow_start: true, in_flight: 0, cut_at: None, closed_until: None, closed_for: CLOSED.0 };
        Self { max: max.max(1) as f64, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Takes a slot. Without a free slot, returns how long the limit is closed, or `None` if it is open: then wait for
    /// [`AdaptiveLimit::changed`].
    pub fn enter(self: &Arc<Self>) -> Result<Slot, Option<Duration>> {
        let mut state = self.state();
        if let Some(left) = state.reopens_in() {
            return Err(Some(left));
        }
        state.closed_until = None;
        if state.in_flight as f64 >= state.cap.floor() {
            return Err(None);
        }
        state.in_flight += 1;
        Ok(Slot { limit: Arc::clone(self) })
    }

    /// How long the limit stays closed; `None` if it is open.
    pub fn reopens_in(&self) -> Option<Duration> {
        self.state().reopens_in()
    }

    /// Completes when a slot may be free. One waiter is woken per slot.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub fn cap(&self) -> usize {
        self.state().cap as usize
    }

    /// A message was delivered without congestion.
    pub fn delivered(&self) {
        let mut state = self.state();
        let growth = if state.slow_start { 1.0 } else { 1.0 / state.cap };
        state.cap = (state.cap + growth).min(self.max);
        state.closed_for = CLOSED.0;
        drop(state);
        self.changed.notify_one();
    }

    /// WeChat asked to slow down, or did not answer.
    pub fn congested(&self) {
        let mut state = self.state();
        if state.cut_at.is_some_and(|at| at.elapsed() < CUT_PAUSE) {
            return;
        }
        state.cut_at = Some(Instant::now());
        state.slow_start = false;
        state.cap = (state.cap / 2.0).max(1.0);
    }

    /// WeChat refused a message because of its content: the next one is sent alone.
    pub fn one_at_a_time(&self) {
        let mut state = self.state();
        state.cap = 1.0;
        state.slow_start = true;
    }

    /// All attempts of a message failed: closes the limit for some time, longer each time.
    pub fn close(&self) {
        let mut state = self.state();
        state.cap = 1.0;
        state.slow_start = true;
        let now = Instant::now();
        // Messages that ended together close it only once.
        if state.closed_until.is_none_or(|until| until <= now) {
            state.closed_until = Some(now + state.closed_for);
            state.closed_for = (state.closed_for * 2).min(CLOSED.1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers, consistent at any moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.limit.state().in_flight -= 1;
        self.limit.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(limit: &Arc<AdaptiveLimit>) -> Vec<Slot> {
        std::iter::from_fn(|| limit.enter().ok()).collect()
    }

    #[test]
    fn limit_starts_at_one_and_grows_with_deliveries_to_the_maximum() {
        let limit = Arc::new(AdaptiveLimit::new(4));
        for expected in [1, 2, 3, 4, 4] {
            assert_eq!(slots(&limit).len(), expected);
            limit.delivered();
        }
    }

    #[test]
    fn congestion_halves_the_limit_once_and_it_grows_back_slowly() {
        let limit = Arc::new(AdaptiveLimit::new(64));
        (0..63).for_each(|_| limit.delivered());
        assert_eq!(limit.cap(), 64);
        limit.congested();
        limit.congested();
        assert_eq!(limit.cap(), 32);
        (0..32).for_each(|_| limit.delivered());
        assert!((32..=33).contains(&limit.cap()), "{}", limit.cap());
    }

    #[test]
    fn limit_is_closed_longer_each_time_wechat_cannot_be_reached() {
        let limit = Arc::new(AdaptiveLimit::new(64));
        limit.close();
        let Err(Some(first)) = limit.enter() else { panic!("the limit is open") };
        assert!(first <= CLOSED.0);
        limit.close();
        let Err(Some(same)) = limit.enter() else { panic!("the limit is open") };
        assert!(same <= first, "messages that end together close the limit once");
        limit.state().closed_until = None;
        limit.close();
        let Err(Some(second)) = limit.enter() else { panic!("the limit is open") };
        assert!(second > CLOSED.0 && second <= 2 * CLOSED.0);
    }

    #[test]
    fn dropped_slot_is_free_again() {
        let limit = Arc::new(AdaptiveLimit::new(1));
        let slot = limit.enter().unwrap();
        assert!(matches!(limit.enter(), Err(None)));
        drop(slot);
        assert!(limit.enter().is_ok());
    }
}
