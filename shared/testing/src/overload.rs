//! More calls than a service can serve, and what must hold then.

#![allow(clippy::print_stdout, reason = "what was measured is worth a look, and the runner shows it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{Process, reason};

/// How long there is too much.
const TOO_MUCH: Duration = Duration::from_secs(20);
/// How long it takes to see what is usual.
const LOOK: Duration = Duration::from_secs(2);
/// How soon all is well again after it.
const RECOVERY: Duration = Duration::from_secs(2);
/// The longest that 99 of 100 calls may take that are served: several times what they take else, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much more memory it may take: less than the calls that are too many would, if they waited.
const MEMORY: u64 = 48 << 20;
/// Between two bursts of calls.
const PACE: Duration = Duration::from_millis(5);

/// What became of calls.
#[derive(Debug, Default)]
struct Measured {
    /// How long each took that was served, in order.
    served: Vec<Duration>,
    /// The same of each that was turned away.
    refused: Vec<Duration>,
}

impl Measured {
    fn of(calls: Vec<(Duration, Result<(), Status>)>) -> Self {
        let mut measured = Self::default();
        for (took, ended) in calls {
            match ended {
                Ok(()) => measured.served.push(took),
                Err(status) => {
                    assert_turned_away(&status);
                    measured.refused.push(took);
                }
            }
        }
        measured.served.sort();
        measured.refused.sort();
        measured
    }
}

/// RESOURCE_EXHAUSTED, and when to come again, for programs and for libraries.
fn assert_turned_away(status: &Status) {
    assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "OVERLOADED"), "{status:?}");
    let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    let pushback = retry.expect("no RetryInfo").as_millis().to_string();
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").expect("no pushback"), pushback.as_str());
}

/// The part of a sorted list below which so many of a hundred are.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

async fn timed(call: impl Future<Output = Result<(), Status>>) -> (Duration, Result<(), Status>) {
    let begun = Instant::now();
    let ended = call.await;
    (begun.elapsed(), ended)
}

/// So many callers, each of which calls again at once.
async fn in_turn<F: Future<Output = Result<(), Status>> + Send + 'static>(
    callers: usize,
    time: Duration,
    call: &Arc<impl Fn() -> F + Send + Sync + 'static>,
) -> Measured {
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (begun, call) = (Instant::now(), Arc::clone(call));
        tasks.spawn(async move {
            let mut calls = Vec::new();
            while begun.elapsed() < time {
                calls.push(timed(call()).await);
            }
            calls
        });
    }
    Measured::of(tasks.join_all().await.concat())
}

/// So many calls a second, whatever becomes of those before; and how many were made.
async fn at_a_rate<F: Future<Output = Result<(), Status>> + Send + 'static>(
    rate: f64,
    time: Duration,
    call: &Arc<impl Fn() -> F + Send + Sync + 'static>,
) -> Measured {
    let (begun, mut tasks, mut calls, mut made) = (Instant::now(), JoinSet::new(), Vec::new(), 0);
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while begun.elapsed() < time {
        ticks.tick().await;
        // What a busy machine delays is made up for.
        while (made as f64) < begun.elapsed().as_secs_f64() * rate {
            tasks.spawn(timed(call()));
            made += 1;
        }
        while let Some(ended) = tasks.try_join_next() {
            calls.push(ended.unwrap());
        }
    }
    calls.extend(tasks.join_all().await);
    Measured::of(calls)
}

/// Offers a service that serves `at_once` calls at once ten times what it can do, and holds it to this: those too many are
/// turned away at once and told when to come again, the others are as many as before and hardly slower, its memory does not
/// grow, and soon after it serves as usual. Answers how many calls were served in all.
///
/// What one call costs must be waiting rather than computing, since this machine makes the calls too.
pub async fn withstands_ten_times_too_much<F: Future<Output = Result<(), Status>> + Send + 'static>(
    process: &Process,
    at_once: usize,
    call: impl Fn() -> F + Send + Sync + 'static,
) -> usize {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let call = Arc::new(move || {
        let (call, count) = (call(), Arc::clone(&count));
        async move { call.await.inspect(|()| _ = count.fetch_add(1, Ordering::Relaxed)) }
    });
    // Connections are opened, and caches filled.
    in_turn(at_once, LOOK / 4, &call).await;
    let usual = in_turn(at_once, LOOK, &call).await;
    assert!(usual.refused.is_empty(), "{} were turned away with room for all", usual.refused.len());
    let rate = usual.served.len() as f64 / LOOK.as_secs_f64();
    let before = process.peak_memory();

    let crowded = at_a_rate(10.0 * rate, TOO_MUCH, &call).await;
    let grown = process.peak_memory().saturating_sub(before);
    let [half, most] = [50, 99].map(|percent| percentile(&crowded.served, percent));
    println!(
        "{rate:.0} a second; of ten times that {} were served and {} not; usually in {:?}, now in {half:?}, 99 of 100 in \
         {most:?}, and turned away in {:?}; {} KB more",
        crowded.served.len(),
        crowded.refused.len(),
        percentile(&usual.served, 50),
        percentile(&crowded.refused, 50),
        grown >> 10,
    );
    let all = crowded.served.len() + crowded.refused.len();
    assert!(all as f64 > 8.0 * rate * TOO_MUCH.as_secs_f64(), "this machine makes no more than {all} calls");
    assert!(crowded.served.len() as f64 > 0.5 * rate * TOO_MUCH.as_secs_f64(), "the crowd keeps it from serving");
    assert!(most < PATIENCE, "those who are served wait for those who are too many");
    assert!(percentile(&crowded.refused, 90) < PATIENCE / 2, "those who are too many wait");
    assert!(grown < MEMORY, "those who are too many take up memory");

    let since = Instant::now();
    loop {
        let now = in_turn(at_once, RECOVERY / 8, &call).await;
        let well = now.refused.is_empty() && now.served.len() as f64 > 0.5 * rate * (RECOVERY / 8).as_secs_f64();
        assert!(well || since.elapsed() < RECOVERY, "it does not recover: {now:?}");
        if well {
            return served.load(Ordering::Relaxed);
        }
    }
}
