# SPDX-License-Identifier: MIT
"""What a script consists of, as the parser hands it on. Times are nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ANY",
    "AnyValue",
    "Array",
    "Call",
    "Code",
    "Command",
    "Dots",
    "Event",
    "Expression",
    "Field",
    "Function",
    "IcmpPacket",
    "IpInfo",
    "Number",
    "Option",
    "Or",
    "Packet",
    "Position",
    "Script",
    "String",
    "Struct",
    "Symbol",
    "TcpOption",
    "TcpPacket",
    "Time",
    "UdpPacket",
]


@dataclass(frozen=True, slots=True)
class Position:
    """Line and column, from 1."""

    line: int
    column: int


# ---- expressions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number:
    """An integer."""

    value: int


@dataclass(frozen=True, slots=True)
class String:
    """A string in quotes."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Symbol:
    """A constant by its name."""

    name: str
    where: Position


@dataclass(frozen=True, slots=True)
class Or:
    """Constants joined by ``|``."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Dots:
    """``...``: the reader fills in what fits."""


@dataclass(frozen=True, slots=True)
class AnyValue:
    """``?`` or ``_``: whatever it is."""


@dataclass(frozen=True, slots=True)
class Array:
    """``[a, b]``."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """``name = value`` of a struct, or just a value; ``name(count) = value`` has a count too."""

    name: str | None
    value: Expression
    count: Expression | None = None


@dataclass(frozen=True, slots=True)
class Struct:
    """``{a = 1, b = 2}``."""

    fields: tuple[Field, ...]
    where: Position


@dataclass(frozen=True, slots=True)
class Function:
    """``htons(80)`` and the like."""

    name: str
    args: tuple[Expression, ...]
    where: Position


Expression = Number | String | Symbol | Or | Dots | AnyValue | Array | Struct | Function
ANY = AnyValue()

# ---- packets -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IpInfo:
    """What is said of the IP header; None: nothing is.

    Attributes:
        ecn: "noecn", "ect0", "ect1" or "ce".
        tos: The whole octet.
        ttl: Time to live.
    """

    ecn: str | None = None
    tos: int | None = None
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class TcpOption:
    """One TCP option.

    Attributes:
        kind: "mss", "wscale", "sackOK", "sack", "TS", "nop", "eol", "FO", "FOEXP".
        values: Its numbers: of a TS val and ecr, of a sack left and right edges in turn.
        data: A cookie.
    """

    kind: str
    values: tuple[int, ...] = ()
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class TcpPacket:
    """One TCP segment, in the script's sequence numbers.

    Attributes:
        flags: Letters of "FSRPUEW." in this order, each at most once.
        options: None: any (``<...>``).
        more_options: The list ended with ``...``: others may be there.
        any_push: ``P?``: whether PSH is set does not matter.
        ports: Source and destination; None: those of the current connection.
    """

    flags: str
    seq: int
    end: int
    length: int
    ack: int | None
    window: int | None
    urgent: int | None
    options: tuple[TcpOption, ...] | None
    more_options: bool = False
    ports: tuple[int, int] | None = None
    any_push: bool = False


@dataclass(frozen=True, slots=True)
class UdpPacket:
    """A UDP datagram with so many bytes of data."""

    length: int


@dataclass(frozen=True, slots=True)
class IcmpPacket:
    """An ICMP error.

    Attributes:
        type_name: As "unreachable".
        type: Its number.
        code: Its code.
        mtu: Of "frag_needed".
        seq: Sequence number that is quoted; None: that of the stack's SYN.
        length: Payload bytes of the packet that is quoted.
        udp: A UDP packet is quoted.
    """

    type_name: str
    type: int
    code: int
    mtu: int | None
    seq: int | None
    length: int
    udp: bool = False


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that comes in (``<``) or is expected to go out (``>``)."""

    inbound: bool
    body: TcpPacket | UdpPacket | IcmpPacket
    ip: IpInfo


# ---- the other actions ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """A system call.

    Attributes:
        name: As "setsockopt".
        args: Its arguments.
        result: What it returns.
        errno: Name of the error, as "EAGAIN"; None: not stated.
        end_ns: Not None: it blocks until then (absolute, or from the event before, as its event).
    """

    name: str
    args: tuple[Expression, ...]
    result: Expression
    errno: str | None
    end_ns: int | None


@dataclass(frozen=True, slots=True)
class Code:
    """Python text between ``%{`` and ``}%``."""

    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A shell command in backticks."""

    text: str


@dataclass(frozen=True, slots=True)
class Time:
    """When something is to happen.

    Attributes:
        kind: From the start of the script, from the event before, or whenever.
        start_ns: The time, or the earliest.
        end_ns: The latest, where a range was given.
    """

    kind: Literal["absolute", "relative", "any"]
    start_ns: int = 0
    end_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One action at its time."""

    where: Position
    time: Time
    action: Packet | Call | Code | Command


@dataclass(frozen=True, slots=True)
class Option:
    """``--name=value`` at the head of a script."""

    where: Position
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Script:
    """A whole script.

    Attributes:
        source: Its name.
        lines: Its text.
        options: From the lines at its head.
        events: In their order. Commands before the first time are events at +0.
        arms: Where it runs; None: anywhere. From a comment ``// @arms machnet: reason``.
        arms_reason: Why not anywhere.
    """

    source: str
    lines: tuple[str, ...]
    options: tuple[Option, ...]
    events: tuple[Event, ...]
    arms: tuple[str, ...] | None
    arms_reason: str

    def line(self, where: Position) -> str:
        """The text of the line at that place."""
        return self.lines[where.line - 1] if where.line <= len(self.lines) else ""
