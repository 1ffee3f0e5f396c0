#!/bin/sh
# Starts the Sentinel of this pod. Its file is on the volume, because a Sentinel must not forget which master it voted
# for. Only that is kept; everything else in the file is written again at each start.
set -eu
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

folder=$data/sentinel
file=$folder/sentinel.conf
password=$(secret password)
admin=$(secret admin-password)
if [ -z "$password" ] || [ -z "$admin" ]; then die "the Secret must have the keys password and admin-password"; fi

# Prints the settings about the pods. All of them are known from the start, because a Sentinel that has found no replica
# yet cannot replace a master that is lost. Their ids never change. A new id would count as one Sentinel more than there
# is, and then a majority would need one vote more.
pods() {
    number=1
    for each in $hosts; do
        id=$(printf '%040d' "$number")
        if [ "$each" = "$me" ]; then
            printf '%s\n' "sentinel myid $id"
        else
            printf '%s\n' "sentinel known-sentinel $name $each 26379 $id"
        fi
        if [ "$each" != "$leader" ]; then printf '%s\n' "sentinel known-replica $name $each 6379"; fi
        number=$((number + 1))
    done
}

mkdir -p "$folder"
umask 077
leader=$(sed -n "s/^sentinel monitor $name \([^ ]*\) .*/\1/p" "$file" 2>/dev/null || true)
epochs=$(grep -E '^sentinel (current|leader|config)-epoch ' "$file" 2>/dev/null || true)
# Without a file, on a new volume, the other Sentinels know the master, unless the whole set is new.
leader=${leader:-$(master)}
leader=${leader:-${hosts%% *}}
cat >"$file.new" <<END
port 26379
bind $listen
dir $folder
requirepass $password
sentinel sentinel-pass $password
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $me
sentinel announce-port 26379
sentinel monitor $name $leader 6379 2
sentinel auth-pass $name $admin
sentinel down-after-milliseconds $name 5000
sentinel failover-timeout $name 15000
sentinel parallel-syncs $name 1
$(pods)
$epochs
END
mv "$file.new" "$file"
exec redis-server "$file" --sentinel
