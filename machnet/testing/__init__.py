# SPDX-License-Identifier: MIT
"""Packets, templates and a scripted peer, for tests of protocols.

A `Packet` is what is seen, a `Template` what is wanted or sent, and a `RawPeer` the host that sends and
expects them through a *port* (`machnet.testing.ports`): a stack on a hand-fed wire, a TAP with the Linux
kernel behind it, a raw host of a simulated network. `check_nic` is for authors of NIC drivers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from machnet.testing.packet import Packet
from machnet.testing.peer import ExpectationError, RawPeer, noise
from machnet.testing.ports import Port, TapPort, WirePort
from machnet.testing.script import TcpScript, pattern
from machnet.testing.template import ABSENT, ANY, Mismatch, Template, arp, eth, icmp, ip, tcp, udp

if TYPE_CHECKING:
    from machnet.testing.nic import NicBench, NicCheckError, NicHandle, check_nic, nic_checks

__all__ = [
    "ABSENT",
    "ANY",
    "ExpectationError",
    "Mismatch",
    "NicBench",
    "NicCheckError",
    "NicHandle",
    "Packet",
    "Port",
    "RawPeer",
    "TapPort",
    "TcpScript",
    "Template",
    "WirePort",
    "arp",
    "check_nic",
    "eth",
    "icmp",
    "ip",
    "nic_checks",
    "noise",
    "pattern",
    "tcp",
    "udp",
]

#: These need the engine, which is loaded when one of them is asked for.
_NIC = ("NicBench", "NicCheckError", "NicHandle", "check_nic", "nic_checks")


def __getattr__(name: str) -> Any:
    if name not in _NIC:
        raise AttributeError(f"module 'machnet.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module("machnet.testing.nic"), name)
    globals()[name] = value
    return value
