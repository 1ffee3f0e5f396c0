# shellcheck shell=bash
# Prints messages for humans to standard error. Standard output is for results.

bold="" red="" plain=""
if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\033[1m' red=$'\033[31m' plain=$'\033[0m'
fi

say() {
    printf '%s==>%s %s\n' "$bold" "$plain" "$*" >&2
}

die() {
    printf '%serror:%s %s\n' "$red" "$plain" "$*" >&2
    exit 1
}
