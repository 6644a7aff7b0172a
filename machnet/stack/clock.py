# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (channels, sockets and streams are one implementation in several files)
"""The time of stepped stacks, and the stepping itself."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.errors import ConcurrentUseError, os_error

if TYPE_CHECKING:
    from machnet.stack.chanbase import ChannelBase

__all__ = ["Clock"]

NEVER: int = lib.MN_NEVER


class Clock:
    """The stacks that are stepped together, and what time it is for them.

    Args:
        realtime: The time is that of ``time.monotonic_ns``; otherwise it is virtual, starts at 0
            and goes on only when someone says so.
    """

    def __init__(self, *, realtime: bool) -> None:
        self.realtime = realtime
        self.native: Any = ffi.gc(lib.mn_group_new(realtime, 0), lib.mn_group_free)
        if self.native == ffi.NULL:
            raise MemoryError
        #: Channels whose `Channel.on_ready` callback is called after a step.
        self.hooks: list[ChannelBase] = []

    @property
    def now_ns(self) -> int:
        """The present time."""
        return int(lib.mn_group_now(self.native))

    def deadline(self) -> int | None:
        """When something is to be done next, in ns; None: never, unless a frame comes in."""
        when = int(lib.mn_group_deadline(self.native))
        return None if when == NEVER else when

    def settle(self) -> None:
        """Let all stacks do what there is to do now."""
        self._check(lib.mn_group_settle(self.native))
        self.dispatch()

    def advance_to(self, until_ns: int) -> None:
        """Go on to ``until_ns`` of virtual time, timer by timer.

        Raises:
            ValueError: The clock is a real one.
        """
        if self.realtime:
            raise ValueError("real time can't be advanced: it goes on by itself")
        while (rc := lib.mn_group_advance(self.native, until_ns)) == -errno.EINTR:
            self.dispatch()
        self._check(rc)
        self.dispatch()

    def dispatch(self) -> None:
        """Call the callbacks of the channels that have something."""
        if self.hooks:
            for channel in list(self.hooks):
                channel._step_ready()

    @staticmethod
    def _check(rc: int) -> None:
        if rc == -errno.EBUSY:
            raise ConcurrentUseError("these stacks are being stepped by another thread")
        if rc == -errno.ELOOP:
            raise RuntimeError("the stacks keep each other busy without end, at one moment of time")
        if rc < 0:
            raise os_error(-rc, "stepping")
