//! More calls than a service takes at once, and what must hold then. How fast it is then is the benchmark's to say.

use std::time::Duration;

use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::patience::Wait;
use crate::{Process, reason};

/// How many calls are too many, in all and at once. Each that is refused and leaves 8 kB behind shows in the memory.
const TOO_MANY: usize = 4000;
const AT_A_TIME: usize = 400;
/// How much more memory the service may take for them.
const MEMORY: u64 = 32 << 20;

/// RESOURCE_EXHAUSTED, and when to come again, for programs and for libraries.
pub fn assert_overloaded(status: &Status) {
    assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "OVERLOADED"), "{status:?}");
    let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    let pushback = retry.expect("no RetryInfo").as_millis().to_string();
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").expect("no pushback"), pushback.as_str());
}

/// Calls that were begun together.
struct Calls<F> {
    call: F,
    pending: JoinSet<Result<(), Status>>,
}

impl<R: Future<Output = Result<(), Status>> + Send + 'static, F: Fn() -> R> Calls<F> {
    fn begin(&mut self, count: usize) {
        for _ in 0..count {
            self.pending.spawn((self.call)());
        }
    }

    /// Waits for the end of so many; how many of them were served. The others must have been refused as they should.
    async fn end(&mut self, count: usize) -> usize {
        let mut served = 0;
        for _ in 0..count {
            match self.pending.join_next().await.expect("a call is missing").unwrap() {
                Ok(()) => served += 1,
                Err(status) => assert_overloaded(&status),
            }
        }
        served
    }
}

/// Makes far more calls than the `at_once` that a service takes at once, while none of these can end, and holds it to this:
/// those that are too many do not wait for the others, they are refused and told when to come again; the memory of the
/// service does not grow with them; those that it took are served, and then it takes as many as before. Answers how many
/// calls were served in all.
///
/// From `hold` on no call may be able to end that was taken, until `release`.
pub async fn refuses_what_is_too_many<F: Future<Output = Result<(), Status>> + Send + 'static>(
    process: &Process,
    at_once: usize,
    call: impl Fn() -> F,
    hold: impl FnOnce(),
    release: impl FnOnce(),
) -> usize {
    let mut calls = Calls { call, pending: JoinSet::new() };
    calls.begin(at_once);
    assert_eq!(calls.end(at_once).await, at_once, "with room for all, some were refused");
    let mut served = at_once;

    hold();
    calls.begin(at_once);
    let mut before = None;
    for _ in 0..TOO_MANY / AT_A_TIME {
        calls.begin(AT_A_TIME);
        // Since no call that was taken can end, these never would if they waited.
        assert_eq!(calls.end(AT_A_TIME).await, 0, "a call ended that could not");
        // The first calls have opened what there is to be opened.
        before.get_or_insert_with(|| process.peak_memory());
    }
    let grown = process.peak_memory().saturating_sub(before.unwrap_or_default());
    assert!(grown < MEMORY, "calls that were refused took {} KB of memory", grown >> 10);

    release();
    assert_eq!(calls.end(at_once).await, at_once, "calls that were taken were not served");
    served += at_once;
    // A place is free again a moment after its answer was read.
    let mut wait = Wait::new("it takes as many calls as before", Duration::from_secs(10));
    loop {
        calls.begin(at_once);
        let now = calls.end(at_once).await;
        served += now;
        if now == at_once {
            return served;
        }
        wait.check();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
