#!/bin/sh
# ready.sh redis|sentinel: whether this pod's Redis is the master or follows it, or whether its Sentinel answers.
set -eu
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

case $1 in
# A replica that does not have the data yet counts as away: then no other pod is stopped on purpose.
redis) [ -n "$(role "$own")" ] ;;
sentinel) [ "$(sentinel "$own" PING)" = PONG ] ;;
esac
