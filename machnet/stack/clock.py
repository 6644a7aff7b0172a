# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (channels, sockets and streams are one implementation in several files)
"""The time of stepped stacks, and the stepping itself."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.errors import ConcurrentUseError, ReentrantError, os_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from machnet.stack.chanbase import ChannelBase

__all__ = ["Clock"]

NEVER: int = lib.MN_NEVER


class Clock:
    """The stacks that are stepped together, and what time it is for them.

    Args:
        realtime: The time is that of ``time.monotonic_ns``; otherwise it is virtual, starts at 0
            and goes on only when someone says so.
        native: A ``struct mn_group *`` of somebody else's, instead of one of its own.
    """

    def __init__(self, *, realtime: bool, native: Any = None) -> None:
        self.realtime = realtime
        if native is None:
            native = ffi.gc(lib.mn_group_new(realtime, 0), lib.mn_group_free)
        self.native: Any = native
        if self.native == ffi.NULL:
            raise MemoryError
        #: What is going on at the present moment, during which time must not go on; "": nothing.
        self.under_way = ""
        self._hooks: list[ChannelBase] = []
        self._hooked: Any = None
        self._woken: Any = None
        self._wakeups_seen = 0
        #: What is done with an exception of a channel's callback; None: it is raised.
        self.on_error: Callable[[Exception], None] | None = None

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
            ReentrantError: Something is under way that time must wait for.
        """
        if self.realtime:
            raise ValueError("real time can't be advanced: it goes on by itself")
        self.check_free("advancing the time")
        while not self.step(until_ns):
            pass

    def step(self, until_ns: int | None) -> bool:
        """Go on in virtual time until a channel is woken, for a bounded amount of work.

        Callbacks of channels have been called when this returns.

        Args:
            until_ns: How far at most; None: as long as there is anything to come.

        Returns:
            Whether that was all: it is ``until_ns``, or nothing is to come.
        """
        rc = lib.mn_group_advance(self.native, NEVER if until_ns is None else until_ns)
        if rc != -errno.EINTR:
            self._check(rc)
        self.dispatch()
        return bool(rc == 0)

    def kick(self) -> None:
        """Let a `step` that is under way end at this moment of time."""
        lib.mn_group_kick(self.native)

    def check_free(self, what: str) -> None:
        """Refuse what would let time pass now.

        Raises:
            ReentrantError: Something is under way that time must wait for.
        """
        if self.under_way:
            raise ReentrantError(
                f"{what}: would let virtual time pass, but {self.under_way} is under way: "
                "await it (machnet.aio), or use timeout=0"
            )

    def wait(self, channel: Any, left_ns: int, what: str) -> int:
        """Let time pass until a channel has something new: what ``mn_chan_wait`` answers.

        Raises:
            ReentrantError: Something is under way that time must wait for.
        """
        if left_ns:
            self.check_free(what)
        return int(lib.mn_chan_wait(channel, left_ns))

    def check_outside(self, what: str) -> None:
        """Refuse what can't be done while the stacks are in the middle of a step.

        Raises:
            ReentrantError: They are: a rule of a network is being asked.
        """

    def keep(self, channel: ChannelBase) -> None:
        """A channel more; who must not have it closed when it is forgotten, keeps it."""

    def explain(self, rc: int, what: str) -> None:
        """Raise what the clock knows about the failure ``rc`` of a call; else return."""

    # ---- channels --------------------------------------------------------------------------------

    def hook(self, channel: ChannelBase) -> None:
        """From now on `dispatch` calls the channel's `Channel.on_ready` callback."""
        self._hooks.append(channel)
        self._hooked = None

    def unhook(self, channel: ChannelBase) -> None:
        """No more; nothing happens if it was not hooked."""
        if channel in self._hooks:
            self._hooks.remove(channel)
            self._hooked = None

    def dispatch(self) -> bool:
        """Call the callbacks of the channels that have something; whether there was one."""
        wakeups = int(lib.mn_group_wakeups(self.native))
        if wakeups == self._wakeups_seen:
            return False
        self._wakeups_seen = wakeups
        hooks = self._hooks
        if self._hooked is None:
            self._hooked = ffi.new("struct mn_chan *[]", [c._native for c in hooks])
            self._woken = ffi.new("uint32_t[]", len(hooks) + 1)
        n = lib.mn_chans_woken(self._hooked, len(hooks), self._woken)
        woken = [hooks[i] for i in ffi.unpack(self._woken, n)]
        failed = None
        for channel in woken:
            try:
                channel._step_ready()
            except Exception as error:  # noqa: BLE001, PERF203 (the others' wake-ups must not be lost)
                if self.on_error is not None:
                    self.on_error(error)
                elif failed is None:
                    failed = error
        if failed is not None:
            raise failed
        return bool(woken)

    def _check(self, rc: int) -> None:
        if rc < 0:
            self.explain(rc, "stepping")
        if rc == -errno.EBUSY:
            raise ConcurrentUseError("these stacks are being stepped by another thread")
        if rc == -errno.ELOOP:
            raise RuntimeError("the stacks keep each other busy without end, at one moment of time")
        if rc < 0:
            raise os_error(-rc, "stepping")
