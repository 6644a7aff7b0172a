#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# One entry point for a fresh machine: makes a virtual environment, builds machnet into it, runs it.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VENV=${MACHNET_VENV:-$ROOT/.venv}
TOX_SPEC='tox>=4.24,<5'
# What --no-build-isolation expects to find; keep in step with [build-system] in pyproject.toml.
BUILD_SPECS=('meson-python>=0.17.1' 'meson>=1.3' 'ninja>=1.11' 'cffi>=1.16')

usage() {
    cat <<'USAGE'
usage: ./machnet.sh COMMAND [ARGUMENTS]

  setup               make .venv and install machnet into it
  demo [ARGUMENTS]    set up, then run the demo (machnet demo --help says what it takes)
  test [ARGUMENTS]    run every check; arguments go to tox, e.g. test -e lint, test -e py -- -k wire
  dev                 an editable install with all tools, which rebuilds the C code on import
  --mac MAC --ip IP   set up, then run the sidecar (machnet run --help says what else it takes: --nic,
                      --config, --socket); "run" may stand in front
  --help              this text

Environment: MACHNET_VENV is the virtual environment (default .venv beside this script);
MACHNET_PYTHON is the Python to make it with (3.10 or later).
System packages are installed only when run as root, only those that are missing, and by name.
USAGE
}

say() {
    printf 'machnet.sh: %s\n' "$*" >&2
}

die() {
    say "$1"
    exit "${2:-1}"
}

trap 'trap - INT; say "interrupted"; exit 130' INT
trap 'trap - TERM; say "terminated"; exit 143' TERM

# --- system packages ---------------------------------------------------------------------------

# Installs what is named and not there. Says so first; when not root, only says what is missing.
install_packages() {
    [ $# -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null; then
        say "missing: $* (Debian's names; there is no apt-get here, so please install them)"
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        say "missing, and installed only by root: apt-get install $*"
        return 1
    fi
    say "installing system packages: $*"
    if [ -z "${APT_UPDATED:-}" ]; then
        apt_get update || say "apt-get update failed; going on with the lists that are there"
        APT_UPDATED=1
    fi
    apt_get install --no-install-recommends "$@" && return 0
    # One name that this release does not have must not keep the others out.
    local package failed=0
    for package in "$@"; do
        apt_get install --no-install-recommends "$package" || {
            say "could not install $package"
            failed=1
        }
    done
    return "$failed"
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 \
        "$@" </dev/null >/dev/null
}

# The tools that only tests use. Each test that needs one says so when it is skipped.
test_packages() {
    local missing=()
    command -v clang-14 >/dev/null || missing+=(clang-14)
    compgen -G '/usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.fuzzer*' >/dev/null ||
        missing+=(libclang-rt-14-dev)
    command -v git >/dev/null || missing+=(git)
    command -v tshark >/dev/null || missing+=(tshark)
    command -v ip >/dev/null || missing+=(iproute2)
    command -v ethtool >/dev/null || missing+=(ethtool)
    command -v strace >/dev/null || missing+=(strace)
    command -v curl >/dev/null || missing+=(curl)
    command -v valgrind >/dev/null || missing+=(valgrind)
    command -v g++ >/dev/null || missing+=(g++)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    command -v node >/dev/null || missing+=(nodejs)
    command -v npm >/dev/null || missing+=(npm)
    command -v mono >/dev/null || missing+=(mono-runtime)
    command -v mcs >/dev/null || missing+=(mono-mcs)
    have_dpdk || missing+=(libdpdk-dev dpdk-dev)
    install_packages "${missing[@]}" || say "going on without; the tests that need these are skipped"
}

have_dpdk() {
    command -v pkg-config >/dev/null && pkg-config --exists 'libdpdk >= 22.11'
}

# Whether the arguments of a command ask for a NIC that only DPDK drives: --dpdk, a NIC string without
# the name of another driver in front, or a MAC address alone.
wants_dpdk() {
    local argument before='' nic='' mac=''
    for argument; do
        case $before in
        --nic) nic=$argument ;;
        --mac) mac=$argument ;;
        esac
        case $argument in
        --dpdk) return 0 ;;
        --nic=*) nic=${argument#*=} ;;
        --mac=*) mac=${argument#*=} ;;
        esac
        before=$argument
    done
    case $nic in
    '') [ -n "$mac" ] ;;
    tap:* | link:* | pcap:* | wire:*) return 1 ;;
    esac
}

# So that the build finds it. Without it machnet says what is missing when such a NIC is opened.
dpdk_packages() {
    local missing=()
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    have_dpdk || missing+=(libdpdk-dev dpdk-dev)
    install_packages "${missing[@]}" || say "going on without DPDK"
}

compiler_works() {
    local compiler=${CC:-cc}
    command -v "${compiler%% *}" >/dev/null || return 1
    printf '#include <stdio.h>\nint main(void) { return 0; }\n' |
        $compiler -x c -o /dev/null - >/dev/null 2>&1
}

# --- Python ------------------------------------------------------------------------------------

# A name on PATH may be a pyenv shim that leads nowhere, or a Python without its headers.
python_works() {
    "$1" - >/dev/null 2>&1 <<'PROBE'
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 10) and os.path.exists(header)))
PROBE
}

