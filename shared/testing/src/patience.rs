//! Waits without a timeout, because durations depend on the machine. The test runner ends a test that hangs.

use std::time::{Duration, Instant};

/// Prints a line that the test runner shows if the test fails, or if it is ended because it hangs.
#[allow(clippy::print_stderr, reason = "printing is the purpose of this function")]
pub fn note(line: &str) {
    eprintln!("{line}");
}

/// A wait for a condition. It prints the condition when the wait takes long.
pub(crate) struct Wait<'a> {
    what: &'a str,
    since: Instant,
    /// When it prints next, measured from the beginning.
    next: Duration,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(what: &'a str, usual: Duration) -> Self {
        Self { what, since: Instant::now(), next: usual }
    }

    /// Call this each time the condition does not hold.
    pub(crate) fn check(&mut self) {
        let waited = self.since.elapsed();
        if waited > self.next {
            note(&format!("still waiting after {waited:.1?}: {}", self.what));
            self.next = waited * 2;
        }
    }
}
