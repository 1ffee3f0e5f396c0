# shellcheck shell=bash
# Starts programs, waits until they are ready, and stops them. Needs say.sh, and $folder: an empty folder for their
# logs.

# The running programs as "name:pid", in the order in which they were started.
running=""

# start NAME COMMAND...: starts a program in the background; its output goes to NAME.log.
start() {
    local name=$1
    shift
    # Job control gives the program its own process group. So Ctrl-C in the terminal reaches only this script, which
    # then stops the programs in order.
    set -m
    NO_COLOR=1 "$@" >"${folder:?}/$name.log" 2>&1 </dev/null 3>&- &
    set +m
    running="$running $name:$!"
}

# wait_for NAME CONDITION...: waits until the command CONDITION succeeds. Fails after 30 seconds, or when NAME exits.
wait_for() {
    local name=$1 end=$((SECONDS + 30))
    shift
    until "$@" >/dev/null 2>&1; do
        is_up "$name" || fail "$name" "has exited"
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

# watch: never returns; fails when one of the programs exits.
watch() {
    local each
    while sleep 1; do
        for each in $running; do
            is_up "${each%%:*}" || fail "${each%%:*}" "has exited"
        done
    done
}

# fail NAME WHAT: prints the last lines of NAME's log and exits.
fail() {
    say "the last lines of $1's log:"
    tail -n 30 "$folder/$1.log" >&2
    die "$1 $2"
}

# stop_all: stops the programs, the last started first, so that Redis stops after the programs that use it. A program
# that takes over 15 seconds gets SIGKILL.
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

# answers PORT: succeeds if a program listens on the port.
answers() {
    (: 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# free_port PREFERRED: sets $port to PREFERRED if it is free, otherwise to another free port. The others are below the
# range that systems use for outgoing connections. No port is returned twice.
free_port() {
    port=$1
    while answers "$port" || [[ " $taken_ports " == *" $port "* ]]; do
        port=$((10000 + RANDOM % 20000))
    done
    taken_ports="$taken_ports $port"
}
taken_ports=""

# redis_ready PORT: succeeds if Redis answers PONG, which it does not while it loads its file.
redis_ready() {
    local answer
    exec 4<>"/dev/tcp/127.0.0.1/$1" || return 1
    printf 'PING\r\n' >&4
    IFS= read -r -t 2 answer <&4 || true
    exec 4>&-
    [ "$answer" = $'+PONG\r' ]
}

# http PORT PATH [JSON]: sends a GET request, or a POST request if JSON is given, and prints the body of the response.
# It is sufficient for the sandbox and needs no curl. With HTTP/1.0, the response ends with the connection.
http() {
    # LC_ALL=C makes ${#body} count bytes.
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
