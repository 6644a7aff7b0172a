# SPDX-License-Identifier: MIT
"""The DPDK NIC: poll-mode drivers under the same engine as everything else.

Built where ``libdpdk`` (22.11 or later) is found; `available` says whether it was. A NIC string
``dpdk:NAME`` is opened by `open_port`; see ``docs/dpdk.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machnet.dpdk.eal import EalError, EalSettings, available, configure, missing_reason
    from machnet.dpdk.port import Port, open_port, ring_pair

__all__ = [
    "EalError",
    "EalSettings",
    "Port",
    "available",
    "configure",
    "missing_reason",
    "open_port",
    "ring_pair",
]

_PORT = {"Port", "open_port", "ring_pair"}


def __getattr__(name: str) -> Any:
    """What is needed is imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{'port' if name in _PORT else 'eal'}"), name)
