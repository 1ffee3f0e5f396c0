#!/bin/sh
# Starts the Redis of this pod. The Sentinels say who is the master: the first pod when the set is new, later the one
# that they chose last. So no pod starts as a second master, and none with data that is older than its master's.
set -eu
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

# A pod without data may become the master only if no pod has data. Otherwise, when a volume was lost and the pod starts
# before the Sentinels have chosen another master, the others would delete their data to be like it.
may_be_master() {
    [ -e "$data/appendonlydir/appendonly.aof.manifest" ] && return 0
    for each in $hosts; do
        if [ "$each" != "$me" ] && [ "$(redis "$each" DBSIZE)" != 0 ]; then
            say "$me has no data, and $each has data or does not answer: waiting for it, or for another master"
            return 1
        fi
    done
}

password=$(secret password)
admin=$(secret admin-password)
if [ -z "$password" ] || [ -z "$admin" ]; then die "the Secret must have the keys password and admin-password"; fi
while :; do
    leader=$(master)
    case $leader in
    "") say "waiting for a Sentinel" ;;
    "$me") if may_be_master; then break; fi ;;
    *) break ;;
    esac
    sleep 1
done
say "$me starts; the master is $leader"

mkdir -p "$run"
# In a folder in memory, because it has the passwords.
umask 077
{
    cat "$(dirname "$0")/redis.conf"
    printf '%s\n' "dir $data" "bind $listen" "replica-announce-ip $me" "maxmemory ${REDIS_MAXMEMORY:-1gb}"
    printf '%s\n' "requirepass $admin" "masterauth $admin"
    # The services may do what they need, and neither change the configuration nor delete everything:
    # shared/README.md.
    hash=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
    printf '%s' "user formid on #$hash resetkeys ~formid:* resetchannels "
    printf '%s\n' "-@all +@read +@write +@connection -@dangerous +evalsha +eval +script|load +time +role"
    if [ "$leader" != "$me" ]; then printf '%s\n' "replicaof $leader 6379"; fi
} >"$run/redis.conf"
umask 027
exec redis-server "$run/redis.conf"
