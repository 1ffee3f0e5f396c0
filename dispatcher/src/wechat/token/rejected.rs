//! The tokens that WeChat rejected.

use std::time::{Duration, Instant};

const REMEMBERED: usize = 4;

/// How long a token is not used after its rejection, if its source gives it still. WeChat sometimes rejects a valid
/// token, and a token server or a file may have no other for hours. A second trial spends nothing.
pub(super) const SECOND_TRIAL: Duration = Duration::from_secs(60);

/// The last tokens that WeChat rejected, latest last.
#[derive(Default)]
pub(super) struct Rejected {
    tokens: Vec<(Box<str>, Instant)>,
    /// How long each rejection counts; `None`: until it is forgotten.
    lasts: Option<Duration>,
}

impl Rejected {
    pub(super) fn lasting(lasts: Option<Duration>) -> Self {
        Self { tokens: Vec::new(), lasts }
    }

    /// Adds a token. Returns false if it was rejected before.
    pub(super) fn add(&mut self, token: &str, now: Instant) -> bool {
        if self.has(token, now) {
            return false;
        }
        self.tokens.retain(|(known, _)| **known != *token);
        if self.tokens.len() == REMEMBERED {
            self.tokens.remove(0);
        }
        self.tokens.push((token.into(), now));
        true
    }

    pub(super) fn has(&self, token: &str, now: Instant) -> bool {
        let counts = |at: Instant| self.lasts.is_none_or(|lasts| now.saturating_duration_since(at) < lasts);
        self.tokens.iter().any(|(known, at)| **known == *token && counts(*at))
    }

    pub(super) fn last(&self) -> Option<Box<str>> {
        self.tokens.last().map(|(token, _)| token.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejection_counts_until_the_second_trial_or_until_it_is_forgotten() {
        let start = Instant::now();
        let (mut forever, mut paced) = (Rejected::default(), Rejected::lasting(Some(SECOND_TRIAL)));
        for rejected in [&mut forever, &mut paced] {
            assert!(rejected.add("a", start) && rejected.add("b", start) && !rejected.add("a", start));
            assert!(rejected.has("a", start + SECOND_TRIAL / 2) && !rejected.has("c", start));
            assert_eq!(rejected.last().as_deref(), Some("b"));
        }
        let later = start + SECOND_TRIAL;
        assert!(forever.has("a", later) && !paced.has("a", later));
        assert!(paced.add("a", later) && paced.has("a", later) && !paced.has("b", later));
        assert_eq!(paced.last().as_deref(), Some("a"));
        assert!(["c", "d", "e"].iter().all(|token| forever.add(token, later)));
        assert!(!forever.has("a", later) && forever.has("b", later));
    }
}
