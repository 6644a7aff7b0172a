# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (a network, its nodes and its links are one implementation in several files)
"""The clock of a simulated network: its events, the callbacks on schedule, and who may step it."""

from __future__ import annotations

import errno
import heapq
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from machnet._native import ffi, lib
from machnet.errors import (
    DeadlockError,
    InvariantError,
    ReentrantError,
    SimulationLimitError,
)
from machnet.sim.units import format_duration, format_ms
from machnet.stack.clock import NEVER, Clock

if TYPE_CHECKING:
    from machnet.sim.network import Network
    from machnet.stack.chanbase import ChannelBase

__all__ = ["Call", "SimClock"]

#: Callbacks at one moment of virtual time: more than any test means.
_INSTANT_MAX = 100_000


class Call:
    """A callback on schedule; made by `Network.at`.

    Attributes:
        t_ns: When it is due.
    """

    __slots__ = ("_done", "_function", "_number", "name", "t_ns")

    def __init__(self, t_ns: int, number: int, function: Callable[[], object], name: str) -> None:
        self.t_ns = t_ns
        self._number = number
        self._function = function
        self._done = False
        self.name = name

    def cancel(self) -> None:
        """It is not called any more; nothing happens if it was already."""
        self._done = True

    @property
    def pending(self) -> bool:
        """Whether it is still to be called."""
        return not self._done

    def __lt__(self, other: Call) -> bool:
        return (self.t_ns, self._number) < (other.t_ns, other._number)

    def __repr__(self) -> str:
        return f"<Call {self.name} at {format_duration(self.t_ns)}>"


class SimClock(Clock):
    """A `Clock` around a network's group of stacks."""

    def __init__(self, net: Network, native: object) -> None:
        super().__init__(realtime=False, native=lib.mn_simnet_group(native))
        self._net = net
        self._simnet = native  # it owns the group
        self._owner = threading.current_thread()
        self._calls: list[Call] = []
        self._numbers = 0
        #: Whether the core is in the middle of a step: a rule is being asked.
        self.inside_step = False
        self._kept: list[ChannelBase] = []
        self._told = False

    def keep(self, channel: ChannelBase) -> None:
        """Keep it until it is closed: when it is forgotten must not matter to what happens."""
        self._kept = [kept for kept in self._kept if not kept._closed]
        self._kept.append(channel)

    # ---- callbacks on schedule -------------------------------------------------------------------

    def call_at(self, t_ns: int, function: Callable[[], object], name: str) -> Call:
        """Have a function called at a virtual time, behind everything else of that moment."""
        self._numbers += 1
        call = Call(t_ns, self._numbers, function, name)
        heapq.heappush(self._calls, call)
        self.kick()
        return call

    def next_call(self) -> int | None:
        """When the next callback is due; None: none is."""
        while self._calls and self._calls[0]._done:
            heapq.heappop(self._calls)
        return self._calls[0].t_ns if self._calls else None

    def pending_calls(self) -> list[Call]:
        """Those that are still to be called, in their order."""
        return sorted(call for call in self._calls if not call._done)

    def run_calls(self) -> bool:
        """Call what is due now; whether there was anything."""
        ran, now = 0, self.now_ns
        while (due := self.next_call()) is not None and due <= now:
            call = heapq.heappop(self._calls)
            call._done = True
            ran += 1
            if ran > _INSTANT_MAX:
                raise SimulationLimitError(
                    f"more than {_INSTANT_MAX} callbacks at one moment of time, "
                    f"{format_ms(now)}: the last one is {call.name}"
                )
            before, self.under_way = self.under_way, f"the callback {call.name}"
            try:
                call._function()
            finally:
                self.under_way = before
        return ran > 0

    # ---- stepping --------------------------------------------------------------------------------

    def deadline(self) -> int | None:
        """When something happens next, in ns; None: never.

        What there is to do now is done first: a mere look at a host makes its engine be polled.
        """
        now = self.now_ns
        if lib.mn_simnet_next(self._simnet) <= now:
            self._check(lib.mn_group_settle(self.native))
            if self.dispatch():
                return now
        call = self.next_call()
        when = min(int(lib.mn_simnet_next(self._simnet)), NEVER if call is None else call)
        return None if when == NEVER else max(when, now)

    def settle(self) -> None:
        """Let all do what there is to do now."""
        self._thread("stepping")
        super().settle()

    def step(self, until_ns: int | None) -> bool:
        """As `Clock.step`; callbacks on schedule are called on the way."""
        self._thread("stepping")
        if self.run_calls():
            return False
        goal = NEVER if until_ns is None else until_ns
        first = self.next_call()
        limit = goal if first is None else min(goal, first)
        rc = lib.mn_group_advance(self.native, limit)
        if rc != -errno.EINTR:
            self._check(rc)
        told = self.dispatch()
        if rc != 0:
            return False
        if self.run_calls():
            self._check(lib.mn_group_settle(self.native))
            self.dispatch()
            told = True
        return limit == goal and not (told and goal == NEVER)

    def wait(self, native: object, left_ns: int, what: str) -> int:
        """As ``mn_chan_wait``, with all that goes on in the network meanwhile."""
        self.check_free(what)
        return self._net._wait_channel(native, left_ns, what)

    # ---- what is refused, and what went wrong ----------------------------------------------------

    def _thread(self, what: str) -> None:
        here = threading.current_thread()
        if here is not self._owner:
            raise ReentrantError(
                f"{what}: {self._net} belongs to the thread {self._owner.name!r}, and this is "
                f"{here.name!r}: one thread drives a network, and everything in it"
            )

    def check_free(self, what: str) -> None:
        """Refuse what would let time pass, in another thread or while something is under way."""
        self._thread(what)
        super().check_free(what)

    def check_outside(self, what: str) -> None:
        """Refuse it inside a rule."""
        if self.inside_step:
            self.check_free(what)

    def explain(self, rc: int, what: str) -> None:
        """Raise what is known about the failure of a call; return if nothing is."""
        if rc == -errno.EBUSY:
            self.check_free(what)
        elif rc == -errno.ECANCELED:
            self._net._raise_failure(what)
        elif rc == -errno.ETIME:
            most = format_duration(self._net._max_time_ns)
            raise SimulationLimitError(
                f"{what}: the end of time, {most} (Network(max_time=...))\n{self._net.report()}"
            )
        elif rc == -errno.ELOOP:
            raise SimulationLimitError(f"{what}: {self._text()}\n{self._net.report()}")
        elif rc == -errno.EPROTO:
            self.violation(what)
        elif rc == -errno.EDEADLK:
            self.deadlock(what)

    def violation(self, what: str) -> None:
        """Raise the violation of an invariant that nobody was told of yet."""
        check = lib.mn_simnet_check(self._simnet)
        text = b"" if check == ffi.NULL else ffi.string(lib.mn_check_text(check))
        if text and not self._told:
            self._told = True
            raise InvariantError(f"{what}: {text.decode()}\n{self._net.report()}")

    def deadlock(self, what: str) -> NoReturn:
        """Say that nothing can ever happen, and who waits for what."""
        raise DeadlockError(
            f"{what}: nothing can ever happen: no frame is under way and no timer is armed\n"
            f"{self._net.report()}"
        )

    def _text(self) -> str:
        text = lib.mn_simnet_error(self._simnet)
        return "" if text == ffi.NULL else ffi.string(text).decode(errors="replace")
