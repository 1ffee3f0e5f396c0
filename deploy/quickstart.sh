#!/usr/bin/env bash
# Demonstrates the two services on this machine: see usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# shellcheck source-path=SCRIPTDIR source=lib/say.sh
. "$root/deploy/lib/say.sh"
# shellcheck source-path=SCRIPTDIR source=lib/install.sh
. "$root/deploy/lib/install.sh"
# shellcheck source-path=SCRIPTDIR source=lib/services.sh
. "$root/deploy/lib/services.sh"

usage() {
    cat <<'END'
usage: deploy/quickstart.sh [--once] [--release]

Builds the services and starts them with a new Redis and with the sandbox instead of WeChat. Then collects form ids,
sends a template message, shows the delivered message, and broadcasts a message to 300 more users. Everything keeps
running for further experiments until Ctrl-C.
Only build results are left behind. Missing packages (Redis, a C compiler, Python) are installed.

  --once     stop right after the broadcast; the last line of standard output is the first message, as JSON
  --release  build with optimizations
END
}

once="" profile=debug build=""
for argument in "$@"; do
    case $argument in
    --once) once=yes ;;
    --release) profile=release build=--release ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && die "unknown argument: $argument" ;;
    esac
done

# All output of all programs goes to standard error. The original standard output, now descriptor 3, gets the message.
exec 3>&1 1>&2

need_cargo
need cc redis-server
need_tools
say "building"
# Build the whole workspace as the tests do, so that both share nearly all build results.
# shellcheck disable=SC2086 # one word or none
cargo build --workspace --bins --example broadcast $build
binaries=$(target_folder)/$profile

# From here on, clean up on every exit.
clean_up() {
    trap '' HUP INT TERM
    stop_all
    rm -rf "$folder"
}
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
folder=$(mktemp -d "${TMPDIR:-/tmp}/formid.XXXXXX")
trap clean_up EXIT

say "starting Redis, the sandbox, the collector and the dispatcher"
app=wx0123456789abcdef
secret=0123456789abcdef0123456789abcdef
free_port 7000 && redis=$port
free_port 8700 && sandbox=$port
free_port 7001 && collector=127.0.0.1:$port
free_port 7002 && dispatcher=127.0.0.1:$port

start redis redis-server --bind 127.0.0.1 --port "$redis" --dir "$folder" --save "" \
    --appendonly yes --appendfsync everysec --maxmemory-policy noeviction
# Do not put a secret on a command line, where every process can read it, or into a file that other users can read.
SANDBOX_APPS="$app=$secret" start sandbox "$binaries/sandbox" --listen "127.0.0.1:$sandbox"
(umask 077 && printf '[apps.%s]\nsecret = "%s"\nbase_url = "http://127.0.0.1:%s"\n' "$app" "$secret" "$sandbox") \
    >"$folder/apps.toml"
chmod 600 "$folder/apps.toml"
wait_for redis redis_ready "$redis"
wait_for sandbox http "$sandbox" /sandbox/settings

common="--redis-url redis://127.0.0.1:$redis --drain-wait 0s --drain-timeout 10s"
# shellcheck disable=SC2086 # several words
{
    start collector "$binaries/collector" --listen "$collector" --apps "$app" $common
    start dispatcher "$binaries/dispatcher" --listen "$dispatcher" --apps-file "$folder/apps.toml" $common
}
serving() {
    "$FORMID_GRPCURL" -plaintext -max-time 5 "$1" grpc.health.v1.Health/Check | grep -q '"SERVING"'
}
wait_for collector serving "$collector"
wait_for dispatcher serving "$dispatcher"

# rpc ADDRESS METHOD JSON: prints the call and its answer, and sets $answer.
rpc() {
    printf '%s$%s grpcurl -plaintext -d '\''%s'\'' %s %s\n' "$bold" "$plain" "$3" "$1" "$2"
    answer=$("$FORMID_GRPCURL" -plaintext -max-time 20 -d "$3" "$1" "$2") || return 1
    printf '%s\n' "$answer"
}

# show COMMAND...: prints the command and runs it.
show() {
    printf '%s$%s' "$bold" "$plain"
    printf ' %q' "${1#"$root"/}" "${@:2}"
    printf '\n'
    "$@"
}

say "two users of the mini program submit forms: alice two, bob one"
ids=$(http "$sandbox" /sandbox/submissions '{"app_id": "'"$app"'", "submissions": [
  {"openid": "alice", "kind": "form"}, {"openid": "alice", "kind": "form"}, {"openid": "bob", "kind": "form"}]}') ||
    fail sandbox "did not accept the submissions: $ids"
# {"ids":["a","b","c"]}
IFS=' ' read -r first second third <<<"$(tr -cs '[:alnum:]' ' ' <<<"${ids#*:}")"

say "their form ids are collected"
rpc "$collector" formid.v1.CollectorService/Collect '{"app_id": "'"$app"'", "credentials": [
  {"openid": "alice", "form_id": "'"$first"'"},
  {"openid": "alice", "form_id": "'"$second"'"},
  {"openid": "bob", "form_id": "'"$third"'"}]}' || fail collector "did not answer Collect with OK"

