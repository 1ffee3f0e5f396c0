#!/usr/bin/env bash
# Runs all tests. Only Rust must be installed on the machine; everything else that is missing is installed first.
#
#     deploy/test.sh [--soak] [ARGUMENTS]
#
# --soak runs tests that have two sizes with the large one, and uses many more random cases. It takes an hour instead of
# minutes. Further arguments are passed to the test runner: cargo-nextest if it is installed, otherwise `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# shellcheck source-path=SCRIPTDIR source=lib/say.sh
. "$root/deploy/lib/say.sh"
# shellcheck source-path=SCRIPTDIR source=lib/install.sh
. "$root/deploy/lib/install.sh"

if [ "${1:-}" = --soak ]; then
    shift
    # testing::sized reads the first variable; cargo-nextest reads the second: see .config/nextest.toml.
    export FORMID_TEST_SOAK=1 NEXTEST_PROFILE=soak
fi

need_cargo
need cc redis-server tinyproxy
need_tools
need_client_python

# test_with ARGUMENTS: runs tests with the available runner.
if cargo nextest --version >/dev/null 2>&1; then
    # Most tests spend most of their time waiting for timers and for processes to start.
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

# Run all tests, even after a failure. nextest does not run the examples in the documentation, so `cargo test` runs
# them.
failed=0
if cargo nextest --version >/dev/null 2>&1; then
    cargo test --doc --workspace || failed=1
fi
test_with --workspace --no-fail-fast || failed=1

# Run the tests that depend on the kind of Redis a second time, on a Redis Cluster: all reads and writes of the
# services, and their behavior when Redis is unavailable. Not repeated are tests that do not reach Redis or do not
# depend on its kind (the edge, bad requests, metrics, traces, programs and their logs). The tests of the store are not
# repeated either, since each chooses its own Redis; those in "elsewhere" run every script on a cluster. Of the storm
# tests, only those in which Redis and dispatchers fail are repeated.
# The whole workspace is given, because a single package would be built again with fewer features.
say "running the tests that use Redis again on a Redis Cluster"
export FORMID_TEST_REDIS=cluster
test_with --workspace --test integration --no-fail-fast -- \
    collecting:: grants:: stock:: streams:: outages:: \
    sends:: doubt:: crash:: whole:: subscription:: broadcast:: \
    redis_may_be_down health_follows_redis metrics_are_read_while_redis_is_down \
    --skip example:: --skip values:: --skip form_ids_that_arrive_meanwhile --skip with_grants_nobody_gets_two || failed=1
exit "$failed"
