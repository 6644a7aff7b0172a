# SPDX-License-Identifier: MIT
"""The lwIP yardstick: fetch Debian's source package, build it for speed, run the rows.

`python -m benchmarks.peers.lwip` prints one JSON object; `--help` lists the options.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

PORT_DIR = Path(__file__).resolve().parent / "lwip_port"

ROWS = ("64x1", "64x8", "64x32", "1024x32", "bulk")
"""Payload bytes and window of the request-reply rows (4 bytes more cross the wire), and bulk."""

DEBIAN_SUITE = "trixie"
"""The Debian release whose lwIP is taken (2.2.1); independent of the machine's own."""

DEBIAN_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

LWIP_FILES = (
    *(
        f"core/{name}.c"
        for name in (
            *("def", "inet_chksum", "init", "ip", "mem", "memp", "netif", "pbuf"),
            *("tcp", "tcp_in", "tcp_out", "timeouts"),
            *("ipv4/etharp", "ipv4/icmp", "ipv4/ip4", "ipv4/ip4_addr", "ipv4/acd"),
        )
    ),
    "netif/ethernet.c",
)

CALLGRIND_MSGS = {"bulk": (600, 1600)}
CALLGRIND_MSGS_REQUEST = (2000, 12000)


def fetch_source(cache_dir: Path = machine.CACHE_DIR) -> Path:
    """lwIP's source tree, downloaded once with apt into private directories.

    The machine's apt configuration stays as it is, and root is not needed. apt verifies the
    archive's signature and the file's checksum. `MACHNET_LWIP_SOURCE` names a tree to use instead.

    Args:
        cache_dir: where the download and the tree are kept.

    Returns:
        The directory with `src/core` in it.

    Raises:
        RuntimeError: no apt, no archive keyring, or the download failed.
    """
    named = os.environ.get("MACHNET_LWIP_SOURCE")
    if named:
        return _checked_tree(Path(named).resolve())
    home = machine.make_cache(cache_dir) / "lwip"
    tree = home / "source"
    if not tree.exists():
        home.mkdir(exist_ok=True)
        archive = _download(home)
        partial = home / f"unpack.{os.getpid()}"
        partial.mkdir()
        machine.run(["tar", "-xJf", str(archive), "-C", str(partial), "--strip-components=1"])
        partial.replace(tree)
    return _checked_tree(tree)


def build(cache_dir: Path = machine.CACHE_DIR) -> Path:
    """Build the yardstick, unless it is there already.

    Args:
        cache_dir: where downloads and builds are kept.

    Returns:
        The program `lwip_pair`, built with -O3 -march=native and link-time optimization. Beside it
        lies `lwip_pair_callgrind`, the same without AVX-512, which valgrind does not know.

    Raises:
        RuntimeError: no lwIP source to be had, no gcc or binutils, or the build failed.
    """
    cache_dir = machine.make_cache(cache_dir)
    tree = fetch_source(cache_dir)
    version = machine.run(["gcc", "--version"])
    port_files = sorted(path for path in PORT_DIR.rglob("*.[ch]"))
    name = machine.digest(version, _cpu_flags(), str(tree), Path(__file__), *port_files)
    home = cache_dir / "lwip" / f"build-{name}"
    program = home / "lwip_pair"
    if program.exists():
        return program
    partial = home.with_suffix(f".{os.getpid()}")
    partial.mkdir(parents=True)
    portable = "x86-64-v3" if platform.machine() == "x86_64" else "native"
    _compile(tree, partial, "lwip_pair_callgrind", portable)
    _compile(tree, partial, "lwip_pair", "native")
    if home.exists():
        shutil.rmtree(home)
    partial.replace(home)
    return program


