#!/usr/bin/env bash
# Measures formid beside the ceilings of this machine, in one run, and prints a table; ends with 1 where a bar is missed.
# Arguments go on to the benchmark: collect, send, broadcast, memory, overload or rest for a part of it, --rounds N for how often (5 unless given).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# shellcheck source-path=SCRIPTDIR source=lib/say.sh
. "$root/deploy/lib/say.sh"
# shellcheck source-path=SCRIPTDIR source=lib/install.sh
. "$root/deploy/lib/install.sh"

need_cargo
need cc redis-server
say "building, with optimisations"
cargo build --release --workspace --bins
say "measuring; the machine should have nothing else to do"
# The logs of what is started and killed again would only hide the table.
exec "$(target_folder)/release/bench" "$@" 2>/dev/null
