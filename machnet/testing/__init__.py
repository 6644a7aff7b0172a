# SPDX-License-Identifier: MIT
"""Packets, templates and a scripted peer, for tests of protocols.

Nothing here needs the engine: what it talks to is a *port* (see `machnet.testing.ports`).
"""

from __future__ import annotations

from machnet.testing.packet import Packet
from machnet.testing.template import ABSENT, ANY, Mismatch, Template, arp, eth, icmp, ip, tcp, udp

__all__ = [
    "ABSENT",
    "ANY",
    "Mismatch",
    "Packet",
    "Template",
    "arp",
    "eth",
    "icmp",
    "ip",
    "tcp",
    "udp",
]
