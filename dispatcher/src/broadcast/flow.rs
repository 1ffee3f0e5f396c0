//! How many messages of a broadcast a replica has in flight: few at first, more with each one that is delivered, half as
//! many when WeChat asks to go slower or does not answer, and next to none while it cannot be reached.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// How long after a cut the next one counts: what was in flight already tells nothing new.
const CUT_PAUSE: Duration = Duration::from_millis(100);

/// The first and the longest time without any message, while WeChat cannot be reached.
const CLOSED: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The bound on what is in flight.
#[derive(Debug)]
pub struct Flow {
    most: f64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    cap: f64,
    /// Growing by one with each delivery, until the first cut; then by one with each round.
    steep: bool,
    in_flight: usize,
    cut_at: Option<Instant>,
    closed_until: Option<Instant>,
    closed_for: Duration,
}

/// A message's place in flight, given back when dropped.
#[derive(Debug)]
pub struct Place {
    flow: Arc<Flow>,
}

impl Flow {
    /// One message at first, and never more than `most`.
    pub fn new(most: usize) -> Self {
        let state =
            State { cap: 1.0, steep: true, in_flight: 0, cut_at: None, closed_until: None, closed_for: CLOSED.0 };
        Self { most: most.max(1) as f64, state: Mutex::new(state), changed: Notify::new() }
    }

    /// A place in flight, or how long there is none whatever happens; none at all means until [`Flow::changed`].
    pub fn enter(self: &Arc<Self>) -> Result<Place, Option<Duration>> {
        let mut state = self.state();
        if let Some(until) = state.closed_until {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Err(Some(left));
            }
            state.closed_until = None;
        }
        if state.in_flight as f64 >= state.cap.floor() {
            return Err(None);
        }
        state.in_flight += 1;
        Ok(Place { flow: Arc::clone(self) })
    }

    /// Ends when a place may have become free. One waiter is woken for one place.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// How many messages may be in flight now.
    pub fn cap(&self) -> usize {
        self.state().cap as usize
    }

    /// A message was delivered at once.
    pub fn delivered(&self) {
        let mut state = self.state();
        let growth = if state.steep { 1.0 } else { 1.0 / state.cap };
        state.cap = (state.cap + growth).min(self.most);
        state.closed_for = CLOSED.0;
        drop(state);
        self.changed.notify_one();
    }

    /// WeChat asked to go slower, or did not answer.
    pub fn congested(&self) {
        let mut state = self.state();
        if state.cut_at.is_some_and(|at| at.elapsed() < CUT_PAUSE) {
            return;
        }
        state.cut_at = Some(Instant::now());
        state.steep = false;
        state.cap = (state.cap / 2.0).max(1.0);
    }

    /// WeChat refused a message for what is in it: the next one goes alone.
    pub fn one_at_a_time(&self) {
        let mut state = self.state();
        state.cap = 1.0;
        state.steep = true;
    }

    /// All tries of a message came to nothing: no more for a while, longer each time.
    pub fn close(&self) {
        let mut state = self.state();
        state.cap = 1.0;
        state.steep = true;
        let now = Instant::now();
        // Messages that ended together close it once.
        if state.closed_until.is_none_or(|until| until <= now) {
            state.closed_until = Some(now + state.closed_for);
            state.closed_for = (state.closed_for * 2).min(CLOSED.1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers, whole at any moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.flow.state().in_flight -= 1;
        self.flow.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(flow: &Arc<Flow>) -> Vec<Place> {
        std::iter::from_fn(|| flow.enter().ok()).collect()
    }

    #[test]
    fn it_begins_with_one_and_grows_with_what_is_delivered_up_to_the_most() {
        let flow = Arc::new(Flow::new(4));
        for expected in [1, 2, 3, 4, 4] {
            assert_eq!(places(&flow).len(), expected);
            flow.delivered();
        }
    }

    #[test]
    fn congestion_halves_it_once_for_all_that_was_in_flight_and_it_grows_back_slowly() {
        let flow = Arc::new(Flow::new(64));
        (0..63).for_each(|_| flow.delivered());
        assert_eq!(flow.cap(), 64);
        flow.congested();
        flow.congested();
        assert_eq!(flow.cap(), 32);
        (0..32).for_each(|_| flow.delivered());
        assert!((32..=33).contains(&flow.cap()), "{}", flow.cap());
    }

    #[test]
    fn while_nothing_gets_through_it_is_closed_for_longer_and_longer() {
        let flow = Arc::new(Flow::new(64));
        flow.close();
        let Err(Some(first)) = flow.enter() else { panic!("it is open") };
        assert!(first <= CLOSED.0);
        flow.close();
        let Err(Some(same)) = flow.enter() else { panic!("it is open") };
        assert!(same <= first, "messages that end together close it once");
        flow.state().closed_until = None;
        flow.close();
        let Err(Some(second)) = flow.enter() else { panic!("it is open") };
        assert!(second > CLOSED.0 && second <= 2 * CLOSED.0);
    }

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let flow = Arc::new(Flow::new(1));
        let place = flow.enter().unwrap();
        assert!(matches!(flow.enter(), Err(None)));
        drop(place);
        assert!(flow.enter().is_ok());
    }
}
