# SPDX-License-Identifier: MIT
"""The wall-clock guard: a simulation that makes no progress fails instead of hanging.

A thread looks from time to time whether anything has moved. If nothing has for too long, it has an
exception raised in the test's thread: by a signal of its own (so that it gets along with
pytest-timeout, which uses SIGALRM), and where the test runs beside the main thread by the
interpreter's means.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

# What pytest.fail raises: to be derived from, it is needed by its own name.
from _pytest.outcomes import Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

#: How often the exception is raised anew, should something swallow it.
_SHOTS_MAX = 20
_SHOT_INTERVAL_S = 0.5


class Stuck(Failed):
    """A simulation made no progress. No `Exception`: tests that catch everything don't catch it."""


class Guard:
    """Watches one test.

    Args:
        limit_s: Seconds by the wall clock without progress that are too long.
        progress: What changes while there is progress. Called by the guard's thread.
        explain: The failure's text. Called in the test's thread.
    """

    def __init__(
        self, limit_s: float, progress: Callable[[], Any], explain: Callable[[], str]
    ) -> None:
        self._limit_s = limit_s
        self._progress = progress
        self._explain = explain
        self._done = threading.Event()
        self._stuck = False
        self._target = threading.current_thread()
        self._signal = _free_signal()
        self._thread = threading.Thread(target=self._watch, name="machnet-guard", daemon=True)

    def _watch(self) -> None:
        interval = min(max(self._limit_s / 10, 0.02), 1.0)
        ticks_max = max(round(self._limit_s / interval), 1)
        last, ticks = self._progress(), 0
        while not self._done.wait(interval):
            now = self._progress()
            last, ticks = now, ticks + 1 if now == last else 0
            if ticks >= ticks_max:
                break
        shots = 0
        while shots < _SHOTS_MAX and not self._done.is_set():
            self._stuck = True
            self._shoot()
            shots += 1
            self._done.wait(_SHOT_INTERVAL_S)

    def _shoot(self) -> None:
        ident = self._target.ident
        if ident is None or not self._target.is_alive():
            return
        if self._signal is not None:
            signal.pthread_kill(ident, self._signal)
            return
        import ctypes

        # The exception is made without arguments: `Stuck.__init__` has defaults for them all.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Stuck))

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._stuck and not self._done.is_set():
            raise Stuck(self._text(), pytrace=True)

    def _text(self) -> str:
        return f"no progress for {self._limit_s:g} s by the wall clock: {self._explain()}"

    def release(self) -> None:
        """Watch no longer: somebody looks at the test in a debugger, or its own code has ended."""
        self._done.set()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While the block runs."""
        before = None
        if self._signal is not None:
            before = signal.signal(self._signal, self._on_signal)
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()
            if self._signal is not None:
                signal.signal(self._signal, before)


def _free_signal() -> signal.Signals | int | None:
    """A signal that nobody else uses, if this is the thread that gets signals."""
    if threading.current_thread() is not threading.main_thread():
        return None
    for number in range(signal.SIGRTMAX - 1, signal.SIGRTMIN, -1):
        if signal.getsignal(number) == signal.SIG_DFL:
            return number
    return None
