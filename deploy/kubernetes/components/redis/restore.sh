#!/bin/sh
# Copies a snapshot into an empty Redis. README.md says what comes back with it, and what to do before and after.
#
# It starts a Redis of its own with the snapshot, which sends all keys to the master. So the master replicates them and
# writes them to disk as always, and neither the Sentinels nor the files of the pods are touched.
set -eu
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

folder=${BACKUPS:-/backups}
snapshot=${SNAPSHOT:-}
if [ -z "$snapshot" ] || [ ! -f "$folder/$snapshot" ]; then
    say "snapshots:"
    for each in "$folder"/formid-*.rdb; do [ ! -e "$each" ] || say "    ${each##*/}"; done
    die "SNAPSHOT is '$snapshot', but must be one of them"
fi
target=${server:-$(master)}
[ -n "$target" ] || die "no Sentinel answers"
size=$(redis "$target" DBSIZE)
[ -n "$size" ] || die "$target does not answer"
[ "$size" = 0 ] || die "$target has $size keys, but must be empty: keep a snapshot of it, then use FLUSHALL"

admin=$(secret admin-password)
work=$(mktemp -d)
redis-server --port 0 --unixsocket "$work/socket" --save "" --appendonly no --logfile "$work/log" \
    --dir "$folder" --dbfilename "$snapshot" &
source=$!
trap 'kill "$source" 2>/dev/null || true; wait "$source" 2>/dev/null || true; rm -rf "$work"' EXIT
from() {
    redis-cli -s "$work/socket" "$@"
}
# While it loads, it answers LOADING.
until [ "$(from PING 2>/dev/null)" = PONG ]; do
    kill -0 "$source" 2>/dev/null || {
        cat "$work/log" >&2
        die "the snapshot cannot be loaded"
    }
    sleep 1
done
say "$snapshot has $(from DBSIZE) keys; copying them to $target"

# The password is passed by standard input, so that no list of processes shows it.
auth=${admin:+AUTH $admin}
from --no-raw --scan | paste -d ' ' - - - - - - - - - - | while IFS= read -r keys; do
    printf 'MIGRATE %s %s "" 0 60000 COPY REPLACE %s KEYS %s\n' "${target%:*}" "$(port "$target")" "$auth" "$keys"
done | from >"$work/answers"
# A key may expire in between.
if grep -vxE 'OK|NOKEY|' "$work/answers" >&2; then
    die "not everything was copied: delete the rest with FLUSHALL, and start again"
fi
say "$target has $(redis "$target" DBSIZE) keys now"
