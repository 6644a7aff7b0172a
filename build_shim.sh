#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Builds the C library with nothing but a C compiler: libmachnet_shim.so here, and in compat/ and
# compat-tcp/ those for programs that were built for the original Machnet.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'USAGE'
usage: ./build_shim.sh [DIRECTORY]

Leaves libmachnet_shim.so in DIRECTORY (default: beside this script), and compat/ and compat-tcp/ in it.

Environment: CC (default cc), CFLAGS (added; -DMN_SHIM_CHECKED refuses a second thread on a channel),
LDFLAGS.
USAGE
}

case ${1:-} in
-h | --help)
    usage
    exit 0
    ;;
-*)
    usage >&2
    exit 2
    ;;
esac

CC=${CC:-cc}
command -v "${CC%% *}" >/dev/null || {
    echo "build_shim.sh: no C compiler ($CC): install gcc and libc6-dev" >&2
    exit 1
}
mkdir -p "${1:-$ROOT}"
OUT=$(cd "${1:-$ROOT}" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

version=$(sed -n "s/^ *version: '\(.*\)',/\1/p" "$ROOT/meson.build" | head -n 1)
# CC and CFLAGS may be several words.
# shellcheck disable=SC2206
COMPILE=($CC -std=gnu11 -O2 -g -fPIC -fvisibility=hidden -ffunction-sections -D_GNU_SOURCE
    "-DMN_VERSION=\"$version\"" "-I$ROOT" ${CFLAGS:-} -pthread)

cd "$ROOT"
compile() { # SOURCE OBJECT [FLAGS]
    local source=$1 object=$2
    shift 2
    "${COMPILE[@]}" "$@" -c "$source" -o "$WORK/$object"
}

# As many at once as there are CPUs.
jobs_max=$(nproc 2>/dev/null || echo 1)
common=()
pids=()
start() {
    compile "$@" &
    pids+=($!)
    if [ "${#pids[@]}" -ge "$jobs_max" ]; then
        wait "${pids[0]}"
        pids=("${pids[@]:1}")
    fi
}
for source in machnet/stack/core/*.c machnet/stack/core/wire/*.c machnet/stack/host/*.c \
    machnet/shim/client.c machnet/shim/shim*.c; do
    object=${source//\//_}
    object=${object%.c}.o
    common+=("$WORK/$object")
    start "$source" "$object"
done
start machnet/shim/machnet.c main.o
start machnet/shim/compat.c compat.o
start machnet/shim/compat.c compat-tcp.o -DMN_SHIM_COMPAT_TCP
for pid in "${pids[@]}"; do
    wait "$pid"
done

link() { # OBJECT DIRECTORY
    mkdir -p "$2"
    # shellcheck disable=SC2206
    local command=("${COMPILE[@]}" -shared "$WORK/$1" "${common[@]}" -Wl,--gc-sections -Wl,-z,defs
        -Wl,-soname,libmachnet_shim.so.0 -Wl,--version-script,machnet/shim/exports.map ${LDFLAGS:-})
    # A sanitizer's symbols are the program's to bring.
    case " ${CFLAGS:-} " in *sanitize*) command+=(-Wl,-z,undefs) ;; esac
    "${command[@]}" -o "$2/libmachnet_shim.so.new"
    # In one step, so that a program that has it open keeps its own.
    mv -f "$2/libmachnet_shim.so.new" "$2/libmachnet_shim.so"
    ln -sf libmachnet_shim.so "$2/libmachnet_shim.so.0"
}
link main.o "$OUT"
link compat.o "$OUT/compat"
link compat-tcp.o "$OUT/compat-tcp"
echo "build_shim.sh: $OUT/libmachnet_shim.so, and those in compat/ and compat-tcp/" >&2
