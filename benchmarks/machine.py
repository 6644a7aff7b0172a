# SPDX-License-Identifier: MIT
"""The machine that a benchmark runs on: what it is, and how fast its cores talk to each other.

The host of a virtual machine moves its cores about, and shared memory is then several times slower.
A benchmark therefore records the cache-line round trip before and after, and compares only runs
whose figures are of one class.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE_DIR = HERE / ".cache"
"""Where benchmarks keep what they download and build; git ignores it."""

CLRT_TIMEOUT_S = 30.0


def describe() -> dict[str, Any]:
    """What a reader needs to know of the machine.

    Returns:
        `cpu` (model name), `cpus` (how many this process may use), `kernel`, `python`, `compiler`
        (the first line of `gcc --version`, or None).
    """
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiler": _first_line(["gcc", "--version"]),
    }


def cache_line_round_trip_ns(
    cpus: tuple[int, int] | None = None, cache_dir: Path = CACHE_DIR
) -> float | None:
    """Time for a cache line from one core to another and back, in ns (median of short batches).

    Takes about 20 ms, with both cores spinning; far longer when something else uses them.

    Args:
        cpus: the two CPUs; None means the first two that this process may use.
        cache_dir: where the little program is built.

    Returns:
        The median in ns (about 100 to 500), or None with less than two CPUs.

    Raises:
        RuntimeError: no compiler, or the program failed.
    """
    usable = sorted(os.sched_getaffinity(0))
    if cpus is None:
        if len(usable) < 2:
            return None
        cpus = (usable[0], usable[1])
    program = _build_clrt(cache_dir)
    answer = json.loads(run([str(program), *map(str, cpus)], timeout_s=CLRT_TIMEOUT_S))
    return float(answer["median_ns"])


def instructions(
    argv: list[str], timeout_s: float = 300.0, *, within: str | None = None
) -> tuple[int, str]:
    """Run a command under callgrind, children not included.

    valgrind 3.19 knows no AVX-512: give it a program that was built without.

    Args:
        argv: the command; it should do a fixed amount of work, in an order that no clock decides.
        timeout_s: end it after so many seconds.
        within: count only within this function and what it calls; "*" stands for any letters.

    Returns:
        Instructions executed, from the program's start to its end, and what it printed. Take the
        difference between two amounts of work, so that start-up and warm-up fall out.

    Raises:
        RuntimeError: no valgrind, or the command failed.
    """
    if shutil.which("valgrind") is None:
        raise RuntimeError("instruction counts need valgrind (apt-get install valgrind)")
    part = [] if within is None else [f"--toggle-collect={within}"]
    with tempfile.TemporaryDirectory() as scratch:
        profile = Path(scratch) / "callgrind.out"
        printed = run(
            ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={profile}", *part, *argv],
            timeout_s=timeout_s,
        )
        found = re.search(r"^(?:summary|totals): (\d+)", profile.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"callgrind counted nothing for {argv[0]}")
    return int(found.group(1)), printed


def run(argv: list[str], timeout_s: float = 300.0, cwd: Path | None = None) -> str:
    """Run a command to its end.

    Args:
        argv: the command.
        timeout_s: end it after so many seconds.
        cwd: the directory to run it in.

    Returns:
        Its standard output.

    Raises:
        RuntimeError: it is not there, failed, or took too long; the text says which and shows the
            end of what it wrote to standard error.
    """
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, cwd=cwd, check=False
        )
    except FileNotFoundError as missing:
        raise RuntimeError(f"{argv[0]} is not installed") from missing
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"{argv[0]} took more than {timeout_s:g} s") from late
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def make_cache(cache_dir: Path) -> Path:
    """Make a directory for downloads and builds that git ignores.

    Args:
        cache_dir: the directory; it may exist.

    Returns:
        The same directory, absolute.
    """
    cache_dir = cache_dir.resolve()
    cache_dir.mkdir(parents=True, exist_ok=True)
    ignore = cache_dir / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return cache_dir


def digest(*parts: str | bytes | Path) -> str:
    """A short name for a set of inputs, so that a build is done again when one has changed.

    Args:
        parts: text, bytes, or files (their contents count).

    Returns:
        Twelve hexadecimal digits.
    """
    total = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        data = data.encode() if isinstance(data, str) else data
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:12]


def _build_clrt(cache_dir: Path) -> Path:
    source = HERE / "peers" / "clrt.c"
    program = make_cache(cache_dir) / f"clrt-{digest(source)}"
    if not program.exists():
        partial = program.with_suffix(f".{os.getpid()}")
        run(["gcc", "-std=gnu11", "-O2", "-pthread", str(source), "-o", str(partial)])
        partial.replace(program)
    return program


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _first_line(argv: list[str]) -> str | None:
    try:
        return run(argv, timeout_s=10.0).splitlines()[0]
    except (RuntimeError, IndexError):
        return None
