# SPDX-License-Identifier: MIT
"""Packets as text, with TCP's numbers counted from the SYNs, as tcpdump and Wireshark do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machnet.testing import Packet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from machnet.testing.packet import Packet as PacketType


def summaries(frames: Iterable[bytes]) -> list[str]:
    """One line for each frame; they come in the order in which they were seen.

    A SYN has its number as it is on the wire, what follows it is counted from there. Connections whose
    SYN is not among the frames keep the numbers of the wire.
    """
    first: dict[tuple[object, ...], int] = {}
    return [_relative(Packet(frame), first).summary() for frame in frames]


def _relative(packet: PacketType, first: dict[tuple[object, ...], int]) -> PacketType:
    if packet.tcp is None or packet.error is not None or not packet.csum_ok:
        return packet
    ends = (packet.src, packet.sport), (packet.dst, packet.dport)
    back = ends[::-1]
    if "S" not in packet.tcp.flags:
        return packet.relative(first.get(ends, 0), first.get(back, 0))
    if first.get(ends, packet.seq) != packet.seq and "A" not in packet.tcp.flags:
        first.pop(back, None)  # a new connection between the same ports
    first[ends] = packet.tcp.seq
    return packet.relative(0, first.get(back, 0))
