//! When a broadcast stops by itself: several messages in a row refused for what is in them, or too many failures among
//! the last 1000. (What condemns the whole app stops it at the first answer; see `ending`.)

use std::collections::VecDeque;

/// So many messages in a row, over all replicas, that WeChat refuses for what is in them stop a broadcast. The first
/// could be a fluke: 40037 was seen to pass.
pub const STREAK: u32 = 5;

/// How many of the last messages the ratio is taken of.
const WINDOW: usize = 1000;

/// With fewer than this the ratio says nothing.
const ENOUGH: usize = 100;

/// The last messages of a broadcast on this replica.
#[derive(Debug)]
pub struct Window {
    most: f64,
    last: VecDeque<bool>,
    failed: usize,
}

impl Window {
    /// `most` is the part that may fail.
    pub fn new(most: f64) -> Self {
        Self { most, last: VecDeque::new(), failed: 0 }
    }

    /// Notes one more message; true when too many have failed.
    pub fn note(&mut self, failed: bool) -> bool {
        self.last.push_back(failed);
        self.failed += usize::from(failed);
        if self.last.len() > WINDOW {
            self.failed -= usize::from(self.last.pop_front() == Some(true));
        }
        self.last.len() >= ENOUGH && self.failed as f64 > self.most * self.last.len() as f64
    }

    /// Begins anew: who resumes a broadcast has looked at what failed before.
    pub fn clear(&mut self) {
        self.last.clear();
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_all_failing_is_borne_and_more_is_not() {
        let mut window = Window::new(0.5);
        for _ in 0..ENOUGH / 2 {
            assert!(!window.note(true));
            assert!(!window.note(false));
        }
        assert!(window.note(true));
        window.clear();
        assert!(!window.note(true));
    }

    #[test]
    fn a_few_say_nothing_and_what_is_long_past_is_forgotten() {
        let mut window = Window::new(0.5);
        assert!((0..ENOUGH - 1).all(|_| !window.note(true)));
        window.clear();
        assert!((0..10 * WINDOW).all(|_| !window.note(false)));
        assert!((0..WINDOW / 2).all(|_| !window.note(true)));
        assert!(window.note(true));
    }
}
