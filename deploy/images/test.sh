#!/usr/bin/env bash
# Builds the three images and runs them, on bases that are made here, without a container registry: see usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
# shellcheck source-path=SCRIPTDIR source=../lib/say.sh
. "$root/deploy/lib/say.sh"
# shellcheck source-path=SCRIPTDIR source=../lib/install.sh
. "$root/deploy/lib/install.sh"
# shellcheck source-path=SCRIPTDIR source=../lib/services.sh
. "$root/deploy/lib/services.sh"

usage() {
    cat <<'END'
usage: deploy/images/test.sh [--fast] [--fresh] [--suite NAME] [--ca FILE] [-- OPTION...]

Makes the base images with debootstrap, builds the images of the sandbox, the collector and the dispatcher on them,
starts them with deploy/compose.yaml, and sends a message that the sandbox has to show as delivered. Then it changes a
line of the dispatcher in a copy of the sources, and checks that a build of all images compiles only the dispatcher
again. Standard output is a table of sizes and times; the first build, of the sandbox, includes the
dependencies of all three.
Needs a container engine, Compose, a toolchain of rustup, and, to make the base images, debootstrap and root.

Containers, network and volume are removed at the end, however it ends. The images stay, as formid-local/*, and so does
what the engine keeps for later builds (docker builder prune).

  --fast        build without optimisations, which takes a few minutes less
  --fresh       make the base images again, also those that are there
  --suite NAME  the release of Debian that the bases are of (trixie)
  --ca FILE     certificates in PEM that the base image for builds trusts too, such as that of a company's proxy; they
                do not get into the images
  -- OPTION...  more options for `docker build`, such as --network host
END
}

fast="" fresh="" suite=trixie authorities=/dev/null options=()
while [ $# -gt 0 ]; do
    case $1 in
    --fast) fast=yes ;;
    --fresh) fresh=yes ;;
    --suite | --ca)
        [ $# -gt 1 ] || die "$1 needs a value"
        if [ "$1" = --suite ]; then suite=$2; else authorities=$2; fi
        shift
        ;;
    --)
        shift
        options=("$@")
        break
        ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && die "unknown argument: $1" ;;
    esac
    shift
done
if [ -n "$fast" ]; then
    options+=(--build-arg LTO=off --build-arg CODEGEN_UNITS=16 --build-arg OPT_LEVEL=1)
fi

need_cargo
need_tools
[ -r "$authorities" ] || die "$authorities cannot be read"
docker version >/dev/null || die "the container engine does not answer"
# Clients before 23 have BuildKit built in, and use it only when asked to.
client=$(docker version --format '{{.Client.Version}}')
if [ "${client%%.*}" -lt 23 ]; then export DOCKER_BUILDKIT=1; fi
if docker compose version >/dev/null 2>&1; then
    compose() { docker compose "$@"; }
elif has docker-compose; then
    compose() { docker-compose "$@"; }
else
    die "please install Docker Compose"
fi
toolchain=$(rustc --print sysroot)
if [ ! -x "$toolchain/bin/cargo" ] || [ "$toolchain" = /usr ]; then die "$toolchain is not a toolchain of rustup"; fi

debian=formid-local/debian:$suite
rust=formid-local/rust:$suite-$(rustc --version | cut -d ' ' -f 2)
base=formid-local/base:$suite
names="sandbox collector dispatcher"

# From here on there is something to clean up, however this ends.
started=""
clean_up() {
    trap '' HUP INT TERM
    if [ -n "$started" ]; then compose down --volumes --timeout 10 >>"$folder/compose.log" 2>&1 || true; fi
    docker rmi formid-local/changed >/dev/null 2>&1 || true
    # debootstrap mounts these, and may have been ended before it took them away.
    umount "$folder/tree/proc" "$folder/tree/sys" 2>/dev/null || true
    rm -rf "$folder"
}
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
folder=$(mktemp -d "${TMPDIR:-/tmp}/formid-images.XXXXXX")
trap clean_up EXIT
table=$folder/table

# timed WHAT COMMAND...: runs the command and notes its time.
timed() {
    local what=$1 from=$SECONDS
    shift
    "$@"
    printf '%-26s %6d s\n' "$what" $((SECONDS - from)) | tee -a "$table" >&2
}

# import_image NAME FOLDER OPTION...: makes an image of one layer, with all that is in the folder.
import_image() {
    local name=$1 from=$2
    shift 2
    tar --directory "$from" --numeric-owner --create . | docker import "$@" - "$name" >/dev/null
}

# All three bases come out of one tree: Debian with a Redis and a C compiler; of that, what a program needs to run; and
# all of it with Rust.
make_bases() {
    local tree=$folder/tree small=$folder/small
    [ "$(id -u)" -eq 0 ] || die "debootstrap needs root: please run this as root, once"
    need debootstrap
    say "making the base images"
    debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev,redis-server "$suite" "$tree" \
        >"$folder/debootstrap.log" 2>&1 || {
        tail -n 30 "$folder/debootstrap.log" >&2
        die "debootstrap failed"
    }
    rm -rf "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/*
    # The user that the official image of Redis has, and its folder.
    install -d -o 999 -g 999 "$tree/data"
    import_image "$debian" "$tree" --change "ENTRYPOINT []"

    mkdir "$small"
    {
        chroot "$tree" dpkg -L base-files libc6 libgcc-s1
        printf '%s\n' /etc/nsswitch.conf /etc/ssl /etc/ssl/certs /etc/ssl/certs/ca-certificates.crt
    } | grep -vE '^/\.$|^/usr/share/(doc|man|locale|lintian|info)(/|$)' | sed 's|^/||' >"$folder/files"
    tar --directory "$tree" --no-recursion --files-from "$folder/files" --create | tar --directory "$small" --extract
    printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >"$small/etc/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\n' >"$small/etc/group"
    import_image "$base" "$small" --change "USER 65532:65532"

    cat "$authorities" >>"$tree/etc/ssl/certs/ca-certificates.crt"
    tar --directory "$toolchain" --create bin/cargo bin/rustc lib |
        tar --directory "$tree/usr/local" --no-same-owner --extract
    import_image "$rust" "$tree"
    rm -rf "$tree" "$small"
}

# build NAME FROM TAG: builds the image NAME from the sources in the folder FROM; its output is added to build.log.
build() {
    say "building $1"
    docker build --file "$2/deploy/images/Dockerfile" --target "$1" --tag "$3" \
        --build-arg "RUST_IMAGE=$rust" --build-arg "BASE_IMAGE=$base" \
        ${options[@]+"${options[@]}"} "$2" >"$folder/$1.log" 2>&1 </dev/null || {
        tail -n 30 "$folder/$1.log" >&2
        die "$1 does not build"
    }
    cat "$folder/$1.log" >>"$folder/build.log"
}

# compiled: what the builds compiled since the log was begun, one crate with its version on a line, as often as it was
# compiled. Crates of the workspace have their folder behind it.
compiled() {
    sed -nE 's/^(#[0-9]+ [0-9.]+ )? *Compiling ([^ ]+ v.*)/\2/p' "$folder/build.log" | sort
}

# until_ready WHAT COMMAND...: until the command succeeds, at most 60 seconds.
until_ready() {
    local what=$1 end=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || broken "$what is not ready after 60 seconds"
        sleep 0.2
    done
}

broken() {
    compose logs --no-color --tail 30 >&2 || true
    die "$1"
}

serving() {
    "$FORMID_GRPCURL" -plaintext -max-time 5 "$1" grpc.health.v1.Health/Check | grep -q '"SERVING"'
}

# rpc ADDRESS METHOD JSON: leaves the answer in $answer.
rpc() {
    answer=$("$FORMID_GRPCURL" -plaintext -max-time 20 -d "$3" "$1" "$2") || broken "$2 failed"
}

# held_to NAME: the container of the service runs as the image's own user, cannot write to its root, and has not.
held_to() {
    local container is changed
    container=$(compose ps --quiet "$1")
    is="$(docker inspect --format 'read-only {{.HostConfig.ReadonlyRootfs}}, user {{.Config.User}}' "$container"), uid"
    is="$is $(docker top "$container" -o pid,uid | awk 'NR == 2 { print $2 }')"
    [ "$is" = "read-only true, user 65532:65532, uid 65532" ] || broken "$1 does not run as it should: $is"
    changed=$(docker diff "$container" | grep -vE '^(C /etc|A /etc/formid.*)$' || true)
    [ -z "$changed" ] || broken "$1 changed files: $changed"
}

run() {
    local app=wx0123456789abcdef name id
    say "starting Redis, the sandbox, the collector and the dispatcher"
    export COMPOSE_PROJECT_NAME=formid-images-$$ COMPOSE_FILE=$root/deploy/compose.yaml
    export REDIS_IMAGE=$debian SANDBOX_IMAGE=formid-local/sandbox
    export COLLECTOR_IMAGE=formid-local/collector DISPATCHER_IMAGE=formid-local/dispatcher
    free_port 8700 && export SANDBOX_PORT=$port
    free_port 7001 && export COLLECTOR_PORT=$port
    free_port 7002 && export DISPATCHER_PORT=$port
    started=yes
    compose up --no-build --detach >"$folder/compose.log" 2>&1 || {
        cat "$folder/compose.log" >&2
        broken "the containers do not start"
    }
    until_ready sandbox http "$SANDBOX_PORT" /sandbox/settings
    until_ready collector serving "127.0.0.1:$COLLECTOR_PORT"
    until_ready dispatcher serving "127.0.0.1:$DISPATCHER_PORT"

    say "sending a message"
    id=$(http "$SANDBOX_PORT" /sandbox/submissions \
        '{"app_id": "'$app'", "submissions": [{"openid": "alice", "kind": "form"}]}') || broken "no form id: $id"
    # {"ids":["a"]}
    id=${id#*[\"} && id=${id%%\"*}
    rpc "127.0.0.1:$COLLECTOR_PORT" formid.v1.CollectorService/Collect \
        '{"app_id": "'$app'", "credentials": [{"openid": "alice", "form_id": "'"$id"'"}]}'
    rpc "127.0.0.1:$DISPATCHER_PORT" formid.v1.DispatcherService/SendTemplate '{"app_id": "'$app'", "openid": "alice",
        "template_id": "order-ready", "request_id": "order-42", "data": {"keyword1": {"value": "Order 42"}}}'
    answer=$(http "$SANDBOX_PORT" "/sandbox/deliveries?app_id=$app&openid=alice") || broken "no deliveries: $answer"
    [[ $answer == *'"Order 42"'* ]] || broken "the message was not delivered: $answer"
    say "delivered: $answer"
    for name in $names; do held_to "$name"; done

    say "stopping them"
    compose down --volumes >>"$folder/compose.log" 2>&1 || broken "the containers do not stop"
    started=""
}

# A change of one service must not compile the dependencies, nor the other programs, again.
build_changed() {
    local name again copy=$folder/copy
    mkdir -p "$copy"
    cp -R .dockerignore Cargo.toml Cargo.lock proto shared collector dispatcher deploy "$copy"
    printf '// changed\n' >>"$copy/dispatcher/src/main.rs"
    : >"$folder/build.log"
    for name in $names; do build "$name" "$copy" formid-local/changed; done
    again=$(compiled)
    [[ $again =~ ^dispatcher\ v[^$'\n']*$ ]] || die "after a change of the dispatcher these were compiled: ${again:-none}"
}

if [ -n "$fresh" ] || ! docker image inspect "$debian" "$rust" "$base" >/dev/null 2>&1; then
    timed "base images" make_bases
fi
for name in $names; do
    timed "build $name" build "$name" "$root" "formid-local/$name"
done
twice=$(compiled | sed '/(/d' | uniq --repeated)
[ -z "$twice" ] || die "these dependencies were compiled more than once: $twice"
timed "run and deliver" run
say "building again after a change of the dispatcher"
timed "build changed dispatcher" build_changed

# megabytes BYTES: with one decimal.
megabytes() {
    printf '%d.%d MB' $(($1 / 1000000)) $(($1 / 100000 % 10))
}
size() {
    docker image inspect --format '{{.Size}}' "$1"
}
for name in $names; do
    whole=$(size "formid-local/$name")
    printf '%-26s %s with its base of %s\n' "image $name" "$(megabytes "$whole")" "$(megabytes "$(size "$base")")"
done >>"$table"
cat "$table"
