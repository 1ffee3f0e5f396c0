#!/usr/bin/env bash
# Evaluates every expression of the dashboard and of the alerts on a real Prometheus, which scrapes both services under
# a small load: see live.py. Missing packages are installed, or downloaded into the target folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
# shellcheck source-path=SCRIPTDIR source=../lib/say.sh
. "$root/deploy/lib/say.sh"
# shellcheck source-path=SCRIPTDIR source=../lib/install.sh
. "$root/deploy/lib/install.sh"

need_cargo
need cc openssl redis-server python3
need_tools
need_prometheus || die "prometheus and promtool are not installed, and no Debian package of them can be downloaded"
say "building"
# Build the whole workspace as the tests do, so that both share nearly all build results.
cargo build --workspace --bins
say "testing the dashboard and the alerts on $(prometheus --version 2>&1 | head -n 1)"
exec python3 deploy/dashboards/live.py "$(target_folder)/debug"
