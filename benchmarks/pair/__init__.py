# SPDX-License-Identifier: MIT
"""Two machnet stacks back to back in one thread: build the program, run its rows.

What joins them is a Wire, or two ports of DPDK with rings in between (net_ring).
`raw` is the plain byte stream, its application being the TCP's user itself as on lwIP's raw API;
`framed` are messages through the channels of both stacks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

ROWS = ("64x1", "64x8", "64x32", "1024x32", "bulk")
MODES = ("raw", "framed")
NICS = ("wire", "ring")

CALLGRIND_MSGS = (10_000, 30_000)

IDLE_MSGS = 4000


HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
DPDK_MB = 128


def sources(*, dpdk: bool = False) -> list[Path]:
    """Everything that the program is made of: the core, the NICs, and itself."""
    core = ROOT / "machnet" / "stack" / "core"
    sim = ROOT / "machnet" / "sim"
    return [
        *sorted(HERE.glob("*.c")),
        *sorted(core.glob("*.c")),
        *sorted((core / "wire").glob("*.c")),
        *(sim / name for name in ("wire.c", "pktpool.c", "nickit.c")),
        *(sorted((ROOT / "machnet" / "dpdk").glob("*.c")) if dpdk else ()),
    ]


def dpdk_flags() -> tuple[list[str], list[str]]:
    """What gcc needs for DPDK, in front of the sources and behind them.

    Raises:
        RuntimeError: it is not installed.
    """
    found = [
        subprocess.run(
            ["pkg-config", option, "libdpdk"], capture_output=True, text=True, check=False
        )
        for option in ("--cflags", "--libs")
        if shutil.which("pkg-config")
    ]
    if not found or any(one.returncode for one in found):
        raise RuntimeError("the ring wants DPDK (apt-get install libdpdk-dev dpdk-dev pkg-config)")
    defines = ["-DALLOW_EXPERIMENTAL_API", "-DMN_DPDK_HAVE_RING=1", "-DPAIR_HAVE_DPDK=1"]
    return [*found[0].stdout.split(), *defines], [
        *found[1].stdout.split(),
        "-lrte_net_ring",
        "-pthread",
    ]


def build(
    cache_dir: Path = machine.CACHE_DIR, *, march: str = "native", dpdk: bool = False
) -> Path:
    """Compile the program, unless this very tree was compiled before.

    Args:
        cache_dir: where the program is kept.
        march: gcc's `-march`. valgrind 3.19 knows no AVX-512: `haswell` suits it.
        dpdk: one that has the ring as well.

    Returns:
        The program.

    Raises:
        RuntimeError: no compiler, no DPDK, or it failed.
    """
    files = sources(dpdk=dpdk)
    headers = sorted({p for d in {f.parent for f in files} for p in d.glob("*.h")})
    before, behind = dpdk_flags() if dpdk else ([], [])
    flags = [*before, "-std=gnu11", "-O3", "-g", "-flto=auto", f"-march={march}"]
    flags += ["-falign-functions=64", "-D_GNU_SOURCE"]  # as meson.build
    name = machine.digest(*files, *headers, " ".join(flags))
    program = machine.make_cache(cache_dir) / f"pair-{march}-{name}"
    if not program.exists():
        new = program.with_suffix(f".{os.getpid()}")
        machine.run(["gcc", *flags, f"-I{ROOT}", *map(str, files), "-o", str(new), *behind])
        new.replace(program)
    return program


def nic_options(nic: str, *, huge: bool | None = None) -> list[str]:
    """What the program is told of its NIC.

    Args:
        nic: one of `NICS`.
        huge: whether DPDK's memory is in huge pages; None: if there are enough.
    """
    if nic == "wire":
        return ["--nic", nic]
    if huge is None:
        huge = HUGE_PAGES.exists() and int(HUGE_PAGES.read_text()) * 2 >= DPDK_MB
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    eal = ["--lcores", f"0@({cpus})", "-a", "0000:00:00.0", "--no-telemetry", "-m", str(DPDK_MB)]
    eal += ["--in-memory"] if huge else ["--no-huge", "--no-shconf"]
    return ["--nic", nic, *(word for one in eal for word in ("--eal", one))]


def run(
    program: Path,
    rows: Iterable[str] = ROWS,
    modes: Iterable[str] = MODES,
    seconds: float = 1.0,
    nics: Iterable[str] = NICS[:1],
) -> list[dict[str, Any]]:
    """One run of each row in each mode over each NIC, as the program reports it.

    Raises:
        RuntimeError: a run failed, or messages came back wrong.
    """
    return [
        json.loads(
            machine.run(
                [
                    *(str(program), "--mode", mode, "--row", row, "--seconds", f"{seconds:g}"),
                    *nic_options(nic),
                ]
            )
        )
        for row in rows
        for mode in modes
        for nic in nics
    ]


def count_instructions(
    program: Path,
    rows: Iterable[str] = ROWS,
    modes: Iterable[str] = MODES,
    nic: str = "wire",
) -> dict[str, dict[str, float]]:
    """Instructions per message of both sides, by mode and row (for `bulk`, per 8 KiB message).

    Args:
        program: one built with `march="haswell"` or older.
        rows: which rows.
        modes: which modes.
        nic: what joins the stacks; DPDK without huge pages, which valgrind does not know.

    Raises:
        RuntimeError: no valgrind, or a run failed.
    """
    few, many = CALLGRIND_MSGS

    def count(mode: str, row: str) -> float:
        counts = [
            machine.instructions(
                [
                    *(str(program), "--mode", mode, "--row", row, "--messages", str(n)),
                    *nic_options(nic, huge=False),
                ],
                within="pair_counted*",
            )
            for n in (few, many)
        ]
        done = [json.loads(printed)["msgs_total"] for _, printed in counts]
        return (counts[1][0] - counts[0][0]) / (done[1] - done[0])

    return {mode: {row: count(mode, row) for row in rows} for mode in modes}


def count_beside_idle(
    program: Path, mode: str, idle: int, *, cycles: int | None = None
) -> tuple[float, dict[str, Any]]:
    """What one unit of work costs beside so many established connections on which nothing happens.

    How these came to be is not counted, and their handshakes' timers have run out.

    Args:
        program: one built with `march="haswell"` or older.
        mode: "raw" or "framed".
        idle: connections.
        cycles: None: the unit is a message of 64 bytes and its echo on one more connection; else
            it is opening and closing one, so many in turn.

    Returns:
        Instructions per unit, of both sides, and the program's report.

    Raises:
        RuntimeError: no valgrind, or the run failed.
    """
    work = ["--messages", str(IDLE_MSGS)] if cycles is None else ["--cycles", str(cycles)]
    argv = [str(program), "--mode", mode, *work, "--idle", str(idle)]
    executed, printed = machine.instructions(argv, within="pair_counted*")
    report = json.loads(printed)
    return executed / report["msgs"], report


def memory_per_connection(program: Path) -> dict[str, float]:
    """Bytes that one more connection takes: of the engine, of its lane, and shared with its user.

    Raises:
        RuntimeError: the run failed.
    """
    sizes: dict[str, float] = json.loads(machine.run([str(program), "--memory"]))
    return sizes
