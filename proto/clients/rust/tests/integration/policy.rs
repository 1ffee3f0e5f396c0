//! The service config in a gRPC library that supports it: Python's, which shares its core with C++.

use std::time::{Duration, Instant};

use sandbox::{FaultKind, Rule};

use crate::fixture::{Client, Ended, Fixture};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_policy_retries_only_unavailable() {
    // With one attempt, the dispatcher answers WECHAT_BUSY immediately if WeChat is busy.
    let fixture = Fixture::start(&["--attempts", "1"]).await;
    // Each case: WeChat's errcode, how often it is answered, the result, and the number of calls.
    let cases = [
        (-1, 2, "delivered", 3),
        (-1, 5, "failed: WECHAT_BUSY, errcode -1", 5),
        (40037, 1, "failed: MESSAGE_REFUSED, errcode 40037", 1),
    ];
    for (errcode, times, ends, calls) in cases {
        fixture.sandbox.clear_faults();
        let busy = Rule { errcode: Some(errcode), times: Some(times), ..Rule::new(FaultKind::Answer) };
        fixture.sandbox.add_faults(vec![busy]).unwrap();
        let Some(mut command) = fixture.python() else { return };
        command.arg("--policy-only");
        let before = fixture.books().calls;
        // Each case has its own order, and so its own request id.
        let order = format!("{times}-{errcode}-{}", fixture.orders(1)[0]);
        let begun = Instant::now();
        let Ended { lines, told, .. } = Client::start(command, vec![order], Duration::ZERO).end().await;
        // WECHAT_BUSY asks for one second before each retry, which is more than the policy would wait before the first
        // ones.
        assert!(begun.elapsed() >= Duration::from_secs(calls - 1), "the client did not wait as RetryInfo asks");
        let ending = lines[0].split_once(": ").unwrap().1;
        assert!(ending.starts_with(ends), "{lines:?} {told}");
        assert_eq!(fixture.books().calls - before, calls, "{errcode} {lines:?}");
    }
}
