#!/usr/bin/env bash
# Measures formid and the upper limits of this machine in one run, and prints a table. Exits with 1 if a target is
# missed. Arguments are passed to the benchmark: collect, send, broadcast, memory, overload or rest select a part of it;
# --rounds N is the number of repetitions (default 5).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# shellcheck source-path=SCRIPTDIR source=lib/say.sh
. "$root/deploy/lib/say.sh"
# shellcheck source-path=SCRIPTDIR source=lib/install.sh
. "$root/deploy/lib/install.sh"

need_cargo
need cc redis-server
say "building with optimizations"
cargo build --release --workspace --bins
say "measuring; nothing else should run on this machine"
# Discard the logs of the started processes, which would hide the table.
exec "$(target_folder)/release/bench" "$@" 2>/dev/null
