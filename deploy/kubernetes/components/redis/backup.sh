#!/bin/sh
# Copies everything in Redis into a snapshot, FORMID-DATE.rdb, and keeps the newest KEEP of them. It takes the snapshot
# from a replica, so that the master does not have to fork.
set -eu
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

folder=${BACKUPS:-/backups}
keep=${KEEP:-24}
from=$server
for each in $hosts; do
    if [ -z "$from" ] && [ "$(role "$each")" = connected ]; then from=$each; fi
done
[ -n "$from" ] || die "no replica follows the master, so there is nothing to take a snapshot from"

# A part of a snapshot, of a job that was ended.
rm -f "$folder"/*.part
file=$folder/formid-$(date -u +%Y%m%dT%H%M%SZ).rdb
patience=3000
redis_cli "$from" --rdb "$file.part" >&2 || die "cannot copy the data of $from"
redis-check-rdb "$file.part" >"$file.check.part" || {
    cat "$file.check.part" >&2
    die "the snapshot is damaged"
}
rm -f "$file.check.part"
sync "$file.part"
mv "$file.part" "$file"
say "took a snapshot of $from"
# The names sort by time. Older snapshots are deleted only after a new one is complete.
for each in "$folder"/formid-*.rdb; do printf '%s\n' "$each"; done | sort -r | tail -n "+$((keep + 1))" |
    while IFS= read -r old; do rm -f "$old"; done
for each in "$folder"/formid-*.rdb; do printf '%s\n' "${each##*/}"; done
