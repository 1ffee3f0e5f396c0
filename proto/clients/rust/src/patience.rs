//! Retries of calls. tonic itself retries nothing: it has no service config.

use std::time::{Duration, Instant};

use tonic::{Response, Status};

use crate::problem::Problem;
use crate::replicas::{Replica, Replicas};

/// The backoff before the second attempt. It doubles from there.
const BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Makes a call that is safe to repeat, and retries it for up to `patience`. Each attempt goes to the next replica.
pub async fn patiently<Q: Clone, A, F: Future<Output = Result<Response<A>, Status>>>(
    replicas: &Replicas,
    request: Q,
    call: impl Fn(Replica, Q) -> F,
    patience: Duration,
    tell: impl Fn(String),
) -> Result<A, Problem> {
    let (begun, mut backoff, mut elsewhere) = (Instant::now(), BACKOFF, false);
    loop {
        let (address, replica) = replicas.next().await;
        let problem = match call(replica, request.clone()).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => Problem::from(status),
        };
        if problem.is_of_the_replica() {
            replicas.avoid(address);
        }
        // Only once without a wait: if all replicas are down, an immediate retry is useless.
        if problem.never_left() && !elsewhere {
            elsewhere = true;
            continue;
        }
        // Jitter: callers should not all retry at the same moment.
        let wait = problem.retry_after.unwrap_or(backoff).mul_f64(rand::random_range(1.0..1.25));
        backoff = (2 * backoff).min(LONGEST_BACKOFF);
        if !problem.passes() || begun.elapsed() + wait > patience {
            return Err(problem);
        }
        tell(format!("{problem}; retrying in {wait:.1?}"));
        tokio::time::sleep(wait).await;
    }
}
