//! The service config at work in a gRPC library that takes one: Python's, which is that of C++ too.

use std::time::{Duration, Instant};

use sandbox::{FaultKind, Rule};

use crate::rig::{Client, Ended, Rig};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_repeats_what_is_unavailable_and_nothing_else() {
    // So that a busy WeChat comes through as WECHAT_BUSY at once.
    let rig = Rig::start(&["--attempts", "1"]).await;
    // Each with the code that WeChat answers, how often, how it ends, and how many calls that takes.
    let cases = [
        (-1, 2, "delivered", 3),
        (-1, 5, "failed: WECHAT_BUSY, errcode -1", 5),
        (40037, 1, "failed: MESSAGE_REFUSED, errcode 40037", 1),
    ];
    for (errcode, times, ends, calls) in cases {
        rig.sandbox.clear_faults();
        let busy = Rule { errcode: Some(errcode), times: Some(times), ..Rule::new(FaultKind::Answer) };
        rig.sandbox.add_faults(vec![busy]).unwrap();
        let Some(mut command) = rig.python() else { return };
        command.arg("--policy-only");
        let before = rig.books().calls;
        // Another order each time, and so another request id.
        let order = format!("{times}-{errcode}-{}", rig.orders(1)[0]);
        let begun = Instant::now();
        let Ended { lines, told, .. } = Client::start(command, vec![order], Duration::ZERO).end().await;
        // Each after the second that WECHAT_BUSY asks for, which is more than the policy would wait before the first ones.
        assert!(begun.elapsed() >= Duration::from_secs(calls - 1), "it did not wait as it was told");
        let ending = lines[0].split_once(": ").unwrap().1;
        assert!(ending.starts_with(ends), "{lines:?} {told}");
        assert_eq!(rig.books().calls - before, calls, "{errcode} {lines:?}");
    }
}