def run(
    path: Path,
    rows: Iterable[str] = ROWS,
    seconds: float = 1.0,
    repeats: int = 1,
    options: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Measure rows; each is a process of its own, one thread, nothing of the kernel in its loop.

    Args:
        path: what `build` returned.
        rows: names from ROWS.
        seconds: how long one run measures, after its warm-up.
        repeats: runs of each row; the fastest is kept, because a disturbance only ever slows.
        options: further options of `lwip_pair`, such as `--msg-bytes 16384`.

    Returns:
        One dict a row, in order: the parameters (`row`, `work`, `msg_bytes`, `window_msgs`,
        `burst_frames`, `mtu_bytes`), `seconds`, `msgs`, `frames` (both directions), `ns_per_msg`,
        `msgs_per_s` (round trips; in bulk, writes of `msg_bytes`), `gbit_per_s` (payload, one
        direction).

    Raises:
        RuntimeError: a run failed, which includes wrong payload and lost frames.
    """
    results = []
    for row in rows:
        argv = [str(path), "--row", row, "--seconds", str(seconds), *options]
        tries = [json.loads(machine.run(argv, 60.0 + 2 * seconds)) for _ in range(repeats)]
        results.append(max(tries, key=lambda result: float(result["msgs_per_s"])))
    return results


def count_instructions(
    path: Path, rows: Iterable[str] = ROWS, options: Sequence[str] = ()
) -> dict[str, float]:
    """Instructions per message of each row, client and server together, from callgrind.

    Args:
        path: what `build` returned.
        rows: names from ROWS.
        options: further options of `lwip_pair`.

    Returns:
        Row name to instructions per message, application and wire included: the difference between
        a longer and a shorter run, divided by the messages between them.

    Raises:
        RuntimeError: no valgrind, or a run failed.
    """
    program = path.with_name("lwip_pair_callgrind")
    counts = {}
    for row in rows:
        points = []
        for messages in CALLGRIND_MSGS.get(row, CALLGRIND_MSGS_REQUEST):
            argv = [str(program), "--row", row, "--warmup", "0", "--messages", str(messages)]
            executed, printed = machine.instructions([*argv, *options])
            points.append((executed, int(json.loads(printed)["msgs_total"])))
        (base, base_msgs), (full, full_msgs) = points
        counts[row] = (full - base) / (full_msgs - base_msgs)
    return counts


def _download(home: Path) -> Path:
    """The upstream archive of Debian's source package, by apt with directories of its own."""
    if shutil.which("apt-get") is None or not KEYRING.exists():
        raise RuntimeError(
            "lwIP's source comes from Debian: this needs apt-get and the package "
            "debian-archive-keyring; or set MACHNET_LWIP_SOURCE to an unpacked lwIP"
        )
    apt = home / "apt"
    for directory in ("state/lists/partial", "cache/archives/partial", "download"):
        (apt / directory).mkdir(parents=True, exist_ok=True)
    sources = apt / "sources.list"
    sources.write_text(f"deb-src [signed-by={KEYRING}] {DEBIAN_MIRROR} {DEBIAN_SUITE} main\n")
    options = [
        *("-o", f"Dir::Etc::sourcelist={sources}"),
        *("-o", "Dir::Etc::sourceparts=/dev/null"),
        *("-o", f"Dir::State={apt / 'state'}"),
        *("-o", "Dir::State::status=/dev/null"),
        *("-o", f"Dir::Cache={apt / 'cache'}"),
        *("-o", "APT::Sandbox::User="),
    ]
    machine.run(["apt-get", "-q", *options, "update"])
    machine.run(
        ["apt-get", "-q", *options, "source", "--download-only", "lwip"], cwd=apt / "download"
    )
    archives = sorted((apt / "download").glob("lwip_*.orig.tar.xz"))
    if not archives:
        raise RuntimeError(f"apt-get source lwip left no .orig.tar.xz in {apt / 'download'}")
    return archives[-1]


def _checked_tree(tree: Path) -> Path:
    if not (tree / "src" / "core" / "tcp_in.c").exists():
        raise RuntimeError(f"{tree} is no lwIP source tree: it has no src/core/tcp_in.c")
    return tree


def _compile(tree: Path, home: Path, name: str, march: str) -> None:
    """One program: lwIP and its host twice, each with all its symbols made local but one."""
    flags = [
        *(
            "-std=gnu11",
            "-O3",
            f"-march={march}",
            "-flto",
            "-falign-functions=64",
            "-DNDEBUG",
            "-Wall",
            "-Wextra",
        ),
        *("-isystem", str(tree / "src" / "include"), "-I", str(PORT_DIR)),
    ]
    lwip = [str(tree / "src" / file) for file in LWIP_FILES]
    host = [str(PORT_DIR / file) for file in ("lwip_host.c", "lwip_sum.c")]
    whole = home / f"{name}.host.o"
    relocatable = ["-r", "-nostdlib", "-flinker-output=nolto-rel"]
    machine.run(["gcc", *flags, *relocatable, *host, *lwip, "-o", str(whole)])
    sides = []
    for side in ("client", "server"):
        part = home / f"{name}.{side}.o"
        machine.run(["objcopy", "--keep-global-symbol=mn_lwip_ops", str(whole), str(part)])
        machine.run(["objcopy", f"--redefine-sym=mn_lwip_ops=mn_lwip_{side}_ops", str(part)])
        sides.append(str(part))
    pair = str(PORT_DIR / "lwip_pair.c")
    machine.run(["gcc", *flags, pair, *sides, "-o", str(home / name)])


def _cpu_flags() -> str:
    """What -march=native depends on, so that a cache moved to another machine is built anew."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    return next((line for line in text.splitlines() if line.startswith("flags")), "")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: build, measure, print one JSON object; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.lwip", description=__doc__)
    parser.add_argument("--row", action="append", choices=ROWS, help="repeatable; default: all")
    parser.add_argument("--seconds", type=float, default=0.5, help="per run (default 0.5)")
    parser.add_argument("--repeats", type=int, default=3, help="runs a row; the fastest is kept")
    parser.add_argument("--msg-bytes", type=int, help="another message size for all rows")
    parser.add_argument("--window", type=int, help="another number of messages in flight")
    parser.add_argument("--callgrind", action="store_true", help="add instructions_per_msg")
    parser.add_argument("--cache-dir", type=Path, default=machine.CACHE_DIR)
    arguments = parser.parse_args(argv)
    rows = arguments.row or ROWS
    options = []
    for option in ("msg_bytes", "window"):
        value = getattr(arguments, option)
        if value is not None:
            options += [f"--{option.replace('_', '-')}", str(value)]
    try:
        program = build(arguments.cache_dir)
        before = machine.cache_line_round_trip_ns(cache_dir=arguments.cache_dir)
        results = run(program, rows, arguments.seconds, arguments.repeats, options)
        after = machine.cache_line_round_trip_ns(cache_dir=arguments.cache_dir)
        if arguments.callgrind:
            counts = count_instructions(program, rows, options)
            for result in results:
                result["instructions_per_msg"] = round(counts[result["row"]], 1)
    except RuntimeError as error:
        print(f"benchmarks.peers.lwip: {error}", file=sys.stderr)
        return 1
    report = {
        "machine": machine.describe(),
        "cache_line_round_trip_ns": {"before": before, "after": after},
        "rows": results,
    }
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
