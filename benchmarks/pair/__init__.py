# SPDX-License-Identifier: MIT
"""Two machnet stacks back to back in one thread: build the program, run its rows.

`raw` is the plain byte stream, its application being the TCP's user itself as on lwIP's raw API;
`framed` are messages through the channels of both stacks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

ROWS = ("64x1", "64x8", "64x32", "1024x32", "bulk")
MODES = ("raw", "framed")

CALLGRIND_MSGS = (10_000, 30_000)

IDLE_MSGS = 4000


def sources() -> list[Path]:
    """Everything that the program is made of: the core, the wire NIC, and itself."""
    core = ROOT / "machnet" / "stack" / "core"
    sim = ROOT / "machnet" / "sim"
    return [
        *sorted(HERE.glob("*.c")),
        *sorted(core.glob("*.c")),
        *sorted((core / "wire").glob("*.c")),
        *(sim / name for name in ("wire.c", "pktpool.c", "nickit.c")),
    ]


def build(cache_dir: Path = machine.CACHE_DIR, *, march: str = "native") -> Path:
    """Compile the program, unless this very tree was compiled before.

    Args:
        cache_dir: where the program is kept.
        march: gcc's `-march`. valgrind 3.19 knows no AVX-512: `haswell` suits it.

    Returns:
        The program.

    Raises:
        RuntimeError: no compiler, or it failed.
    """
    files = sources()
    headers = sorted({p for d in {f.parent for f in files} for p in d.glob("*.h")})
    flags = ["-std=gnu11", "-O3", "-g", "-flto=auto", f"-march={march}", "-D_GNU_SOURCE"]
    name = machine.digest(*files, *headers, " ".join(flags))
    program = machine.make_cache(cache_dir) / f"pair-{march}-{name}"
    if not program.exists():
        new = program.with_suffix(f".{os.getpid()}")
        machine.run(["gcc", *flags, f"-I{ROOT}", *map(str, files), "-o", str(new)])
        new.replace(program)
    return program


def run(
    program: Path,
    rows: Iterable[str] = ROWS,
    modes: Iterable[str] = MODES,
    seconds: float = 1.0,
) -> list[dict[str, Any]]:
    """One run of each row in each mode, as the program reports it.

    Raises:
        RuntimeError: a run failed, or messages came back wrong.
    """
    return [
        json.loads(
            machine.run([str(program), "--mode", mode, "--row", row, "--seconds", f"{seconds:g}"])
        )
        for row in rows
        for mode in modes
    ]


def count_instructions(
    program: Path, rows: Iterable[str] = ROWS, modes: Iterable[str] = MODES
) -> dict[str, dict[str, float]]:
    """Instructions per message of both sides, by mode and row (for `bulk`, per 8 KiB message).

    Args:
        program: one built with `march="haswell"` or older.
        rows: which rows.
        modes: which modes.

    Raises:
        RuntimeError: no valgrind, or a run failed.
    """
    few, many = CALLGRIND_MSGS

    def count(mode: str, row: str) -> float:
        counts = [
            machine.instructions([str(program), "--mode", mode, "--row", row, "--messages", str(n)])
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
