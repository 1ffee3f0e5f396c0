//! Overload: more calls than a service accepts at the same time, and the properties that must hold then. The benchmark
//! measures the speed in that case.

use std::time::Duration;

use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::patience::Wait;
use crate::{Process, reason};

/// Number of calls beyond the limit, in total and at a time. So many that a leak of 10 kB for each of them exceeds
/// `MEMORY`.
const TOO_MANY: usize = 4000;
const AT_A_TIME: usize = 400;
/// How much the memory of the service may grow by these calls, in bytes.
const MEMORY: u64 = 32 << 20;

/// Asserts RESOURCE_EXHAUSTED with the reason OVERLOADED, and a retry delay both in RetryInfo and in
/// `grpc-retry-pushback-ms`, the header that gRPC libraries read.
pub fn assert_overloaded(status: &Status) {
    assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "OVERLOADED"), "{status:?}");
    let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    let pushback = retry.expect("no RetryInfo").as_millis().to_string();
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").expect("no pushback"), pushback.as_str());
}

/// Calls in progress.
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

    /// Waits for the end of `count` calls. Returns how many were served, and asserts that the others were rejected as
    /// overload.
    async fn end(&mut self, count: usize) -> usize {
        let mut served = 0;
        for _ in 0..count {
            match self.pending.join_next().await.expect("fewer calls in progress than expected").unwrap() {
                Ok(()) => served += 1,
                Err(status) => assert_overloaded(&status),
            }
        }
        served
    }
}

/// Makes far more calls than the `at_once` that a service accepts at the same time, while no accepted call can end.
/// Asserts that calls beyond the limit do not wait but are rejected with a retry delay, that the memory of the service
/// does not grow with them, that the accepted calls are served, and that the service then accepts as many calls as
/// before. Returns how many calls were served in total.
///
/// From `hold` until `release` no accepted call may be able to end.
pub async fn refuses_what_is_too_many<F: Future<Output = Result<(), Status>> + Send + 'static>(
    process: &Process,
    at_once: usize,
    call: impl Fn() -> F,
    hold: impl FnOnce(),
    release: impl FnOnce(),
) -> usize {
    let mut calls = Calls { call, pending: JoinSet::new() };
    calls.begin(at_once);
    assert_eq!(calls.end(at_once).await, at_once, "calls within the limit were rejected");
    let mut served = at_once;

    hold();
    calls.begin(at_once);
    let mut before = None;
    for _ in 0..TOO_MANY / AT_A_TIME {
        calls.begin(AT_A_TIME);
        // No accepted call can end, so a call that waited would never end either.
        assert_eq!(calls.end(AT_A_TIME).await, 0, "a call beyond the limit was served");
        // Measured after the first calls, which allocate everything that is allocated only once.
        before.get_or_insert_with(|| process.peak_memory());
    }
    let grown = process.peak_memory().saturating_sub(before.unwrap_or_default());
    assert!(grown < MEMORY, "rejected calls took {} KB of memory", grown >> 10);

    release();
    assert_eq!(calls.end(at_once).await, at_once, "accepted calls were not served");
    served += at_once;
    // The slot of a call becomes free a moment after its response was read.
    let mut wait = Wait::new("the service accepts as many calls as before", Duration::from_secs(10));
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
