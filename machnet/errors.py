# SPDX-License-Identifier: MIT
"""What machnet raises beyond Python's own exceptions.

Where a POSIX call would fail, the exception is the ``OSError`` that Python's ``socket`` module would
raise for the same ``errno``: `BlockingIOError`, `ConnectionRefusedError`, `TimeoutError` and so on.
The end of a flow is a `FlowError`, which is a `ConnectionError` that also says which flow ended.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from machnet.channel import Flow

__all__ = [
    "ConcurrentUseError",
    "DeadlockError",
    "FlowAbortedError",
    "FlowClosedError",
    "FlowError",
    "FlowProtocolError",
    "FlowResetError",
    "FlowShutdownError",
    "FlowTimeoutError",
    "FlowUnreachableError",
    "InvariantError",
    "ReentrantError",
    "SimulationLimitError",
]


class DeadlockError(RuntimeError):
    """In virtual time nothing will ever happen: no frame is under way and no timer is armed."""


class ReentrantError(RuntimeError):
    """A call would have to let virtual time pass while something is under way at a moment of it.

    A coroutine of the virtual event loop, a rule, or a callback of the network must not block: it
    awaits (`machnet.aio`), or makes calls that never wait (``timeout=0``).
    """


class SimulationLimitError(RuntimeError):
    """A simulation went past a limit: of virtual time, or of work at one moment of it."""


class InvariantError(AssertionError):
    """What must hold of a simulated network does not: the fault is in the stack, not in the test."""


class ConcurrentUseError(RuntimeError):
    """Two threads used one channel, or stepped the same stacks, at the same time.

    A channel belongs to one thread; attach another one for each thread.
    """


class FlowError(ConnectionError):
    """A flow has ended other than by a clean close.

    Attributes:
        flow: The flow that ended.
    """

    def __init__(self, number: int, text: str, flow: Flow | None = None) -> None:
        super().__init__(number, text)
        self.flow = flow


class FlowResetError(FlowError, ConnectionResetError):
    """The peer reset the flow (RFC 9293, 3.10.7)."""


class FlowAbortedError(FlowError, ConnectionAbortedError):
    """This side gave the flow up: the engine had to, or its channel was closed."""


class FlowTimeoutError(FlowError):
    """The peer did not answer for the user timeout (R2 of RFC 9293, 3.8.3), or to keep-alives.

    It is no `TimeoutError`, so that it is not taken for the timeout of the call.
    """


class FlowUnreachableError(FlowError):
    """The network reported that the peer can't be reached."""


class FlowProtocolError(FlowError):
    """The peer did not keep to the framing: a length over the limit, or an end inside a message."""


class FlowClosedError(FlowError):
    """The flow was closed before; nothing can be sent on it any more."""


class FlowShutdownError(FlowClosedError, BrokenPipeError):
    """Nothing can be sent any more: this side shut the stream down, or it ended cleanly (``EPIPE``)."""


_BY_ERRNO: dict[int, type[FlowError]] = {
    errno.ECONNRESET: FlowResetError,
    errno.EPIPE: FlowShutdownError,
    errno.ENOTCONN: FlowClosedError,
    errno.ECONNABORTED: FlowAbortedError,
    errno.ETIMEDOUT: FlowTimeoutError,
    errno.EHOSTUNREACH: FlowUnreachableError,
    errno.ENETUNREACH: FlowUnreachableError,
    errno.EHOSTDOWN: FlowUnreachableError,
    errno.EPROTO: FlowProtocolError,
    errno.EMSGSIZE: FlowProtocolError,
    errno.EBADMSG: FlowProtocolError,
}


def flow_error(number: int, flow: Flow) -> FlowError:
    """The exception for a flow that ended with ``errno`` ``number``."""
    kind = _BY_ERRNO.get(number, FlowError)
    return kind(number, f"{os.strerror(number)}: {flow}", flow)


def os_error(number: int, what: str) -> OSError:
    """The ``OSError`` of the subclass that belongs to ``errno`` ``number``."""
    return OSError(number, f"{what}: {os.strerror(number)}")
