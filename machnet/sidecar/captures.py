# SPDX-License-Identifier: MIT
"""Captures that operators have asked for: begun, fed, and ended with whoever asked."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from machnet.sidecar.engines import Recorder

if TYPE_CHECKING:
    from machnet.sidecar.engines import Engines

__all__ = ["TICK_S", "Capture", "Captures"]

#: How often what has gathered is handed over.
TICK_S = 0.02
#: How long the reader may take for what is left at the end.
_DRAIN_S = 5.0


class Capture:
    """What one command records: a pipe for each engine.

    Raises:
        OSError: ``EBUSY``: another capture is on; ``ENODEV``: there is no such NIC.
    """

    def __init__(self, engines: Engines, nic: str | None, snaplen: int) -> None:
        self._recorders: list[Recorder] = []
        self.ends_at: float | None = None
        try:
            for port in engines.ports:
                if nic is not None and nic not in {port.nic.name, port.config.nic, port.nic.mac}:
                    continue
                for stack, switch in zip(port.stacks, port.switches, strict=True):
                    self._recorders.append(Recorder(stack, switch, snaplen))
        except BaseException:
            self.readers_sent()
            self.close()
            raise

    @property
    def readers(self) -> list[int]:
        """The pipes to read from; empty: there is no such NIC."""
        return [recorder.reader for recorder in self._recorders]

    def readers_sent(self) -> None:
        """They have been handed over, or nobody wants them: close ours."""
        for recorder in self._recorders:
            with contextlib.suppress(OSError):
                os.close(recorder.reader)

    def tick(self) -> bool:
        """Hand over what has gathered; False: it has ended."""
        if self.ends_at is None:
            for recorder in self._recorders:
                if not recorder.flush():
                    recorder.stop()
                    recorder.close()
                    self._recorders.remove(recorder)
                    break
            return bool(self._recorders)
        left = [recorder for recorder in self._recorders if not recorder.drained()]
        if left and time.monotonic() < self.ends_at and all(r.flush() for r in left):
            return True
        self.close()
        return False

    def stop(self) -> dict[str, Any]:
        """Record no more; what has gathered is still handed over. How much it was."""
        self.ends_at = time.monotonic() + _DRAIN_S
        total = {"frames": 0, "dropped": 0}
        for recorder in self._recorders:
            recorder.stop()
            for name, value in recorder.stats().items():
                total[name] += value
        return total

    def close(self) -> None:
        """End it at once. Again: nothing."""
        for recorder in self._recorders:
            recorder.close()
        self._recorders.clear()


class Captures:
    """All captures that are on, or still being handed over."""

    def __init__(self) -> None:
        self._all: list[Capture] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def begin(self, engines: Engines, nic: str | None, snaplen: int) -> Capture:
        """As `Capture`."""
        capture = Capture(engines, nic, snaplen)
        self._all.append(capture)
        return capture

    def tick(self) -> None:
        """Hand over what has gathered in each."""
        self._all = [capture for capture in self._all if capture.tick()]

    def end(self, capture: Capture) -> None:
        """Nobody wants it any more."""
        capture.close()
        if capture in self._all:
            self._all.remove(capture)

    def close(self) -> None:
        """End all."""
        for capture in self._all:
            capture.close()
        self._all.clear()