say "alice gets a message, which spends one of her form ids"
send='{"app_id": "'"$app"'", "openid": "alice", "template_id": "order-ready", "request_id": "order-42",
  "page": "pages/order?id=42",
  "data": {"keyword1": {"value": "Order 42"}, "keyword2": {"value": "ready at counter 3"}}}'
rpc "$dispatcher" formid.v1.DispatcherService/SendTemplate "$send" ||
    fail dispatcher "did not answer SendTemplate with OK"
[[ $answer == *OUTCOME_DELIVERED* ]] || fail dispatcher "did not deliver the message"

say "the delivered message, as recorded by WeChat (the sandbox)"
# {"deliveries":[{...}]}
message=$(http "$sandbox" "/sandbox/deliveries?app_id=$app&openid=alice") ||
    fail sandbox "did not return the deliveries: $message"
message=${message#*:\[}
message=${message%\]*}
[[ $message == \{*order-ready*\} ]] || die "the message was not delivered"
printf '%s\n' "$message" >&3

say "carol accepts a subscription and gets a subscription message, the kind that WeChat serves today"
grants=$(http "$sandbox" /sandbox/grants '{"app_id": "'"$app"'", "grants": [
  {"openid": "carol", "template_id": "order-ready"}]}') ||
    fail sandbox "did not accept the grants: $grants"
rpc "$collector" formid.v1.CollectorService/Collect '{"app_id": "'"$app"'", "credentials": [
  {"openid": "carol", "grant": {"template_id": "order-ready", "grant_key": "accept-1"}}]}' ||
    fail collector "did not answer Collect with OK"
rpc "$dispatcher" formid.v1.DispatcherService/SendTemplate '{"app_id": "'"$app"'", "openid": "carol",
  "delivery": "DELIVERY_SUBSCRIPTION", "template_id": "order-ready", "request_id": "order-41",
  "data": {"thing1": {"value": "Order 41"}, "time2": {"value": "15:01"}}}' ||
    fail dispatcher "did not answer SendTemplate with OK"
[[ $answer == *OUTCOME_DELIVERED* ]] || fail dispatcher "did not deliver the message"

# crowd BEFORE [AFTER ID...]: prints two JSON objects for each of 300 users, with one of the ids between BEFORE and
# AFTER.
crowd() {
    local before=$1 after=${2:-} user comma=""
    shift $(($# < 2 ? $# : 2))
    for user in {1..300} {1..300}; do
        printf '%s{"openid": "user-%s", %s%s%s}' "$comma" "$user" "$before" "${1:-}" "$after"
        comma=,
        [ $# -eq 0 ] || shift
    done
}

say "300 more users submit two forms each, and their form ids are collected"
ids=$(http "$sandbox" /sandbox/submissions \
    '{"app_id": "'"$app"'", "submissions": ['"$(crowd '"kind": "form"')"']}') ||
    fail sandbox "did not accept the submissions: $ids"
IFS=' ' read -r -a ids <<<"$(tr -cs '[:alnum:]' ' ' <<<"${ids#*:}")"
printf '{"app_id": "%s", "credentials": [%s]}' "$app" "$(crowd '"form_id": "' '"' "${ids[@]}")" |
    "$FORMID_GRPCURL" -plaintext -max-time 20 -d @ "$collector" formid.v1.CollectorService/Collect >"$folder/collected" ||
    fail collector "did not answer Collect with OK"

say "a broadcast to all users at 100 messages a second, without alice, who just got one, and bob, who is excluded"
echo bob >"$folder/not-to"
show "$binaries/examples/broadcast" --address "$dispatcher" --app "$app" --template spring \
    --data keyword1=hello --per-second 100 --min-interval 1h --exclude "$folder/not-to" ||
    fail dispatcher "did not complete the broadcast"
[ -z "$once" ] || exit 0

say "all programs are running; some calls to try in another terminal:"
bob='"app_id": "'$app'", "openid": "bob"'
cat <<END

  PATH="\$PATH:$(dirname "$FORMID_GRPCURL")"
  grpcurl -plaintext $collector list
  grpcurl -plaintext $collector describe formid.v1.CollectorService
  grpcurl -plaintext $dispatcher describe formid.v1.SendTemplateRequest
  grpcurl -plaintext -d '{"app_id": "$app", "credentials": [{"openid": "bob", "form_id": "made-up"}]}' \\
    $collector formid.v1.CollectorService/Collect
  grpcurl -plaintext -d '{$bob}' $collector formid.v1.CollectorService/GetInventory
  grpcurl -plaintext -d '{"app_id": "$app"}' $collector formid.v1.CollectorService/GetStock
  grpcurl -plaintext -d '{$bob, "template_id": "hello", "data": {"keyword1": {"value": "hello"}}}' \\
    $dispatcher formid.v1.DispatcherService/SendTemplate
  grpcurl -plaintext -d '{"app_id": "$app"}' $dispatcher formid.v1.DispatcherService/ListBroadcasts

Send to bob twice: the second message fails, because the made-up form id is unknown to WeChat.
The sandbox shows its state at http://127.0.0.1:$sandbox/sandbox/books?app_id=$app; logs are in $folder.
END
say "press Ctrl-C to stop everything"
watch
