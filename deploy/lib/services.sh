# shellcheck shell=bash
# Programs of one's own: started, waited for, and stopped. Wants say.sh, and $folder: an empty folder for their logs.

# What runs, as "name:pid", in the order it was started.
running=""

# start NAME COMMAND...: in the background; its output goes to NAME.log.
start() {
    local name=$1
    shift
    # Job control gives it a process group of its own. So Ctrl-C at the terminal reaches this script alone, which then
    # stops everything in order.
    set -m
    NO_COLOR=1 "$@" >"${folder:?}/$name.log" 2>&1 </dev/null 3>&- &
    set +m
    running="$running $name:$!"
}

# wait_for NAME CONDITION...: until the command CONDITION succeeds, at most 30 seconds, and no longer than NAME lives.
wait_for() {
    local name=$1 end=$((SECONDS + 30))
    shift
    until "$@" >/dev/null 2>&1; do
        is_up "$name" || fail "$name" "has ended"
        [ $SECONDS -lt $end ] || fail "$name" "is not ready after 30 seconds"
        sleep 0.1
    done
}

is_up() {
    local each
    for each in $running; do
        if [ "${each%%:*}" = "$1" ] && ! kill -0 "${each##*:}" 2>/dev/null; then return 1; fi
    done
}

# watch: returns never; fails when one of them ends.
watch() {
    local each
    while sleep 1; do
        for each in $running; do
            is_up "${each%%:*}" || fail "${each%%:*}" "has ended"
        done
    done
}

# fail NAME WHAT: shows the end of NAME's log and exits.
fail() {
    say "the last lines of $1's log:"
    tail -n 30 "$folder/$1.log" >&2
    die "$1 $2"
}

# stop_all: the last started first, so that Redis outlives those who use it; SIGKILL for what takes over 15 seconds.
stop_all() {
    local each backwards="" pid end
    for each in $running; do
        backwards="$each $backwards"
    done
    running=""
    for each in $backwards; do
        pid=${each##*:}
        end=$((SECONDS + 15))
        kill -TERM "$pid" 2>/dev/null || true
        while kill -0 "$pid" 2>/dev/null; do
            if [ $SECONDS -ge $end ]; then kill -KILL "$pid" 2>/dev/null || true; fi
            sleep 0.05
        done
        wait "$pid" 2>/dev/null || true
    done
}

# answers PORT: whether someone listens there.
answers() {
    (: 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# free_port PREFERRED: sets $port to that one when it is free, else to another one. Those tried are below the range from
# which systems take the ports of outgoing connections, and none is handed out twice.
free_port() {
    port=$1
    while answers "$port" || [[ " $taken_ports " == *" $port "* ]]; do
        port=$((10000 + RANDOM % 20000))
    done
    taken_ports="$taken_ports $port"
}
taken_ports=""

# redis_ready PORT: whether Redis answers; one that is still loading its file does not.
redis_ready() {
    local answer
    exec 4<>"/dev/tcp/127.0.0.1/$1" || return 1
    printf 'PING\r\n' >&4
    IFS= read -r -t 2 answer <&4 || true
    exec 4>&-
    [ "$answer" = $'+PONG\r' ]
}

# http PORT PATH [JSON]: GET, or POST where there is JSON; prints the body of the answer. Enough for the sandbox, and
# needs no curl. HTTP/1.0, so that the answer ends with its connection.
http() {
    # Lengths are in bytes.
    local LC_ALL=C method=GET body=${3:-} answer="" blank_line=$'\r\n\r\n'
    if [ -n "$body" ]; then method=POST; fi
    exec 4<>"/dev/tcp/127.0.0.1/$1" || return 1
    printf '%s %s HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' \
        "$method" "$2" "${#body}" "$body" >&4
    IFS= read -r -d '' -t 10 answer <&4 || true
    exec 4>&-
    printf '%s\n' "${answer#*"$blank_line"}"
    [[ $answer == HTTP/1.?" 200 "* ]]
}
