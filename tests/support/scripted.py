# SPDX-License-Identifier: MIT
"""What both scripted ends of a TCP connection expect with: `tcp_peer` and the conformance suite's peer."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def between(low: float, high: float) -> Callable[[float], bool]:
    """A predicate for `expect`: low <= value <= high."""

    def inside(value: float) -> bool:
        return low <= value <= high

    inside.__doc__ = f"{low} to {high}"
    return inside


def one_of(*values: Any) -> Callable[[Any], bool]:
    """A predicate for `expect`: any of these."""

    def inside(value: Any) -> bool:
        return value in values

    inside.__doc__ = f"one of {values}"
    return inside


def errno_of(call: Callable[[], Any]) -> str | None:
    """Name of the errno that a call fails with; None when it works."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return None


@dataclass(frozen=True)
class Offer:
    """Options of the script's SYN; None and False leave one out."""

    mss: int | None = 1460
    wscale: int | None = None
    sack: bool = False
    ts: bool = False


@dataclass(frozen=True)
class Got:
    """A segment of the other side in relative numbers; ``wnd`` is in bytes, PSH is in ``push`` alone."""

    t_ns: int
    flags: str
    seq: int
    ack: int
    len: int
    wnd: int
    urg: int
    push: bool
    mss: int | None
    wscale: int | None
    sack_ok: bool
    sack: list[tuple[int, int]]
    ts: tuple[int, int] | None
    data: bytes = field(repr=False)
    #: As the peer's parser has it.
    raw: Any = field(repr=False)

    @property
    def end(self) -> int:
        """The sequence number behind it."""
        return self.seq + self.len + ("S" in self.flags) + ("F" in self.flags)

    def differs(self, want: dict[str, Any]) -> list[str]:
        """What is not as wanted, one line each; a callable is asked."""
        lines = []
        for name, value in want.items():
            have = getattr(self, name)
            if callable(value):
                if not value(have):
                    lines.append(f"{name} is {have!r}, wanted {value.__doc__}")
            elif have != value:
                lines.append(f"{name} is {have!r}, wanted {value!r}")
        return lines
