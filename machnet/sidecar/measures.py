# SPDX-License-Identifier: MIT
"""What ``machnet run --isolate`` does itself: only what ends with the process, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import sys
from pathlib import Path

from machnet.sidecar.isolate import Item
from machnet.sidecar.machine import LATENCY, ranges

__all__ = ["Measures"]

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_LIMIT_US = 0
_CAP_IPC_LOCK = 14
_LOCK_REMEDY = (
    "run it as root (systemd: CAP_IPC_LOCK in CapabilityBoundingSet, or LimitMEMLOCK=infinity)"
)


class Measures:
    """Measures for this process. A context manager: they end with it.

    Threads do not get a real-time priority: one that spins would keep the kernel's own threads from
    its CPU, and the kernel would stop it for 50 ms of each second (``sched_rt_runtime_us``).

    Args:
        root: Where ``dev`` is.
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self._root = Path(root)
        self._closing = contextlib.ExitStack()

    def take(self) -> list[Item]:
        """Hold CPUs awake, and keep touched memory in memory; what was done and what was not."""
        return [self._stay_awake(), self._lock_memory()]

    def _stay_awake(self) -> Item:
        path = self._root / LATENCY
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            return Item(
                "awake",
                "missing",
                f"{path}: {error.strerror}: CPUs sleep as deeply as they like",
                "run it as root (systemd: DeviceAllow=/dev/cpu_dma_latency rw)",
            )
        self._closing.callback(os.close, fd)  # the kernel then forgets the wish
        os.write(fd, _LIMIT_US.to_bytes(4, sys.byteorder, signed=True))
        return Item("awake", "ok", f"{path} is held at {_LIMIT_US} us")

    def _lock_memory(self) -> Item:
        if not _may_lock():
            return Item(
                "locked",
                "missing",
                "this process may not lock memory: it may be swapped out",
                _LOCK_REMEDY,
            )
        libc = ctypes.CDLL(None, use_errno=True)
        # Only what is touched: channels and DPDK reserve much more than they use.
        if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
            why = os.strerror(ctypes.get_errno())
            return Item("locked", "missing", f"memory may be swapped out: {why}", _LOCK_REMEDY)
        self._closing.callback(libc.munlockall)
        return Item("locked", "ok", "memory stays in memory once it is touched")

    @staticmethod
    def keep_off(engine_cpus: frozenset[int]) -> Item:
        """Move the threads of this process that have no CPU of their own away from the engines'.

        Threads that are made later do as the one that makes them, which is this one.
        """
        rest = frozenset(os.sched_getaffinity(0)) - engine_cpus
        if not engine_cpus:
            return Item("threads", "missing", "engines run anywhere", "a cpu_mask")
        if not rest:
            return Item(
                "threads",
                "missing",
                "the controller has no CPU that is not an engine's",
                "fewer CPUs in cpu_mask, or more for this process",
            )
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                may = os.sched_getaffinity(int(task.name))
                if len(may) > 1 and may - engine_cpus:
                    os.sched_setaffinity(int(task.name), may - engine_cpus)
        return Item("threads", "ok", f"all but engines run on CPU {ranges(rest)}")

    def close(self) -> None:
        """End them. Again: nothing."""
        self._closing.close()

    def __enter__(self) -> Measures:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _may_lock() -> bool:
    """Whether any amount may be locked: below a limit, later mappings would fail at it."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> _CAP_IPC_LOCK & 1)
