# SPDX-License-Identifier: MIT
"""Time and captures of a test on a NIC."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from machnet.sim.units import Duration
    from pytest_machnet.niclab import NicLab

T = TypeVar("T")

_POLL_S = 0.001


class RealClock:
    """The real time; see `pytest_machnet.labs.Clock`."""

    def __init__(self, lab: NicLab) -> None:
        self._lab = lab
        self._start_ns = time.monotonic_ns()

    @property
    def now_ns(self) -> int:
        """Nanoseconds since the lab was made."""
        return time.monotonic_ns() - self._start_ns

    def sleep(self, duration: Duration) -> None:
        """Wait."""
        from machnet.sim.units import duration_ns

        time.sleep(duration_ns(duration, "sleep") / 1e9)

    def advance(self, duration: Duration) -> None:
        """Skip the test."""
        self._lab.missing("machnet_clock.advance", f"real time can't be advanced by {duration}")

    def eventually(
        self, predicate: Callable[[], T], within: Duration = "5s", message: str = ""
    ) -> T:
        """Wait until something is true, and return it."""
        from machnet.sim.units import duration_ns

        end = time.monotonic_ns() + duration_ns(within, "within")
        while not (found := predicate()):
            if time.monotonic_ns() >= end:
                raise AssertionError(f"not within {within}: {message or predicate}")
            time.sleep(_POLL_S)
        return found


class NicPcap:
    """The capture of a test on a NIC; see `pytest_machnet.labs.Pcap`."""

    def __init__(self, lab: NicLab) -> None:
        self._lab = lab

    @property
    def path(self) -> Path:
        """The local stack's pcapng file; complete when the test is over."""
        return self._lab.folder() / "local.pcapng"

    def packets(self, last: int | None = None) -> list[Any]:
        """Skip the test: only a simulated network keeps a record."""
        self._lab.missing("machnet_pcap.packets", "there is a record of simulated packets only")