find_python() {
    local candidate
    if [ -n "${MACHNET_PYTHON:-}" ]; then
        python_works "$MACHNET_PYTHON" ||
            die "MACHNET_PYTHON=$MACHNET_PYTHON is not a Python 3.10 or later with venv and headers"
        PYTHON=$MACHNET_PYTHON
        return 0
    fi
    for candidate in python3 /usr/bin/python3 python3.{13,12,11,10}; do
        if command -v "$candidate" >/dev/null && python_works "$candidate"; then
            PYTHON=$candidate
            return 0
        fi
    done
    return 1
}

system_basics() {
    local missing=()
    compiler_works || missing+=(gcc libc6-dev)
    find_python || missing+=(python3 python3-venv python3-dev)
    command -v ip >/dev/null || missing+=(iproute2)
    install_packages "${missing[@]}" || true
    compiler_works || die "no working C compiler (${CC:-cc}): install gcc and libc6-dev"
    find_python ||
        die "no Python 3.10 or later with venv and headers: install python3 python3-venv python3-dev"
}

# --- the virtual environment -------------------------------------------------------------------

stamp_is() {
    [ -f "$VENV/.machnet-$1" ] && [ "$(cat "$VENV/.machnet-$1")" = "$2" ]
}

stamp() {
    printf '%s\n' "$2" >"$VENV/.machnet-$1"
}

# One hash over names and contents, so that an added or removed file counts as a change too.
hash_of() {
    find "$@" -type f ! -path '*/__pycache__/*' ! -name '*.so' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1
}

pip_install() {
    "$VENV/bin/python" -m pip --disable-pip-version-check install --quiet "$@"
}

# Two runs at once must not install into one environment. The lock is given up before anything is run.
lock() {
    mkdir -p "$(dirname "$VENV")"
    exec 9>"$VENV.lock"
    flock --nonblock 9 || {
        say "waiting for another machnet.sh to finish with $VENV"
        flock 9
    }
}

unlock() {
    exec 9>&-
}

make_venv() {
    # A virtual environment does not survive being moved, so its place is part of the stamp.
    if stamp_is venv "$VENV" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        return 0
    fi
    system_basics
    say "making $VENV with $("$PYTHON" --version)"
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
    stamp venv "$VENV"
}

install_tox() {
    stamp_is tox "$TOX_SPEC" && return 0
    say "installing $TOX_SPEC into $VENV"
    pip_install "$TOX_SPEC"
    stamp tox "$TOX_SPEC"
}

install_machnet() {
    # A development install follows the sources by itself.
    [ ! -f "$VENV/.machnet-dev" ] || return 0
    local sources
    sources=$(cd "$ROOT" && hash_of pyproject.toml meson.build meson.options machnet pytest_machnet)
    # A library that has come since, or changed, is built against.
    sources="$sources $(pkg-config --modversion libdpdk 2>/dev/null || true)"
    stamp_is wheel "$sources" && return 0
    compiler_works || system_basics
    say "building machnet and installing it into $VENV"
    pip_install "$ROOT"
    stamp wheel "$sources"
}

install_dev() {
    local build=$VENV/build-dev described
    described=$(cd "$ROOT" && { cat pyproject.toml meson.options; find . -path './.*' -prune -o \
        -name meson.build -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; } | sha256sum)
    if ! stamp_is dev "$described"; then
        compiler_works || system_basics
        say "installing machnet into $VENV, editable, with the tools for tests, lint and types"
        # pip reads dependency groups from 25.1 on; Debian 12 and Ubuntu 24.04 bring older ones.
        pip_install 'pip>=25.1' "${BUILD_SPECS[@]}" "$TOX_SPEC"
        rm -f "$VENV/.machnet-wheel"
        # Without link-time optimisation, which would take a minute after each change.
        pip_install --no-build-isolation "-Cbuild-dir=$build" -Csetup-args=-Db_lto=false -e "$ROOT"
        (cd "$ROOT" && pip_install --group test --group lint --group types)
        stamp dev "$described"
    fi
    # Importing would build too, but without showing what the compiler says.
    "$VENV/bin/ninja" -C "$build" --quiet
    say "ready: $VENV/bin/python -m pytest"
}

# --- commands ----------------------------------------------------------------------------------

main() {
    local command=${1:-}
    [ $# -eq 0 ] || shift
    case $command in
    setup | demo | run | dev | test) ;;
    -h | --help | help)
        usage
        return 0
        ;;
    # Whatever option is first: machnet run says which there are.
    --*)
        set -- "$command" "$@"
        command=run
        ;;
    '')
        usage >&2
        return 2
        ;;
    *)
        usage >&2
        die "unknown command: $command" 2
        ;;
    esac

    lock
    make_venv
    # meson and ninja are found by name.
    export PATH="$VENV/bin:$PATH"
    case $command in
    setup)
        install_machnet
        say "ready: $VENV/bin/machnet --help"
        ;;
    demo | run)
        ! wants_dpdk "$@" || dpdk_packages
        install_machnet
        unlock
        exec "$VENV/bin/machnet" "$command" "$@"
        ;;
    dev)
        install_dev
        ;;
    test)
        test_packages
        install_tox
        unlock
        exec "$VENV/bin/tox" run --root "$ROOT" -c "$ROOT/tox.ini" "$@"
        ;;
    esac
}

main "$@"
