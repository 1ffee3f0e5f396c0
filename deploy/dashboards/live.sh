#!/usr/bin/env bash
# Tries every expression of the dashboard and of the alerts on a real Prometheus, which reads both services under a small
# load: see live.py. What is missing on the machine is installed, or put into the target folder. Leaves nothing behind.
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
need_prometheus || die "there is no prometheus and no promtool, and no package of Debian's to take them from"
say "building"
# The whole workspace, as the tests build it, so that nearly everything is shared with them.
cargo build --workspace --bins
say "trying the dashboard and the alerts on $(prometheus --version 2>&1 | head -n 1)"
exec python3 deploy/dashboards/live.py "$(target_folder)/debug"
