#!/usr/bin/env bash
# Shows the two services at work, on this machine alone: see usage below.
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

Builds the services, starts them with a Redis of their own and with the sandbox in WeChat's place, collects form ids,
sends a template message, shows it as it arrived, and broadcasts one to 300 more users. Then everything stays up to play
with until Ctrl-C.
Nothing is left behind but what was built. What is missing on the machine (Redis, a C compiler, Python) is installed.

  --once     stop right after the broadcast; the last line of standard output is the message sent first, as JSON
  --release  build with optimisations
END
}

once="" profile=debug build=""
for argument in "$@"; do
    case $argument in
    --once) once=yes ;;
    --release) profile=release build=--release ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && die "what is $argument?" ;;
    esac
done

# All the talk, whoever talks, goes to standard error; standard output, now 3, is for the message.
exec 3>&1 1>&2

need_cargo
need cc redis-server
need_tools
say "building"
# The whole workspace, as the tests build it, so that nearly everything is shared with them.
# shellcheck disable=SC2086 # one word or none
cargo build --workspace --bins --example broadcast $build
binaries=$(target_folder)/$profile

# From here on there is something to clean up, however this ends.
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
# A secret belongs neither on a command line, where every process can read it, nor in a file that others can read.
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

# rpc ADDRESS METHOD JSON: shows the call and its answer, which is left in $answer.
rpc() {
    printf '%s$%s grpcurl -plaintext -d '\''%s'\'' %s %s\n' "$bold" "$plain" "$3" "$1" "$2"
    answer=$("$FORMID_GRPCURL" -plaintext -max-time 20 -d "$3" "$1" "$2") || return 1
    printf '%s\n' "$answer"
}

# show COMMAND...: runs it, and shows it first.
show() {
    printf '%s$%s' "$bold" "$plain"
    printf ' %q' "${1#"$root"/}" "${@:2}"
    printf '\n'
    "$@"
}

say "two users of the mini program submit forms: alice two, bob one"
ids=$(http "$sandbox" /sandbox/submissions '{"app_id": "'"$app"'", "submissions": [
  {"openid": "alice", "kind": "form"}, {"openid": "alice", "kind": "form"}, {"openid": "bob", "kind": "form"}]}') ||
    fail sandbox "takes no submissions: $ids"
# {"ids":["a","b","c"]}
IFS=' ' read -r first second third <<<"$(tr -cs '[:alnum:]' ' ' <<<"${ids#*:}")"

say "their form ids are collected"
rpc "$collector" formid.v1.CollectorService/Collect '{"app_id": "'"$app"'", "credentials": [
  {"openid": "alice", "form_id": "'"$first"'"},
  {"openid": "alice", "form_id": "'"$second"'"},
  {"openid": "bob", "form_id": "'"$third"'"}]}' || fail collector "does not collect"

say "alice gets a message, for one of hers"
send='{"app_id": "'"$app"'", "openid": "alice", "template_id": "order-ready", "request_id": "order-42",
  "page": "pages/order?id=42",
  "data": {"keyword1": {"value": "Order 42"}, "keyword2": {"value": "ready at counter 3"}}}'
rpc "$dispatcher" formid.v1.DispatcherService/SendTemplate "$send" || fail dispatcher "does not send"
[[ $answer == *OUTCOME_DELIVERED* ]] || fail dispatcher "has not delivered"

say "what arrived, as WeChat (the sandbox) has it"
# {"deliveries":[{...}]}
message=$(http "$sandbox" "/sandbox/deliveries?app_id=$app&openid=alice") ||
    fail sandbox "tells no deliveries: $message"
message=${message#*:\[}
message=${message%\]*}
[[ $message == \{*order-ready*\} ]] || die "the message did not arrive"
printf '%s\n' "$message" >&3

say "carol accepts a subscription, and gets a message for it: what WeChat serves today"
grants=$(http "$sandbox" /sandbox/grants '{"app_id": "'"$app"'", "grants": [
  {"openid": "carol", "template_id": "order-ready"}]}') ||
    fail sandbox "takes no grants: $grants"
rpc "$collector" formid.v1.CollectorService/Collect '{"app_id": "'"$app"'", "credentials": [
  {"openid": "carol", "grant": {"template_id": "order-ready", "grant_key": "accept-1"}}]}' ||
    fail collector "does not collect"
rpc "$dispatcher" formid.v1.DispatcherService/SendTemplate '{"app_id": "'"$app"'", "openid": "carol",
  "delivery": "DELIVERY_SUBSCRIPTION", "template_id": "order-ready", "request_id": "order-41",
  "data": {"thing1": {"value": "Order 41"}, "time2": {"value": "15:01"}}}' || fail dispatcher "does not send"
[[ $answer == *OUTCOME_DELIVERED* ]] || fail dispatcher "has not delivered"

# crowd BEFORE [AFTER ID...]: a JSON object for each of 300 users, twice, the ids in turn between BEFORE and AFTER.
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
    fail sandbox "takes no submissions: $ids"
IFS=' ' read -r -a ids <<<"$(tr -cs '[:alnum:]' ' ' <<<"${ids#*:}")"
printf '{"app_id": "%s", "credentials": [%s]}' "$app" "$(crowd '"form_id": "' '"' "${ids[@]}")" |
    "$FORMID_GRPCURL" -plaintext -max-time 20 -d @ "$collector" formid.v1.CollectorService/Collect >"$folder/collected" ||
    fail collector "does not collect"

say "all of them get a message, 100 a second; not alice, who had one just now, and not bob, who is left out"
echo bob >"$folder/not-to"
show "$binaries/examples/broadcast" --address "$dispatcher" --app "$app" --template spring \
    --data keyword1=hello --per-second 100 --min-interval 1h --exclude "$folder/not-to" ||
    fail dispatcher "does not broadcast"
[ -z "$once" ] || exit 0

say "everything is up; some calls to try in another terminal:"
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

Send twice to bob: WeChat knows nothing of the form id that was made up.
The sandbox keeps the books at http://127.0.0.1:$sandbox/sandbox/books?app_id=$app; logs are in $folder.
END
say "Ctrl-C stops everything"
watch
