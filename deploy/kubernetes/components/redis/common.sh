# shellcheck shell=sh
# Settings and functions of the other scripts of this folder. They run with sh, in the pods and outside of Kubernetes.
# shellcheck disable=SC2034 # the other scripts use the variables

# The pods of the set. The name of a pod stays the same when its address changes.
hosts=${REDIS_HOSTS:-redis-0.redis redis-1.redis redis-2.redis}
# The name of this pod among them.
# shellcheck disable=SC3028 # the container runtime sets HOSTNAME
me=${REDIS_ME:-${HOSTNAME:-}.redis}
# The address that this pod listens on, and where its own scripts reach it.
listen=${REDIS_LISTEN:-* -::*}
own=${REDIS_LISTEN:-127.0.0.1}
data=${REDIS_DATA:-/data}
# A folder in memory, for what contains passwords and is made anew at each start.
run=${REDIS_RUN:-/run/redis}
secrets=${REDIS_SECRETS:-/run/secrets/redis}
# A single Redis as HOST:PORT, in place of the set.
server=${REDIS_SERVER:-}
# The name of the master in the Sentinels.
name=formid

say() {
    printf '%s\n' "$*" >&2
}

die() {
    say "error: $*"
    exit 1
}

# secret NAME: prints the password of this name; if the Secret does not have it, prints nothing. A password with other
# characters would need quotes in the configuration of Redis and in the services' URL.
secret() {
    [ -f "$secrets/$1" ] || return 0
    # The x keeps a line break at the end, which would be a part of the URL.
    value=$(cat "$secrets/$1" && printf x)
    value=${value%x}
    case $value in
    "" | *[!0-9A-Za-z_-]*) die "the Secret's $1 must be letters, digits, _ and -, without a line break" ;;
    esac
    printf %s "$value"
}

# redis_cli HOST[:PORT] ARGUMENT...: redis-cli as the user who may do everything, for at most $patience seconds. The
# password is in a variable, because arguments are in lists of processes.
redis_cli() {
    host=$1
    shift
    set -- timeout "$patience" redis-cli -h "${host%:*}" -p "$(port "$host")" "$@"
    admin=$(secret admin-password)
    # An empty password would be one that is wrong.
    if [ -z "$admin" ]; then "$@"; else REDISCLI_AUTH=$admin "$@"; fi
}
patience=5

# redis HOST[:PORT] COMMAND...: prints the answer of the Redis of a pod, or nothing if it does not answer.
redis() {
    redis_cli "$@" 2>/dev/null || true
}

# sentinel HOST COMMAND...: prints the answer of the Sentinel of a pod, or nothing.
sentinel() {
    host=$1
    shift
    REDISCLI_AUTH=$(secret password) timeout "$patience" redis-cli -h "$host" -p 26379 "$@" 2>/dev/null || true
}

port() {
    case $1 in
    *:*) printf %s "${1##*:}" ;;
    *) printf 6379 ;;
    esac
}

# Prints the pod that is the master. The Sentinels number the masters (config-epoch), so the highest number is the
# present one, also when a Sentinel missed a failover. Prints nothing if no Sentinel answers.
master() {
    for each in $hosts; do
        sentinel "$each" SENTINEL MASTER "$name" | {
            host="" epoch=""
            while IFS= read -r field && IFS= read -r value; do
                case $field in
                ip) host=$value ;;
                config-epoch) epoch=$value ;;
                esac
            done
            if [ -n "$host" ] && [ -n "$epoch" ]; then printf '%s %s\n' "$epoch" "$host"; fi
        }
    done | sort -n | tail -n 1 | cut -d ' ' -f 2
}

# role HOST: prints "master", "connected" for a replica that has received the data and follows its master, or nothing.
role() {
    answer=$(redis "$1" ROLE)
    case $(printf '%s\n' "$answer" | sed -n 1p) in
    master) printf master ;;
    slave) printf '%s\n' "$answer" | sed -n 4p | grep -x connected || true ;;
    esac
}
