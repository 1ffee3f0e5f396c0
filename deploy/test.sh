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

# Unless asked for something else: all tests, also after one that fails.
everything=""
if [ $# -eq 0 ]; then
    everything=yes
    set -- --no-fail-fast
fi
if ! cargo nextest --version >/dev/null 2>&1; then
    exec cargo test --workspace "$@"
fi
# nextest leaves out the examples in the documentation.
if [ -n "$everything" ]; then
    cargo test --doc --workspace
fi
exec cargo nextest run --workspace "$@"
