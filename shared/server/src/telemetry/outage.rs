//! Logs work that is retried until it succeeds: one line when it begins to fail and one when it succeeds again,
//! independently of the number of messages and attempts. Each failed attempt increments a counter, and is logged at
//! `debug`.
//!
//! The code that retries reports each attempt to an [`Operation`] of an [`Outage`]. Operations of the same kind of work
//! share an outage. An outage begins with the first failure of any operation. It ends once an operation has succeeded
//! since the last failure, no operation is failing, and nothing has failed for [`QUIET`].

use std::borrow::Cow;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{Error, IntCounter, IntCounterVec};
use tokio::runtime::Handle;
use tracing::field::display;
use tracing::{debug, info, warn};

use crate::telemetry::metrics::registry::Registry;
use domain::AppId;

/// How long nothing must fail before an outage ends, so that an intermittent fault does not log two lines each time.
/// Besides, the operations that wait for Redis or WeChat do not all recover at the same moment.
pub const QUIET: Duration = Duration::from_secs(5);

/// Creates the outages of a service. One metric counts the failed attempts of all of them. Default: not counted.
#[derive(Debug, Clone, Default)]
pub struct Outages {
    failures: Option<IntCounterVec>,
}

impl Outages {
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let help = "Failed attempts of work that is retried until it succeeds, by kind of work";
        Ok(Self { failures: Some(registry.counters("formid_retries_total", help, &["operation"])?) })
    }

    /// Creates an outage for one kind of work. `begins` and `ends` are the log messages.
    pub fn outage(&self, operation: &'static str, begins: impl Into<Text>, ends: impl Into<Text>) -> Outage {
        Outage::new(operation, None, begins.into(), ends.into(), self.counter(operation), QUIET)
    }

    /// Creates an outage for the work of one app. The calls of one app may fail while those of others succeed.
    pub fn outage_of(&self, app: &AppId, operation: &'static str, begins: &'static str, ends: &'static str) -> Outage {
        Outage::new(operation, Some(app.clone()), begins.into(), ends.into(), self.counter(operation), QUIET)
    }

    /// Creates an outage that ends with the first success: for a single loop that pauses between two attempts.
    pub fn loop_outage(&self, operation: &'static str, begins: impl Into<Text>, ends: impl Into<Text>) -> Outage {
        Outage::new(operation, None, begins.into(), ends.into(), self.counter(operation), Duration::ZERO)
    }

    fn counter(&self, operation: &str) -> Option<IntCounter> {
        self.failures.as_ref().map(|failures| failures.with_label_values(&[operation]))
    }
}

/// The log message for the beginning or the end of an outage.
pub type Text = Cow<'static, str>;

/// One kind of work that may fail for a while. Clones share the state.
#[derive(Debug, Clone)]
pub struct Outage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    operation: &'static str,
    app: Option<AppId>,
    begins: Text,
    ends: Text,
    failures: Option<IntCounter>,
    quiet: Duration,
    /// Whether there is an episode. As long as nothing fails, a success costs only this check.
    open: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of operations whose last attempt failed.
    failing: u64,
    episode: Option<Episode>,
}

/// The time from the first failure until the work succeeds again.
#[derive(Debug)]
struct Episode {
    begun: Instant,
    last_failure: Instant,
    /// The first success since the last failure.
    recovered: Option<Instant>,
    /// Whether a task waits for the end of the episode.
    watched: bool,
    concerned: u64,
    failures: u64,
    given_up: u64,
}

enum Progress {
    /// Still failing, or there is no episode.
    Failing,
    /// It ends at this time, unless something fails before.
    OverAt(Instant),
    Over(Episode),
}

impl Outage {
    /// Creates an outage that is not part of [`Outages`]. Without a counter, its failures are only logged.
    pub fn new(
        operation: &'static str,
        app: Option<AppId>,
        begins: Text,
        ends: Text,
        failures: Option<IntCounter>,
        quiet: Duration,
    ) -> Self {
        let (open, state) = (AtomicBool::new(false), Mutex::default());
        Self(Arc::new(Inner { operation, app, begins, ends, failures, quiet, open, state }))
    }

