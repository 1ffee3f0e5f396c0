#!/bin/sh
# ask.sh COMMAND...: sends a command to the master, whichever pod it is, as the user who may do everything.
set -eu
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

leader=$(master)
[ -n "$leader" ] || die "no Sentinel answers"
say "$leader:"
patience=60
redis_cli "$leader" "$@"
