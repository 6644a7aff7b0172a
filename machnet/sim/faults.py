# SPDX-License-Identifier: MIT
"""Faults as data: what a schedule is made of, and whose repr is the code that makes it.

Two sorts. Faults of one frame name the direction of a link and the number of the frame on it, from 0:
``Drop("h1>h2", nth=17)``. Faults on schedule name when they begin and how long they last. Both sorts
are what `Network.schedule` lists, `Network.apply` makes happen and `Network.only` picks from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from machnet.sim.units import Duration, duration_ns, format_duration

__all__ = [
    "Clog",
    "Corrupt",
    "Crash",
    "Degrade",
    "Drop",
    "Duplicate",
    "Fault",
    "FrameFault",
    "Partition",
    "Pause",
    "Reorder",
    "Skew",
    "TimedFault",
    "format_schedule",
]

_DIRECTION = re.compile(r"[^\s<>#,]+>[^\s<>#,]+(?:#[1-9][0-9]*)?")
_LINK = re.compile(r"[^\s<>#,]+<?>[^\s<>#,]+(?:#[1-9][0-9]*)?")


def _matches(form: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _names(value: object, what: str) -> tuple[str, ...]:
    """Names of nodes: one, or several; hosts may stand for their names."""
    several = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
    names: list[Any] = [getattr(item, "name", item) for item in several]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{what}: {value!r} is neither a node's name nor a list of them")
    if isinstance(value, (set, frozenset)):
        names.sort()
    return tuple(names)


@dataclass(frozen=True, repr=False)
class FrameFault:
    """A fault of one frame.

    Args:
        link: Name of a link's direction, such as "h1>h2"; the second link between the same nodes
            is "h1>h2#2".
        nth: Number of the frame on that direction, from 0.

    Raises:
        ValueError: One of them is not of that form.
    """

    link: str
    nth: int

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not _matches(_DIRECTION, self.link):
            raise ValueError(f"{name}: link: {self.link!r} is no direction such as 'h1>h2'")
        if not _is_number(self.nth):
            raise ValueError(f"{name}: nth: {self.nth!r} is no frame's number (0, 1, ...)")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.link!r}, nth={self.nth})"


class Drop(FrameFault):
    """The frame is lost."""


class Duplicate(FrameFault):
    """The frame arrives twice."""


class Corrupt(FrameFault):
    """One bit of the frame is inverted; which one, the link's random stream says."""


class Reorder(FrameFault):
    """The frame is held back by the link's ``reorder_delay``."""


@dataclass(frozen=True, repr=False, kw_only=True)
class TimedFault:
    """A fault on schedule.

    Args:
        at: When it begins, in virtual time since the network's start.
        for_: How long it lasts; 0: for good.
    """

    _first: ClassVar[tuple[str, ...]] = ()
    at: Duration
    for_: Duration = 0

    def __post_init__(self) -> None:
        name = type(self).__name__
        object.__setattr__(self, "at", duration_ns(self.at, f"{name}: at"))
        object.__setattr__(self, "for_", duration_ns(self.for_, f"{name}: for_"))
        for part in self._first:
            value = _names(getattr(self, part), f"{name}: {part}")
            object.__setattr__(self, part, value)

    @property
    def at_ns(self) -> int:
        """When it begins, in nanoseconds."""
        return duration_ns(self.at)

    @property
    def for_ns(self) -> int:
        """How long it lasts, in nanoseconds; 0: for good."""
        return duration_ns(self.for_)

    def _more(self) -> list[str]:
        return []

    def __repr__(self) -> str:
        parts = []
        for part in self._first:
            names = getattr(self, part)
            parts.append(repr(names[0] if len(names) == 1 else list(names)))
        parts.append(f"at={format_duration(self.at_ns)!r}")
        if self.for_ns:
            parts.append(f"for_={format_duration(self.for_ns)!r}")
        return f"{type(self).__name__}({', '.join(parts + self._more())})"


@dataclass(frozen=True, repr=False)
class _Pair(TimedFault):
    """Between two groups of nodes, each a name or a list of names."""

    _first: ClassVar[tuple[str, ...]] = ("a", "b")
    a: Any
    b: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        both = sorted(set(self.a) & set(self.b))
        if both:
            raise ValueError(f"{type(self).__name__}: {both[0]!r} is on both sides")


@dataclass(frozen=True, repr=False)
class Partition(_Pair):
    """Nothing passes between the nodes ``a`` and ``b``; with ``one_way`` not from ``a`` to ``b``."""

    one_way: bool = field(default=False, kw_only=True)

    def _more(self) -> list[str]:
        return ["one_way=True"] if self.one_way else []


@dataclass(frozen=True, repr=False)
class Clog(_Pair):
    """What is sent between ``a`` and ``b`` waits in the queues until the clog ends."""


@dataclass(frozen=True, repr=False)
class _OfHost(TimedFault):
    _first: ClassVar[tuple[str, ...]] = ("host",)
    host: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.host) != 1:
            raise ValueError(f"{type(self).__name__}: host: {self.host!r} is more than one")


@dataclass(frozen=True, repr=False)
class Pause(_OfHost):
    """The host stands still: neither frames nor timers reach it."""


@dataclass(frozen=True, repr=False)
class Crash(_OfHost):
    """The host goes down without a word, and starts anew after ``for_`` (0: it stays down)."""


@dataclass(frozen=True, repr=False)
class Skew(_OfHost):
    """The host's clock runs faster by ``ppm`` (negative: slower), after a jump forward."""

    ppm: float = field(default=0.0, kw_only=True)
    jump: Duration = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "jump", duration_ns(self.jump, "Skew: jump"))

    def _more(self) -> list[str]:
        jump = duration_ns(self.jump)
        parts = [f"ppm={self.ppm!r}"] if self.ppm else []
        return parts + ([f"jump={format_duration(jump)!r}"] if jump else [])


@dataclass(frozen=True, repr=False, init=False)
class Degrade(TimedFault):
    """Parameters of a link (by the name of a direction, or "h1<>h2" for both) are others meanwhile.

    Args:
        link: "h1>h2", or "h1<>h2" for both directions.
        at: When it begins.
        for_: How long it lasts; 0: for good.
        params: Parameters of `Network.link`.
    """

    link: str
    params: tuple[tuple[str, Any], ...]

    def __init__(self, link: str, *, at: Duration, for_: Duration = 0, **params: Any) -> None:
        if not _matches(_LINK, link):
            raise ValueError(f"Degrade: link: {link!r} is neither 'h1>h2' nor 'h1<>h2'")
        if not params:
            raise ValueError("Degrade: no parameter of the link is given, such as loss=0.5")
        object.__setattr__(self, "link", link)
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "for_", for_)
        object.__setattr__(self, "params", tuple(sorted(params.items())))
        TimedFault.__post_init__(self)

    def __repr__(self) -> str:
        text = TimedFault.__repr__(self)
        params = ", ".join(f"{name}={value!r}" for name, value in self.params)
        return f"Degrade({self.link!r}, {text[len('Degrade(') : -1]}, {params})"


#: Anything that a schedule is made of.
Fault: TypeAlias = "FrameFault | TimedFault"


def format_schedule(schedule: list[Fault], name: str = "schedule") -> str:
    """The code that makes a schedule, one fault a line."""
    if not schedule:
        return f"{name} = []"
    lines = "".join(f"    {fault!r},\n" for fault in schedule)
    return f"{name} = [\n{lines}]"
