//! Waiting without a limit. How long something takes is up to the machine; the test runner ends a test that hangs.

use std::time::{Duration, Instant};

/// Writes a line that the test runner shows when the test fails, or is ended because it hangs.
#[allow(clippy::print_stderr, reason = "that is what it is for")]
pub fn note(line: &str) {
    eprintln!("{line}");
}

/// A wait for something; it prints what is waited for when that takes long.
pub(crate) struct Wait<'a> {
    what: &'a str,
    since: Instant,
    /// When it prints next, counted from the beginning.
    next: Duration,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(what: &'a str, usual: Duration) -> Self {
        Self { what, since: Instant::now(), next: usual }
    }

    /// To be called each time the condition does not hold.
    pub(crate) fn check(&mut self) {
        let waited = self.since.elapsed();
        if waited > self.next {
            note(&format!("still waiting after {waited:.1?}: {}", self.what));
            self.next = waited * 2;
        }
    }
}
