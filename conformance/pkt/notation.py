# SPDX-License-Identifier: MIT
"""Packets as the script language writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .nodes import IcmpPacket, TcpOption, TcpPacket, UdpPacket

if TYPE_CHECKING:
    from machnet.testing import Packet

__all__ = [
    "FAST_OPEN_KIND",
    "FOEXP_MAGIC",
    "describe",
    "flags_text",
    "option_text",
    "options_of",
    "options_text",
    "packet_text",
    "seconds",
]

FAST_OPEN_KIND, _EXPERIMENT_KIND = 34, 254
FOEXP_MAGIC = b"\xf9\x89"
_NAMES = {"sack_ok": "sackOK", "ts": "TS"}
#: Letters of `Packet.flags` in the language's order.
_FLAGS = (("F", "F"), ("S", "S"), ("R", "R"), ("P", "P"), ("U", "U"), ("E", "E"), ("C", "W"))


def seconds(ns: int) -> str:
    """A time as the scripts write it."""
    return f"{ns / 1e9:.6f}"


def flags_text(live: str) -> str:
    """Flags of a frame ("SA") in the language ("S.")."""
    return "".join(mark for letter, mark in _FLAGS if letter in live) + "." * ("A" in live)


def options_of(packet: Packet, base: int = 0) -> tuple[TcpOption, ...]:
    """The options of a frame, with SACK blocks counted from ``base``."""
    options: list[TcpOption] = []
    assert packet.tcp is not None
    for kind, value in packet.tcp.options:
        options.append(_option(kind, value, base))
    while options and options[-1].kind in {"eol", "pad"}:
        options.pop()
    return tuple(options)


def _option(kind: Any, value: Any, base: int) -> TcpOption:
    if kind == "sack":
        return TcpOption("sack", tuple((edge - base) % 2**32 for block in value for edge in block))
    if kind == "ts":
        return TcpOption("TS", tuple(value))
    if kind in {"mss", "wscale"}:
        return TcpOption(kind, (value,))
    if isinstance(kind, str):
        return TcpOption("pad" if kind == "raw" else _NAMES.get(kind, kind))
    if kind == FAST_OPEN_KIND:
        return TcpOption("FO", (), value)
    if kind == _EXPERIMENT_KIND and value[:2] == FOEXP_MAGIC:
        return TcpOption("FOEXP", (), value[2:])
    return TcpOption(f"kind-{kind}", (), value)


def option_text(option: TcpOption) -> str:
    """One option."""
    values = option.values
    if option.kind == "TS":
        return f"TS val {values[0]} ecr {values[1]}"
    if option.kind == "sack":
        pairs = zip(values[::2], values[1::2], strict=True)
        return "sack " + " ".join(f"{left}:{right}" for left, right in pairs)
    if values:
        return f"{option.kind} {values[0]}"
    return f"{option.kind} {option.data.hex()}" if option.data else option.kind


def options_text(options: tuple[TcpOption, ...] | None, more: bool = False) -> str:
    """All options in their brackets; nothing where there are none."""
    if options is None:
        return "<...>"
    words = [option_text(option) for option in options] + ["..."] * more
    return f"<{','.join(words)}>" if words else ""


def describe(body: TcpPacket | UdpPacket | IcmpPacket) -> str:
    """A packet of a script."""
    if isinstance(body, UdpPacket):
        return f"udp ({body.length})"
    if isinstance(body, IcmpPacket):
        return f"icmp {body.type_name} code {body.code}"
    flags = ("P?" if body.any_push else "") + body.flags
    words = [flags or "-", f"{body.seq}:{body.end}({body.length})"]
    for name, value in (("ack", body.ack), ("win", body.window), ("urg", body.urgent)):
        if value is not None:
            words.append(f"{name} {value}")
    words.append(options_text(body.options, body.more_options))
    return " ".join(word for word in words if word)


def packet_text(packet: Packet, seq_base: int = 0, ack_base: int = 0) -> str:
    """A frame.

    Args:
        packet: The frame.
        seq_base: What its sequence numbers are counted from.
        ack_base: What its acknowledgement numbers and SACK blocks are counted from.
    """
    if packet.udp is not None:
        return f"udp ({packet.length})"
    if packet.tcp is None:
        return packet.summary()
    tcp = packet.tcp
    start = (tcp.seq - seq_base) % 2**32
    end = (start + packet.length) % 2**32
    words = [flags_text(tcp.flags) or "-", f"{start}:{end}({packet.length})"]
    if "A" in tcp.flags:
        words.append(f"ack {(tcp.ack - ack_base) % 2**32}")
    words.append(f"win {tcp.window}")
    if "U" in tcp.flags:
        words.append(f"urg {tcp.urgent}")
    words.append(options_text(options_of(packet, ack_base)))
    return " ".join(word for word in words if word)
