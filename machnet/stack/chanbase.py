# SPDX-License-Identifier: MIT
"""What every use of a channel needs: waiting, descriptors, callbacks, commands and their errors."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, TypeVar

from machnet._native import ffi, lib
from machnet.errors import ConcurrentUseError, DeadlockError, os_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from machnet.stack.lending import RemoteStack
    from machnet.stack.stack import Stack

__all__ = ["OF_STEPPING", "ChannelBase", "linger_to_ms", "seconds"]

T = TypeVar("T")

#: Failures of the stepping: they say nothing of a channel or a flow.
OF_STEPPING = frozenset({-errno.EBUSY, -errno.ECANCELED, -errno.ELOOP, -errno.ETIME})
_FOREVER: int = lib.MN_NEVER
_LINGER_DEFAULT: int = lib.MN_LINGER_DEFAULT
#: How long a command to a running engine may take to be answered, in seconds.
_COMMAND_TIMEOUT_S = 30.0


class ChannelBase:
    """The part of `machnet.Channel` that knows nothing of flows and messages."""

    def __init__(self, stack: Stack | RemoteStack, native: Any) -> None:
        self.stack: Stack | RemoteStack = stack
        self._native = native
        self._callback: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Called when the channel was closed, for what is built on it.
        self.on_close: Callable[[], None] | None = None
        self._closed = False

    def fileno(self) -> int:
        """A descriptor for ``select``, ``poll`` and the like; it stays the channel's.

        It is readable when there may be something to receive, and quiet once a receive has found
        nothing. On a stepped stack it becomes readable when someone steps the stack.
        """
        rc = lib.mn_chan_fd(self._native)
        if rc < 0:
            self._fail(rc, "fileno")
        return int(rc)

    def on_ready(self, callback: Callable[[], None] | None) -> None:
        """Have a function called whenever the channel may have something; None: no more.

        With a stack that has its own thread, the running asyncio loop calls it. With a stepped
        stack, `machnet.Stack.poll`, ``advance``, ``inject`` and ``drain`` call it. It is called
        once at first. It should take what it can get: the next call comes with the next event.

        Raises:
            RuntimeError: The stack has its own thread and no asyncio loop is running.
        """
        self._on_ready_stop()
        if callback is None:
            return
        clock = self.stack.clock
        if clock is None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self.fileno(), self._fire)
            self._loop = loop
            self._callback = callback
        else:
            self._callback = callback
            clock.hook(self)
            self._notify_step()
            callback()

    def _on_ready_stop(self) -> None:
        if self._callback is None:
            return
        self._callback = None
        clock = self.stack.clock
        if clock is not None:
            clock.unhook(self)
        elif self._loop is not None and not self._closed and not self._loop.is_closed():
            self._loop.remove_reader(self.fileno())
        self._loop = None

    def _fire(self) -> None:
        # Quiet first: what comes in while the callback runs makes the descriptor readable again.
        rc = lib.mn_chan_arm(self._native)
        if rc < 0:
            self._fail(rc, "waiting")
        if self._callback is not None:
            self._callback()

    def _notify_step(self) -> None:
        rc = lib.mn_chan_notify(self._native, self._callback is not None)
        if rc < 0:
            self._fail(rc, "on_ready")

    def _step_ready(self) -> None:
        if not self._closed and self._callback is not None:
            self._notify_step()
            self._callback()

    def _block(self, attempt: Callable[[], T | None], timeout: float | None, what: str) -> T:
        """Repeat ``attempt``, which found nothing yet, until it finds something."""
        native, clock = self._native, self.stack.clock
        end = None if timeout is None else lib.mn_chan_now(native) + int(seconds(timeout) * 1e9)
        while True:
            left = _FOREVER if end is None else max(end - lib.mn_chan_now(native), 0)
            rc = lib.mn_chan_wait(native, left) if clock is None else clock.wait(native, left, what)
            if rc < 0 and rc != -errno.EINTR:
                self._fail(rc, what)
            found = attempt()
            if found is not None:
                return found
            if rc == 0 or left == 0:
                raise TimeoutError(f"{what}: nothing within {timeout} s")

    def _token(self, rc: int, what: str) -> int:
        if rc < 0:
            self._fail(rc, what)
        return rc

    def _result(self, token: int, event: Any) -> Any:
        rc = lib.mn_chan_result(self._native, token, event)
        if rc < 0:
            self._fail(rc, "waiting for an answer")
        return event if rc == 1 else None

    def _command(self, rc: int, what: str) -> Any:
        """The answer to a command that the engine answers at once."""
        token = self._token(rc, what)
        event = ffi.new("struct mn_ctl_evt *")
        if self._result(token, event) is None:
            self._block(lambda: self._result(token, event), _COMMAND_TIMEOUT_S, what)
        return event

    def _explain(self, rc: int, what: str) -> None:
        """Raise what the clock knows of a failure: it may be the stepping that failed."""
        clock = self.stack.clock
        if clock is not None:
            clock.explain(rc, what)

    def _fail(self, rc: int, what: str) -> None:
        number = -rc
        self._explain(rc, what)
        if number == errno.EBUSY:
            raise ConcurrentUseError(
                f"{what}: another thread is using this channel (or stepping its stack): "
                "attach a channel for each thread"
            )
        if number == errno.EBADF:
            raise ValueError(f"{what}: the channel is closed")
        if number == errno.EDEADLK:
            raise DeadlockError(
                f"{what}: nothing can ever happen: no frame is under way and no timer is armed"
            )
        if number == errno.EPIPE:
            raise os_error(number, f"{what}: the engine has closed the channel")
        raise os_error(number, what)


def seconds(timeout: float) -> float:
    """A timeout, checked; what is over thirty years is for ever."""
    _check_seconds("timeout", timeout)
    return min(timeout, 1e9)


def _check_seconds(what: str, value: Any) -> None:
    try:
        right = value >= 0
    except TypeError:
        raise TypeError(f"{what}: {value!r} is no number of seconds") from None
    if not right:
        raise ValueError(f"{what}: {value!r} is no number of seconds from 0 on")


def buffer_of(data: object) -> Any:
    """The bytes of an object as C sees them, for use in a ``with``.

    Raises:
        TypeError: It has none.
        BufferError: They do not lie one behind the other.
    """
    if isinstance(data, str):
        raise TypeError(f"data: bytes are wanted, not a str: {data[:20]!r}; encode() it first")
    return ffi.from_buffer(data)


def linger_to_ms(linger: float | None) -> int:
    """What the core calls a linger time in seconds, checked; None: the default."""
    if linger is None:
        return _LINGER_DEFAULT
    _check_seconds("linger", linger)
    if linger == 0:
        return 0
    return int(min(max(linger * 1000, 1), _LINGER_DEFAULT - 1))
