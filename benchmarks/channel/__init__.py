# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (the native calls are what is measured)
"""A channel between two processes, by itself: build the program, run its rows, and Python's calls.

The engine's end only copies: what is measured are rings, buffers, copies and wake-ups, without a
transport. Both ends want a core for themselves.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine

if TYPE_CHECKING:
    import machnet

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODES = ("spinning", "adaptive", "sleeping")
_JOBS = {"echo": 0, "sink": 1, "source": 2}
_BATCH = 128


def build(cache_dir: Path = machine.CACHE_DIR) -> Path:
    """Compile the program, unless this very tree was compiled before.

    Raises:
        RuntimeError: no compiler, or it failed.
    """
    stack = ROOT / "machnet" / "stack"
    folders = (HERE, stack / "core", stack / "core" / "wire", stack / "host")
    files = [file for folder in folders for file in sorted(folder.glob("*.c"))]
    headers = sorted({header for folder in folders for header in folder.glob("*.h")})
    flags = ["-std=gnu11", "-O2", "-g", "-D_GNU_SOURCE", "-pthread"]
    name = machine.digest(*files, *headers, " ".join(flags))
    program = machine.make_cache(cache_dir) / f"channel-{name}"
    if not program.exists():
        new = program.with_suffix(f".{os.getpid()}")
        machine.run(["gcc", *flags, f"-I{ROOT}", *map(str, files), "-o", str(new)])
        new.replace(program)
    return program


def run(program: Path, mode: str, seconds: float) -> list[dict[str, Any]]:
    """The rows of one mode."""
    text = machine.run([str(program), "rows", mode, str(seconds)])
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def attached(program: Path, job: str, length: int) -> Iterator[machnet.Channel]:
    """A Python channel whose other end is the program."""
    from machnet._native import lib
    from machnet.stack.lending import attach_fds

    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [str(program), "serve", str(theirs.fileno()), str(_JOBS[job]), str(length)],
            pass_fds=[theirs.fileno()],
        )
        _, fds, _, _ = socket.recv_fds(ours, 16, 3)
    with attach_fds(list(fds), spin_us=float("inf")) as channel:
        while not channel.flows():
            lib.mn_chan_ready(channel._native)
        yield channel
        child.kill()
        child.wait(10)


def _per_call(call: Callable[[], None], calls: int, wait: Callable[[], object], n: int) -> float:
    """Nanoseconds of one of `calls` calls, the median of n times; wait() in between is not counted."""
    found = []
    for _ in range(n):
        wait()
        begin = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - begin) / calls)
    return sorted(found)[n // 2]


def python_calls(program: Path, n: int = 200) -> dict[str, float]:
    """What sending and receiving 64 bytes cost in Python, in ns a message, one by one and in batches."""
    from machnet._native import lib

    costs = {}
    data = bytes(64)
    many = [data] * _BATCH
    with attached(program, "sink", 64) as channel:
        flow = channel.flows()[0]
        native = channel._native

        def send_all() -> None:
            send = channel.send
            for _ in range(_BATCH):
                send(flow, data)

        def room() -> None:
            end = time.perf_counter_ns() + 20_000
            while time.perf_counter_ns() < end:
                lib.mn_chan_ready(native)

        costs["send"] = _per_call(send_all, _BATCH, room, n)
        costs["send_many"] = _per_call(lambda: _all(channel.send_many(flow, many)), _BATCH, room, n)
    with attached(program, "source", 64) as channel:
        native = channel._native

        def receive_all() -> None:
            recv = channel.recv
            for _ in range(_BATCH):
                recv()

        def filled() -> None:
            end = time.perf_counter_ns() + 50_000
            while time.perf_counter_ns() < end:
                lib.mn_chan_ready(native)

        costs["recv"] = _per_call(receive_all, _BATCH, filled, n)
        costs["recv_many"] = _per_call(
            lambda: _all(len(channel.recv_many(_BATCH))), _BATCH, filled, n
        )
    return costs


def _all(count: int) -> None:
    if count != _BATCH:
        raise RuntimeError(f"{count} of {_BATCH} messages: the other end was too slow")
