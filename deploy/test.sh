#!/usr/bin/env bash
# Runs all tests, on a machine that need have nothing but Rust: what is missing is installed first.
# Arguments go on to the test runner: cargo-nextest where it is there, `cargo test` where it is not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# shellcheck source-path=SCRIPTDIR source=lib/say.sh
. "$root/deploy/lib/say.sh"
# shellcheck source-path=SCRIPTDIR source=lib/install.sh
. "$root/deploy/lib/install.sh"

need_cargo
need cc redis-server
need_tools
need_client_python

# One runner or the other: `test_with ARGUMENTS`.
if cargo nextest --version >/dev/null 2>&1; then
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

# Once more on a Redis Cluster, whatever stands on a Redis and does not choose its kind itself: all of Collect, SendTemplate
# and Broadcast, and the store under them. "it", "service" and "store" are what the tests of the three are called. Of the
# whole workspace, since a part of it would be built anew, with fewer features.
say "the same on a Redis Cluster"
export FORMID_TEST_REDIS=cluster
test_with --workspace --test it --test service --test store --no-fail-fast -- \
    --skip failover:: --skip elsewhere:: --skip edge:: --skip overload:: || failed=1
exit "$failed"
