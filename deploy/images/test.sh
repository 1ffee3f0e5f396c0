#!/usr/bin/env bash
# Builds the three images on locally made base images, without a container registry, and runs them: see usage below.
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
starts them with deploy/compose.yaml, and sends a message that the sandbox must report as delivered. Then it changes a
line of the dispatcher in a copy of the sources, and checks that building all images compiles only the dispatcher again.
Standard output is a table of sizes and times; the first build, of the sandbox, includes the dependencies of all three.
Needs a container engine, Compose, a rustup toolchain, and debootstrap and root for making the base images.

Containers, network and volume are always removed at the end. The images remain as formid-local/*, and so does the build
cache of the engine (docker builder prune).

  --fast        build without optimizations, which is a few minutes faster
  --fresh       make the base images again even if they exist
  --suite NAME  the Debian release of the base images (default trixie)
  --ca FILE     certificates in PEM that the base image for builds trusts too, such as that of a company's proxy; they
                are not part of the built images
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
# Clients before version 23 have BuildKit but use it only if this variable is set.
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
if [ ! -x "$toolchain/bin/cargo" ] || [ "$toolchain" = /usr ]; then die "$toolchain is not a rustup toolchain"; fi

debian=formid-local/debian:$suite
rust=formid-local/rust:$suite-$(rustc --version | cut -d ' ' -f 2)
base=formid-local/base:$suite
names="sandbox collector dispatcher"

# From here on, clean up on every exit.
started=""
clean_up() {
    trap '' HUP INT TERM
    if [ -n "$started" ]; then compose down --volumes --timeout 10 >>"$folder/compose.log" 2>&1 || true; fi
    docker rmi formid-local/changed >/dev/null 2>&1 || true
    # debootstrap mounts these, and may have been killed before it unmounted them.
    umount "$folder/tree/proc" "$folder/tree/sys" 2>/dev/null || true
    rm -rf "$folder"
}
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
folder=$(mktemp -d "${TMPDIR:-/tmp}/formid-images.XXXXXX")
trap clean_up EXIT
table=$folder/table

# timed WHAT COMMAND...: runs the command and records its time.
timed() {
    local what=$1 from=$SECONDS
    shift
    "$@"
    printf '%-26s %6d s\n' "$what" $((SECONDS - from)) | tee -a "$table" >&2
}

# import_image NAME FOLDER OPTION...: makes an image with one layer that contains the folder.
import_image() {
    local name=$1 from=$2
    shift 2
    tar --directory "$from" --numeric-owner --create . | docker import "$@" - "$name" >/dev/null
}

# Makes three base images from one tree: Debian with Redis and a C compiler; the part of it that a program needs to run;
# and all of it with Rust.
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
    # The data folder with the user of the official Redis image.
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

# build NAME FROM TAG: builds the image NAME from the sources in the folder FROM; appends its output to build.log.
build() {
    say "building $1"
    docker build --file "$2/deploy/images/Dockerfile" --target "$1" --tag "$3" \
        --build-arg "RUST_IMAGE=$rust" --build-arg "BASE_IMAGE=$base" \
        ${options[@]+"${options[@]}"} "$2" >"$folder/$1.log" 2>&1 </dev/null || {
        tail -n 30 "$folder/$1.log" >&2
        die "cannot build $1"
    }
    cat "$folder/$1.log" >>"$folder/build.log"
}

# compiled: prints the crates that the builds in build.log compiled, one line with the version for each compilation.
# Lines of workspace crates also have their folder.
compiled() {
    sed -nE 's/^(#[0-9]+ [0-9.]+ )? *Compiling ([^ ]+ v.*)/\2/p' "$folder/build.log" | sort
}

# until_ready WHAT COMMAND...: waits until the command succeeds, at most 60 seconds.
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

# rpc ADDRESS METHOD JSON: makes a call and sets $answer.
rpc() {
    answer=$("$FORMID_GRPCURL" -plaintext -max-time 20 -d "$3" "$1" "$2") || broken "$2 failed"
}

# held_to NAME: checks that the container of the service runs as the image's user, has a read-only root, and changed no
# files.
held_to() {
    local container is changed
    container=$(compose ps --quiet "$1")
    is="$(docker inspect --format 'read-only {{.HostConfig.ReadonlyRootfs}}, user {{.Config.User}}' "$container"), uid"
    is="$is $(docker top "$container" -o pid,uid | awk 'NR == 2 { print $2 }')"
    [ "$is" = "read-only true, user 65532:65532, uid 65532" ] || broken "$1 runs with wrong settings: $is"
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
        broken "cannot start the containers"
    }
    until_ready sandbox http "$SANDBOX_PORT" /sandbox/settings
    until_ready collector serving "127.0.0.1:$COLLECTOR_PORT"
    until_ready dispatcher serving "127.0.0.1:$DISPATCHER_PORT"

    say "sending a message"
    id=$(http "$SANDBOX_PORT" /sandbox/submissions \
        '{"app_id": "'$app'", "submissions": [{"openid": "alice", "kind": "form"}]}') || broken "the sandbox returned no form id: $id"
    # {"ids":["a"]}
    id=${id#*[\"} && id=${id%%\"*}
    rpc "127.0.0.1:$COLLECTOR_PORT" formid.v1.CollectorService/Collect \
        '{"app_id": "'$app'", "credentials": [{"openid": "alice", "form_id": "'"$id"'"}]}'
    rpc "127.0.0.1:$DISPATCHER_PORT" formid.v1.DispatcherService/SendTemplate '{"app_id": "'$app'", "openid": "alice",
        "template_id": "order-ready", "request_id": "order-42", "data": {"keyword1": {"value": "Order 42"}}}'
    answer=$(http "$SANDBOX_PORT" "/sandbox/deliveries?app_id=$app&openid=alice") || broken "the sandbox returned no deliveries: $answer"
    [[ $answer == *'"Order 42"'* ]] || broken "the message was not delivered: $answer"
    say "delivered: $answer"
    for name in $names; do held_to "$name"; done

    say "stopping them"
    compose down --volumes >>"$folder/compose.log" 2>&1 || broken "cannot stop the containers"
    started=""
}

# After a change of one service, neither the dependencies nor the other programs may be compiled again.
build_changed() {
    local name again copy=$folder/copy
    mkdir -p "$copy"
    cp -R .dockerignore Cargo.toml Cargo.lock proto shared collector dispatcher deploy "$copy"
    printf '// changed\n' >>"$copy/dispatcher/src/main.rs"
    : >"$folder/build.log"
    for name in $names; do build "$name" "$copy" formid-local/changed; done
    again=$(compiled)
    [[ $again =~ ^dispatcher\ v[^$'\n']*$ ]] ||
        die "expected that only the dispatcher is compiled again, but these were: ${again:-none}"
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

# megabytes BYTES: prints the size in MB with one decimal.
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
