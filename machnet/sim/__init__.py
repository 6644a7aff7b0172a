# SPDX-License-Identifier: MIT
"""Networks in virtual time, NICs without hardware (wire, TAP), and Linux peers for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from machnet._lazy import named

if TYPE_CHECKING:
    from machnet.sim.faults import (
        Clog,
        Corrupt,
        Crash,
        Degrade,
        Drop,
        Duplicate,
        Partition,
        Pause,
        Reorder,
        Skew,
        format_schedule,
    )
    from machnet.sim.faulty import Faulty
    from machnet.sim.kernel_host import KernelHost, KernelHostError
    from machnet.sim.linknic import LinkNic
    from machnet.sim.links import GilbertElliott, Link, LinkDirection
    from machnet.sim.netbase import EventuallyError
    from machnet.sim.network import Network
    from machnet.sim.nodes import Host, RawHost, Switch
    from machnet.sim.pcap import Pcap
    from machnet.sim.records import PacketRecord
    from machnet.sim.rules import DROP, DUPLICATE, PASS, Hop, delay, replace
    from machnet.stack.nics import Tap, Wire

__all__ = [
    "DROP",
    "DUPLICATE",
    "PASS",
    "Clog",
    "Corrupt",
    "Crash",
    "Degrade",
    "Drop",
    "Duplicate",
    "EventuallyError",
    "Faulty",
    "GilbertElliott",
    "Hop",
    "Host",
    "KernelHost",
    "KernelHostError",
    "Link",
    "LinkDirection",
    "LinkNic",
    "Network",
    "PacketRecord",
    "Partition",
    "Pause",
    "Pcap",
    "RawHost",
    "Reorder",
    "Skew",
    "Switch",
    "Tap",
    "Wire",
    "delay",
    "format_schedule",
    "replace",
]

# Imported when first asked for: who wants one of these need not load the others.
_HOMES = {
    "Clog": "machnet.sim.faults",
    "Corrupt": "machnet.sim.faults",
    "Crash": "machnet.sim.faults",
    "DROP": "machnet.sim.rules",
    "DUPLICATE": "machnet.sim.rules",
    "Degrade": "machnet.sim.faults",
    "Drop": "machnet.sim.faults",
    "Duplicate": "machnet.sim.faults",
    "EventuallyError": "machnet.sim.netbase",
    "Faulty": "machnet.sim.faulty",
    "GilbertElliott": "machnet.sim.links",
    "Hop": "machnet.sim.rules",
    "Host": "machnet.sim.nodes",
    "KernelHost": "machnet.sim.kernel_host",
    "KernelHostError": "machnet.sim.kernel_host",
    "Link": "machnet.sim.links",
    "LinkDirection": "machnet.sim.links",
    "LinkNic": "machnet.sim.linknic",
    "Network": "machnet.sim.network",
    "PASS": "machnet.sim.rules",
    "PacketRecord": "machnet.sim.records",
    "Partition": "machnet.sim.faults",
    "Pause": "machnet.sim.faults",
    "Pcap": "machnet.sim.pcap",
    "RawHost": "machnet.sim.nodes",
    "Reorder": "machnet.sim.faults",
    "Skew": "machnet.sim.faults",
    "Switch": "machnet.sim.nodes",
    "Tap": "machnet.stack.nics",
    "Wire": "machnet.stack.nics",
    "delay": "machnet.sim.rules",
    "format_schedule": "machnet.sim.faults",
    "replace": "machnet.sim.rules",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'machnet.sim' has no attribute {name!r}")
    value = named(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
