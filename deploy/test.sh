#!/usr/bin/env bash
# Runs all tests, on a machine that need have nothing but Rust: what is missing is installed first.
#
#     deploy/test.sh [--soak] [ARGUMENTS]
#
# --soak takes the large sizes of those tests that have two, and far more random cases: an hour rather than minutes.
# Further arguments go on to the test runner: cargo-nextest where it is there, `cargo test` where it is not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# shellcheck source-path=SCRIPTDIR source=lib/say.sh
. "$root/deploy/lib/say.sh"
# shellcheck source-path=SCRIPTDIR source=lib/install.sh
. "$root/deploy/lib/install.sh"

if [ "${1:-}" = --soak ]; then
    shift
    # testing::sized reads the one, cargo-nextest the other: see .config/nextest.toml.
    export FORMID_TEST_SOAK=1 NEXTEST_PROFILE=soak
fi

need_cargo
need cc redis-server
need_tools
need_client_python

# One runner or the other: `test_with ARGUMENTS`.
if cargo nextest --version >/dev/null 2>&1; then
    # Most tests wait most of their time: for timers, and for processes that start.
    cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
    export NEXTEST_TEST_THREADS=${NEXTEST_TEST_THREADS:-$((cores * 2))}
    test_with() { cargo nextest run "$@"; }
else
    test_with() { cargo test "$@"; }
fi

if [ $# -gt 0 ]; then
    test_with --workspace "$@"
    exit
fi

# All tests, also after one that fails. nextest leaves out the examples in the documentation.
failed=0
if cargo nextest --version >/dev/null 2>&1; then
    cargo test --doc --workspace || failed=1
fi
test_with --workspace --no-fail-fast || failed=1

# Once more on a Redis Cluster, what goes to Redis by another way there: all that the services read and write, and how they
# meet a Redis that is away. Not again what does not reach Redis or does not differ by it (the edge, bad requests, metrics,
# traces, programs and their logs), nor the tests of the store, each of which chooses its Redis itself: "elsewhere" among
# them runs every script on a cluster. Of the storms, those in which Redis and dispatchers fail.
# Of the whole workspace, since a part of it would be built anew, with fewer features.
say "the same on a Redis Cluster"
export FORMID_TEST_REDIS=cluster
test_with --workspace --test it --test service --no-fail-fast -- \
    collecting:: grants:: stock:: streams:: outages:: \
    sends:: doubt:: crash:: whole:: subscription:: broadcast:: \
    redis_may_be_down health_follows_redis metrics_are_read_while_redis_is_down \
    --skip example:: --skip values:: --skip form_ids_that_arrive_meanwhile --skip with_grants_nobody_gets_two || failed=1
exit "$failed"
