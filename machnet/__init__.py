# SPDX-License-Identifier: MIT
"""Low-latency userspace networking: applications, the engine, and the simulator share one stack."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from machnet._lazy import named

if TYPE_CHECKING:
    from machnet import aio
    from machnet.attach import attach
    from machnet.channel import Channel, Flow, Listener, Message
    from machnet.errors import (
        ConcurrentUseError,
        DeadlockError,
        FlowAbortedError,
        FlowClosedError,
        FlowError,
        FlowProtocolError,
        FlowResetError,
        FlowShutdownError,
        FlowTimeoutError,
        FlowUnreachableError,
        InvariantError,
        ReentrantError,
        SimulationLimitError,
    )
    from machnet.stack.socket import TCP_ISN, Socket
    from machnet.stack.stack import SocketInfo, Stack

__all__ = [
    "TCP_ISN",
    "Channel",
    "ConcurrentUseError",
    "DeadlockError",
    "Flow",
    "FlowAbortedError",
    "FlowClosedError",
    "FlowError",
    "FlowProtocolError",
    "FlowResetError",
    "FlowShutdownError",
    "FlowTimeoutError",
    "FlowUnreachableError",
    "InvariantError",
    "Listener",
    "Message",
    "ReentrantError",
    "SimulationLimitError",
    "Socket",
    "SocketInfo",
    "Stack",
    "__version__",
    "aio",
    "attach",
]

__version__ = "0.1.0"

#: Where each public name comes from; imported when it is first asked for.
_HOMES = {
    "Channel": "machnet.channel",
    "Flow": "machnet.channel",
    "Listener": "machnet.channel",
    "Message": "machnet.channel",
    "Socket": "machnet.stack.socket",
    "SocketInfo": "machnet.stack.stack",
    "Stack": "machnet.stack.stack",
    "TCP_ISN": "machnet.stack.socket",
    "attach": "machnet.attach",
} | {name: "machnet.errors" for name in __all__ if name.endswith("Error")}


def __getattr__(name: str) -> Any:
    if name == "aio":
        return importlib.import_module("machnet.aio")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'machnet' has no attribute {name!r}")
    value = named(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
