//! Stop rules: when a broadcast pauses by itself. Several messages in a row were refused because of their content, too
//! many of the last 1000 failed, or too many were refused with 43101, which WeChat at times answers to most messages of a
//! mass send although few users refuse them. A code that stops the whole app pauses the broadcast at the first answer, see
//! `completion`.

use std::collections::VecDeque;

/// Number of messages in a row, over all replicas, refused because of their content that pauses a broadcast. A single
/// refusal could be accidental: 40037 has been seen to be temporary.
pub const STREAK: u32 = 5;

/// Number of messages that a ratio is computed over.
const WINDOW: usize = 1000;

/// Minimum number of messages for a meaningful ratio.
const MIN_MESSAGES: usize = 100;

/// Which of the last messages of a broadcast on this replica count against it.
#[derive(Debug)]
pub struct Window {
    max_ratio: f64,
    last: VecDeque<bool>,
    counted: usize,
}

impl Window {
    pub fn new(max_ratio: f64) -> Self {
        Self { max_ratio, last: VecDeque::new(), counted: 0 }
    }

    /// Records one message. Returns true if too many count.
    pub fn note(&mut self, counts: bool) -> bool {
        self.last.push_back(counts);
        self.counted += usize::from(counts);
        if self.last.len() > WINDOW {
            self.counted -= usize::from(self.last.pop_front() == Some(true));
        }
        self.last.len() >= MIN_MESSAGES && self.counted as f64 > self.max_ratio * self.last.len() as f64
    }

    /// Clears the window: when a caller resumes a broadcast, earlier messages no longer count.
    pub fn clear(&mut self) {
        self.last.clear();
        self.counted = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_failures_than_the_ratio_stop_a_broadcast() {
        let mut window = Window::new(0.5);
        for _ in 0..MIN_MESSAGES / 2 {
            assert!(!window.note(true));
            assert!(!window.note(false));
        }
        assert!(window.note(true));
        window.clear();
        assert!(!window.note(true));
    }

    #[test]
    fn few_messages_do_not_count_and_old_ones_are_dropped() {
        let mut window = Window::new(0.5);
        assert!((0..MIN_MESSAGES - 1).all(|_| !window.note(true)));
        window.clear();
        assert!((0..10 * WINDOW).all(|_| !window.note(false)));
        assert!((0..WINDOW / 2).all(|_| !window.note(true)));
        assert!(window.note(true));
    }
}
