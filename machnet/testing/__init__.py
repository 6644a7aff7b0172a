# SPDX-License-Identifier: MIT
"""Packets, templates and a scripted peer, for tests of protocols.

Nothing here needs the engine: what it talks to is a *port* (see `machnet.testing.ports`).
"""

from __future__ import annotations

from machnet.testing.packet import Packet
from machnet.testing.peer import ExpectationError, RawPeer, noise
from machnet.testing.ports import Port, TapPort, WirePort
from machnet.testing.script import TcpScript, pattern
from machnet.testing.template import ABSENT, ANY, Mismatch, Template, arp, eth, icmp, ip, tcp, udp

__all__ = [
    "ABSENT",
    "ANY",
    "ExpectationError",
    "Mismatch",
    "Packet",
    "Port",
    "RawPeer",
    "TapPort",
    "TcpScript",
    "Template",
    "WirePort",
    "arp",
    "eth",
    "icmp",
    "ip",
    "noise",
    "pattern",
    "tcp",
    "udp",
]
