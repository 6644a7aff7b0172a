# SPDX-License-Identifier: MIT
"""Two wired stacks, and a virtual event loop in their time."""

from __future__ import annotations

import asyncio

import machnet
from machnet.sim import Wire
from machnet.sim.loop import VirtualLoop
from machnet.stack.clock import Clock

A, B = "10.0.0.1", "10.0.0.2"


class Pair:
    """Two stacks on one wire, and a loop in their time."""

    def __init__(self) -> None:
        ends = Wire.pair()
        self.a = machnet.Stack(ends[0], ip=A, seed=1)
        self.b = machnet.Stack(ends[1], ip=B, seed=2)
        assert self.a.clock is not None
        self.clock: Clock = self.a.clock
        self.loop = VirtualLoop(self.clock)

    def close(self) -> None:
        self.loop.shutdown()
        self.a.close(linger=0)
        self.b.close(linger=0)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()
