# shellcheck shell=bash
# Words for people: all of them on standard error, so that standard output stays free for results.

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
