# SPDX-License-Identifier: MIT
"""What the virtual event loop says: where tasks wait, and failures that nobody has seen."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

    from machnet.sim.loop import VirtualLoop

__all__ = ["Failures", "describe_task", "duration"]

_logger = logging.getLogger("asyncio")

_ASYNCIO = str(Path(asyncio.__file__).parent) + os.sep
_MACHNET = str(Path(__file__).parent.parent) + os.sep


def duration(ns: int) -> str:
    """A time as people write it, exact: "1.5 ms"."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns >= size:
            whole, rest = divmod(ns, size)
            digits = f"{rest:0{len(str(size)) - 1}d}".rstrip("0")
            return f"{whole}.{digits} {unit}" if digits else f"{whole} {unit}"
    return f"{ns} ns"


def _frames(coro: Any) -> list[tuple[str, FrameType]]:
    """The suspended calls of a coroutine, outermost first: name and frame of each."""
    found = []
    while coro is not None:
        for prefix, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = getattr(coro, f"{prefix}_frame", None)
            if frame is not None:
                name = getattr(coro, "__qualname__", type(coro).__name__)
                found.append((name.replace("<locals>.", ""), frame))
                coro = getattr(coro, inner, None)
                break
        else:
            break
    return found


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _awaited(task: asyncio.Task[Any]) -> str:
    waiter = getattr(task, "_fut_waiter", None)
    if isinstance(waiter, asyncio.Task):
        return f", for {waiter.get_name()}"
    children = getattr(waiter, "_children", None)
    if children:
        names = [c.get_name() for c in children if isinstance(c, asyncio.Task) and not c.done()]
        return f", for {', '.join(names)}" if names else ""
    return ""


def describe_task(task: asyncio.Task[Any]) -> str:
    """Name, coroutine, the innermost await in code that is not asyncio's or ours, and what it is.

    For example "Task-2 server(): test_echo.py:12 in handle, waits in Channel.recv (aio.py:137)".
    """
    coro = task.get_coro()
    name = str(getattr(coro, "__qualname__", coro)).replace("<locals>.", "")
    text = f"{task.get_name()} {name}()"
    frames = _frames(coro)
    if not frames:
        return text + _awaited(task)
    theirs = [
        i
        for i, (_, frame) in enumerate(frames)
        if not frame.f_code.co_filename.startswith((_ASYNCIO, _MACHNET))
    ]
    at = theirs[-1] if theirs else 0
    text += f": {_place(frames[at][1])} in {frames[at][0]}"
    if at + 1 < len(frames):
        inner, frame = frames[at + 1]
        text += f", waits in {inner} ({_place(frame)})"
    return text + _awaited(task)


class Failures:
    """Exceptions that nobody has seen yet."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._tasks: list[asyncio.Future[Any]] = []
        self._found: list[tuple[str, Exception]] = []

    def note(self, task: asyncio.Future[Any]) -> None:
        """A task is done. Who waits for it may still ask for its exception."""
        if getattr(task, "_log_traceback", False):
            self._tasks.append(task)

    def add(self, what: str, error: Exception) -> None:
        """A callback failed."""
        self._found.append((what, error))

    def _take_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            if not getattr(task, "_log_traceback", False):
                continue
            error = task.exception()
            what = describe_task(task) if isinstance(task, asyncio.Task) else repr(task)
            if self._loop.has_handler:
                context = {"message": "Task exception was never retrieved", "exception": error}
                self._loop.call_exception_handler(context | {"future": task})
            elif isinstance(error, Exception):
                self._found.append((what, error))

    def _take(self) -> list[tuple[str, Exception]]:
        self._take_tasks()
        found, self._found = self._found, []
        return found

    def lines(self) -> list[str]:
        """A line for each; they stay."""
        self._take_tasks()
        return [f"{what}: {error!r}" for what, error in self._found]

    def first(self) -> Exception | None:
        """The first of them; it stays."""
        return self._found[0][1] if self._found else None

    def raise_first(self) -> None:
        """Raise the first, if there is one, and log the others."""
        found = self._take()
        if not found:
            return
        self._log(found[1:])
        what, error = found[0]
        _annotate(error, f"It was raised in the background, by {what}; nobody awaited it.")
        if len(found) > 1:
            _annotate(error, f"{len(found) - 1} more failures are in the log.")
        raise error

    def report_beside(self, error: BaseException) -> None:
        """Log them all: ``error`` is about to be raised already."""
        found = self._take()
        self._log(found)
        for what, other in found:
            if other is not error.__cause__:
                _annotate(error, f"Another failure, in the background, of {what}: {other!r}")

    def log_all(self) -> None:
        """Log them all."""
        self._log(self._take())

    @staticmethod
    def _log(found: list[tuple[str, Exception]]) -> None:
        for what, error in found:
            _logger.error("%s failed, and nobody awaited it", what, exc_info=error)


def _annotate(error: BaseException, text: str) -> None:
    if hasattr(error, "add_note"):  # Python 3.11 on
        error.add_note(text)