    /// Starts an operation that is retried until it succeeds.
    pub fn operation(&self) -> Operation {
        self.operation_for(1)
    }

    /// Starts an operation that concerns this many messages.
    pub fn operation_for(&self, messages: usize) -> Operation {
        Operation { outage: self.clone(), weight: messages as u64, failing: false }
    }

    /// Reports a failure that is not part of an [`Operation`].
    pub fn failed(&self, error: &dyn Display) {
        let begins = self.note_failure(1);
        self.log_failure(begins, error);
    }

    /// Reports a success. Returns whether it ended an outage immediately.
    pub fn succeeded(&self) -> bool {
        if !self.0.open.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state();
        let now = Instant::now();
        if state.failing == 0
            && let Some(episode) = &mut state.episode
        {
            episode.recovered.get_or_insert(now);
        }
        match self.progress(&mut state, now) {
            Progress::Failing => false,
            Progress::Over(episode) => {
                drop(state);
                self.log_end(&episode);
                true
            }
            Progress::OverAt(_) => {
                if let (Some(episode), Ok(runtime)) = (&mut state.episode, Handle::try_current())
                    && !std::mem::replace(&mut episode.watched, true)
                {
                    runtime.spawn(self.clone().watch());
                }
                false
            }
        }
    }

    /// Waits for the end of an episode that recovered. Returns at its end, or when something fails again.
    async fn watch(self) {
        loop {
            match self.watched(Instant::now()) {
                Progress::OverAt(at) => tokio::time::sleep_until(at.into()).await,
                Progress::Over(episode) => return self.log_end(&episode),
                Progress::Failing => return,
            }
        }
    }

    /// Returns the progress for the waiting task, which ends if something fails again.
    fn watched(&self, now: Instant) -> Progress {
        let mut state = self.state();
        let progress = self.progress(&mut state, now);
        if let (Progress::Failing, Some(episode)) = (&progress, &mut state.episode) {
            episode.watched = false;
        }
        progress
    }

    fn progress(&self, state: &mut State, now: Instant) -> Progress {
        let over_at = match &state.episode {
            Some(episode) if state.failing == 0 && episode.recovered.is_some() => episode.last_failure + self.0.quiet,
            _ => return Progress::Failing,
        };
        if now < over_at {
            return Progress::OverAt(over_at);
        }
        self.0.open.store(false, Ordering::Relaxed);
        state.episode.take().map_or(Progress::Failing, Progress::Over)
    }

    /// Counts a failure. Returns whether it begins an outage. `concerned` is the number of messages for which it is the
    /// first failure.
    fn note_failure(&self, concerned: u64) -> bool {
        if let Some(failures) = &self.0.failures {
            failures.inc();
        }
        let mut state = self.state();
        let now = Instant::now();
        let begins = state.episode.is_none();
        let episode = state.episode.get_or_insert(Episode {
            begun: now,
            last_failure: now,
            recovered: None,
            watched: false,
            concerned: 0,
            failures: 0,
            given_up: 0,
        });
        episode.last_failure = now;
        episode.recovered = None;
        episode.concerned += concerned;
        episode.failures += 1;
        self.0.open.store(true, Ordering::Relaxed);
        begins
    }

    fn log_failure(&self, begins: bool, error: &dyn Display) {
        let Inner { operation, app, begins: text, .. } = &*self.0;
        let app = app.as_ref().map(display);
        if begins {
            warn!(app, operation, %error, "{text}");
        } else {
            debug!(app, operation, %error, "{text}");
        }
    }

