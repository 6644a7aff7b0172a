# SPDX-License-Identifier: MIT
"""A hand-fed wire, and what is around it, for the kit of driver authors (machnet.testing.check_nic)."""

from __future__ import annotations

import contextlib
from typing import Any

from machnet.sim import Wire
from machnet.testing import NicHandle


class WireBench:
    """A wire that is fed by hand. What is put around it replaces `nic`."""

    wire_marks = True

    def __init__(self, **settings: Any) -> None:
        self.wire = Wire(**settings)
        self.nic = NicHandle(self.wire.native)

    def deliver(self, frame: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            self.wire.inject(frame)

    def collect(self) -> list[bytes]:
        return [frame for _, frame in self.wire.drain()]

    def close(self) -> None:
        self.wire.close()
