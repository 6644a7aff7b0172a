# SPDX-License-Identifier: MIT
"""mnp as scapy sees it: an oracle for tests, written down a third time.

scapy (GPL-2.0-only) is imported inside functions, when a test asks for `layer`.
"""

from __future__ import annotations

import functools
from typing import Any

NET_FLAGS = {0x00: "DATA", 0x01: "SYN", 0x02: "ACK", 0x03: "SYN-ACK", 0x04: "FIN", 0x80: "RST"}
#: Bits of msg_flags, from the lowest.
MSG_FLAGS = ["first", "more", "last", "chain", "b4", "b5", "b6", "notify"]
FEATURES = ["sack", "data_ack", "timestamps", "window", "fin", "reasons", "length"]
MARKER = 0x4D4E5854


@functools.cache
def layer() -> Any:
    """The scapy layer ``Mnp``: the header as plain mode has it, and views of extended mode.

    ``Mnp(net_flags="SYN") / b"..."`` makes one, ``Mnp(data)`` reads one. ``extended(kind)`` of the
    packet reads bytes 12 to 53 as extended mode has them in packets of that kind.
    """
    from scapy.fields import (
        BitField,
        ByteEnumField,
        FlagsField,
        IntField,
        LongField,
        ShortField,
        XShortField,
    )
    from scapy.packet import Packet

    views = _views()

    class Mnp(Packet):  # type: ignore[misc]
        """The header of 54 bytes."""

        name = "mnp"
        fields_desc = [  # noqa: RUF012 (scapy's way)
            XShortField("magic", 0x4E53),
            ByteEnumField("net_flags", 0, NET_FLAGS),
            FlagsField("msg_flags", 0, 8, MSG_FLAGS),
            IntField("seqno", 0),
            IntField("ackno", 0),
            BitField("sack_bitmap", 0, 256),
            ShortField("sack_bitmap_count", 0),
            LongField("timestamp1", 0),
        ]

        def extended(self) -> Any:
            """Bytes 12 to 53 as extended mode has them."""
            return views[self.net_flags](bytes(self)[12:54])

    return Mnp


def _views() -> dict[int, Any]:
    """Layers of what extended mode has from offset 12 on, by net_flags."""
    offer, sack = _offer(), _sack()
    return {0x00: _data(), 0x01: offer, 0x02: sack, 0x03: offer, 0x04: sack, 0x80: _reset()}


def _offer() -> Any:
    from scapy.fields import ByteField, FlagsField, IntField, ShortField, StrFixedLenField
    from scapy.packet import Packet

    flags = [*FEATURES, *(f"b{i}" for i in range(len(FEATURES), 16))]

    class MnpOffer(Packet):  # type: ignore[misc]
        """SYN and SYN-ACK of extended mode, from offset 12 on."""

        name = "mnp offer"
        fields_desc = [  # noqa: RUF012 (scapy's way)
            IntField("marker", MARKER),
            ByteField("version", 1),
            ByteField("reserved", 0),
            FlagsField("features", 0x7F, 16, flags),
            ShortField("mss", 1418),
            ShortField("window", 256),
            StrFixedLenField("zero", bytes(22), 22),
            IntField("tsval", 0),
            IntField("tsecr", 0),
        ]

    return MnpOffer


def _sack() -> Any:
    from scapy.fields import FieldListField, IntField, LongField, ShortField
    from scapy.packet import Packet

    class MnpSack(Packet):  # type: ignore[misc]
        """ACK and FIN of extended mode, from offset 12 on."""

        name = "mnp acknowledgement"
        fields_desc = [  # noqa: RUF012
            FieldListField("words", [0, 0, 0, 0], LongField("", 0), count_from=lambda _: 4),
            ShortField("window", 256),
            IntField("tsval", 0),
            IntField("tsecr", 0),
        ]

        def held(self, ackno: int) -> list[int]:
            """Sequence numbers that the bitmap names."""
            bits = sum(word << 64 * i for i, word in enumerate(self.words))
            return [(ackno + 1 + i) % 2**32 for i in range(256) if bits >> i & 1]

    return MnpSack


def _data() -> Any:
    from scapy.fields import IntField, ShortField, StrFixedLenField
    from scapy.packet import Packet

    class MnpData(Packet):  # type: ignore[misc]
        """DATA of extended mode, from offset 12 on."""

        name = "mnp data"
        fields_desc = [  # noqa: RUF012
            IntField("message_length", 0),
            StrFixedLenField("zero", bytes(28), 28),
            ShortField("window", 256),
            IntField("tsval", 0),
            IntField("tsecr", 0),
        ]

    return MnpData


def _reset() -> Any:
    from scapy.fields import IntField, StrFixedLenField
    from scapy.packet import Packet

    class MnpReset(Packet):  # type: ignore[misc]
        """RST of extended mode, from offset 12 on."""

        name = "mnp reset"
        fields_desc = [  # noqa: RUF012
            IntField("reason", 0),
            StrFixedLenField("zero", bytes(30), 30),
            IntField("tsval", 0),
            IntField("tsecr", 0),
        ]

    return MnpReset


def frame(path: Any, packet: Any, payload: bytes = b"") -> bytes:
    """An Ethernet frame around a layer, between the `mnp_wire.Addresses` of ``path``."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    made = Ether(src=path.src_mac, dst=path.dst_mac) / IP(src=path.src, dst=path.dst, id=0x1513)
    return bytes(made / UDP(sport=path.sport, dport=path.dport) / packet / payload)