    fn log_end(&self, episode: &Episode) {
        let Inner { operation, app, ends, .. } = &*self.0;
        let Episode { begun, recovered, concerned, failures, given_up, .. } = episode;
        let seconds = recovered.unwrap_or(*begun).duration_since(*begun).as_secs_f64();
        let seconds = (seconds * 1000.0).round() / 1000.0;
        let app = app.as_ref().map(display);
        let given_up = (*given_up > 0).then_some(*given_up);
        info!(app, operation, concerned, failures, given_up, seconds, "{ends}");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers that are consistent at any moment, so a poisoned lock is harmless.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation that is retried until it succeeds. If it is dropped while it is failing, it counts as given up.
#[derive(Debug)]
pub struct Operation {
    outage: Outage,
    weight: u64,
    failing: bool,
}

impl Operation {
    pub fn note<T, E: Display>(&mut self, attempt: &Result<T, E>) {
        match attempt {
            Ok(_) => _ = self.succeeded(),
            Err(error) => self.failed(error),
        }
    }

    pub fn failed(&mut self, error: &dyn Display) {
        let begins = self.fails();
        self.outage.log_failure(begins, error);
    }

    /// Like [`Operation::failed`], but the caller logs the beginning of the outage. Returns whether an outage begins.
    pub fn fails(&mut self) -> bool {
        let first = !std::mem::replace(&mut self.failing, true);
        if first {
            self.outage.state().failing += 1;
        }
        self.outage.note_failure(if first { self.weight } else { 0 })
    }

    /// Reports a successful attempt. Returns whether it ended an outage immediately.
    pub fn succeeded(&mut self) -> bool {
        if std::mem::replace(&mut self.failing, false) {
            self.outage.state().failing -= 1;
        }
        self.outage.succeeded()
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.failing {
            let mut state = self.outage.state();
            state.failing -= 1;
            if let Some(episode) = &mut state.episode {
                episode.given_up += self.weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Captures the log of this thread.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn start() -> (Self, tracing::subscriber::DefaultGuard) {
            let log = Self::default();
            let writer = log.clone();
            let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
            (log, tracing::subscriber::set_default(lines))
        }

        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
        }
    }

    fn outage(quiet: Duration) -> Outage {
        let failures = IntCounter::new("failures_total", "test").unwrap();
        Outage::new("settle", None, "it fails".into(), "it works again".into(), Some(failures), quiet)
    }

    #[test]
    fn outage_of_many_operations_logs_one_line_at_each_end() {
        let (log, _guard) = Log::start();
        let outage = outage(Duration::ZERO);
        assert!(!outage.succeeded() && log.lines().is_empty(), "a success is not logged where nothing failed");
        let mut operations: Vec<_> = (0..100).map(|_| outage.operation_for(3)).collect();
        for _ in 0..10 {
            operations.iter_mut().for_each(|operation| operation.failed(&"refused"));
        }
        assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
        assert!(log.lines()[0].contains("WARN") && log.lines()[0].contains("refused"), "{:?}", log.lines());
        operations.drain(..40);
        operations.iter_mut().for_each(|operation| _ = operation.succeeded());
        assert_eq!(log.lines().len(), 2, "{:?}", log.lines());
        for fact in ["it works again", "concerned=300", "failures=1000", "given_up=120"] {
            assert!(log.lines()[1].contains(fact), "{fact} in {}", log.lines()[1]);
        }
        assert_eq!(outage.0.failures.as_ref().unwrap().get(), 1000);
    }

    #[test]
    fn outage_lasts_while_any_operation_is_failing() {
        let (log, _guard) = Log::start();
        let outage = outage(Duration::ZERO);
        let (mut one, mut other) = (outage.operation(), outage.operation());
        one.failed(&"refused");
        assert!(!other.succeeded());
        outage.failed(&"refused");
        assert!(!outage.succeeded());
        assert_eq!(log.lines().len(), 1);
        assert!(one.succeeded());
        assert!(log.lines()[1].contains("concerned=2"), "{:?}", log.lines());
        // The operation is given up without a success, so the outage lasts until something succeeds.
        one.failed(&"refused");
        drop(one);
        assert_eq!(log.lines().len(), 3);
        assert!(other.succeeded() && log.lines()[3].contains("given_up=1"), "{:?}", log.lines());
    }

    #[tokio::test]
    async fn intermittent_fault_is_one_outage_that_ends_by_itself() {
        let (log, _guard) = Log::start();
        let outage = outage(Duration::from_millis(300));
        for _ in 0..50 {
            outage.failed(&"refused");
            assert!(!outage.succeeded());
        }
        assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
        while log.lines().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(log.lines()[1].contains("concerned=50"), "{:?}", log.lines());
        assert!(outage.state().episode.is_none());
    }
}
