# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (a network, its nodes and its links are one implementation in several files)
"""Links: what a cable between two nodes does to frames, each way."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.sim.units import duration_ns, format_duration, parse_queue, probability_ppb, rate_bps

if TYPE_CHECKING:
    from machnet.sim.network import Network
    from machnet.sim.nodes import Node

__all__ = ["GilbertElliott", "Link", "LinkDirection", "LinkStats"]

_DISTRIBUTIONS = {
    "fixed": lib.MN_LATENCY_FIXED,
    "uniform": lib.MN_LATENCY_UNIFORM,
    "normal": lib.MN_LATENCY_NORMAL,
    "exponential": lib.MN_LATENCY_EXPONENTIAL,
}


@dataclass(frozen=True)
class GilbertElliott:
    """Losses in bursts: a link is in a good or in a bad state, and may change it with each frame.

    Args:
        bad: Chance of a good link to turn bad, per frame.
        good: Chance of a bad link to turn good, per frame; a burst lasts 1 / good frames on average.
        loss_bad: Chance of losing a frame in the bad state.
        loss_good: The same in the good state.

    Raises:
        ValueError: One of them is no probability.
    """

    bad: float | str
    good: float | str
    loss_bad: float | str = 1.0
    loss_good: float | str = 0.0

    def __post_init__(self) -> None:
        for name in ("bad", "good", "loss_bad", "loss_good"):
            probability_ppb(getattr(self, name), f"GilbertElliott: {name}")


Fields = dict[str, int]


def _latency(value: object) -> Fields:
    return {"latency_ns": duration_ns(value, "latency")}


def _jitter(value: object) -> Fields:
    return {"jitter_ns": duration_ns(value, "jitter")}


def _distribution(value: object) -> Fields:
    if value is None:
        return {}
    if not isinstance(value, str) or value not in _DISTRIBUTIONS:
        known = ", ".join(map(repr, _DISTRIBUTIONS))
        raise ValueError(f"distribution: {value!r} is none of {known}")
    return {"latency_kind": int(_DISTRIBUTIONS[value])}


def _burst_loss(value: object) -> Fields:
    if value is None:
        value = GilbertElliott(0, 0, 0, 0)
    if not isinstance(value, GilbertElliott):
        raise ValueError(f"burst_loss: {value!r} is no GilbertElliott(bad=..., good=...)")
    names = ("bad", "good", "loss_bad", "loss_good")
    return {f"ge_{name}_ppb": probability_ppb(getattr(value, name)) for name in names}


def _queue(value: object) -> Fields:
    bound = parse_queue(value)
    return {"queue_pkts": bound.packets, "queue_bytes": bound.bytes}


def _mtu(value: object) -> Fields:
    if value is None:
        return {"mtu": 0}
    low, high = int(lib.MN_SHAPE_MTU_MIN), int(lib.MN_SHAPE_MTU_MAX)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"mtu: {value!r} is not within {low} to {high} bytes (None: no bound)")
    return {"mtu": value}


def _chance(name: str) -> Callable[[object], Fields]:
    return lambda value: {f"{name}_ppb": probability_ppb(value, name)}


#: What a link can be told, and the fields of ``struct mn_shape`` that it means.
PARAMETERS: dict[str, Callable[[object], Fields]] = {
    "latency": _latency,
    "jitter": _jitter,
    "distribution": _distribution,
    "bandwidth": lambda value: {"bandwidth_bps": rate_bps(value)},
    "loss": _chance("loss"),
    "burst_loss": _burst_loss,
    "reorder": _chance("reorder"),
    "reorder_delay": lambda value: {"reorder_ns": duration_ns(value, "reorder_delay")},
    "duplicate": _chance("duplicate"),
    "duplicate_delay": lambda value: {"duplicate_ns": duration_ns(value, "duplicate_delay")},
    "corrupt": _chance("corrupt"),
    "queue": _queue,
    "mtu": _mtu,
    "keep_order": lambda value: {"keep_order": int(bool(value))},
}

DEFAULTS: dict[str, Any] = {
    "latency": "50us",
    "jitter": 0,
    "bandwidth": "10Gbps",
    "loss": 0.0,
    "burst_loss": None,
    "reorder": 0.0,
    "reorder_delay": "1ms",
    "duplicate": 0.0,
    "duplicate_delay": 0,
    "corrupt": 0.0,
    "queue": None,
    "mtu": None,
    "keep_order": True,
}

#: Names of the fields in the words of `PARAMETERS`, for errors of the core.
_FIELD_OF = {
    "latency_ns": "latency",
    "jitter_ns": "jitter",
    "bandwidth_bps": "bandwidth",
    "queue_pkts": "queue",
    "queue_bytes": "queue",
    "reorder_ns": "reorder_delay",
    "duplicate_ns": "duplicate_delay",
    "mtu": "mtu",
}
_RANGES = {
    "latency": "at most 24 h",
    "jitter": "at most 24 h",
    "reorder_delay": "at most 24 h",
    "duplicate_delay": "at most 24 h",
    "bandwidth": "1 kbps to 1 Pbps, or None for no limit",
    "queue": "at most 65,536 packets and 1 TiB",
}


def shape_fields(params: Mapping[str, Any], what: str = "link") -> Fields:
    """The fields of a shape that parameters mean.

    Raises:
        TypeError: There is no such parameter; the text has the nearest one.
        ValueError: A value is out of its range.
    """
    fields: Fields = {}
    for name, value in params.items():
        parse = PARAMETERS.get(name)
        if parse is None:
            near = difflib.get_close_matches(name, PARAMETERS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(PARAMETERS)}"
            raise TypeError(f"{what} has no parameter {name!r}: {hint}")
        fields.update(parse(value))
    if fields.get("jitter_ns"):
        kind = fields.setdefault("latency_kind", int(lib.MN_LATENCY_UNIFORM))
        if kind == lib.MN_LATENCY_FIXED:
            raise ValueError(
                f"jitter: {params['jitter']!r} with distribution='fixed' has no effect: "
                "it is 'uniform' unless you say 'normal' or 'exponential'"
            )
    check_shape(native_shape(fields), params)
    return fields


def native_shape(fields: Fields) -> Any:
    """A ``struct mn_shape`` with these fields, the others 0."""
    return ffi.new("struct mn_shape *", fields)


def check_shape(shape: Any, params: Mapping[str, Any]) -> None:
    """Refuse what the core would."""
    wrong = lib.mn_shape_check(shape)
    if wrong != ffi.NULL:
        field = ffi.string(wrong).decode()
        name = _FIELD_OF.get(field, field)
        given = params.get(name, getattr(shape, field))
        raise ValueError(f"{name}: {given!r} is out of its range: {_RANGES.get(name, field)}")


@dataclass(frozen=True)
class LinkStats:
    """What happened on one direction so far.

    Attributes:
        frames: Frames that entered it.
        bytes: Their bytes, with Ethernet headers.
        delivered: Frames that reached the other end.
        faults: How many frames met with each kind of fault: "loss", "burst", "reorder",
            "duplicate", "corrupt", "jitter", "queue", "mtu", "blocked", "rule", "down".
    """

    frames: int
    bytes: int
    delivered: int
    faults: dict[str, int]


class LinkDirection:
    """One direction of a link.

    Attributes:
        link: The link.
        sender: The node that it comes from.
        receiver: The node that it goes to.
        name: Such as "h1>h2".
    """

    def __init__(self, link: Link, number: int, ends: tuple[Node, Node], fields: Fields) -> None:
        self.link = link
        self.sender, self.receiver = ends
        suffix = f"#{link.nth}" if link.nth > 1 else ""
        self.name = f"{self.sender.name}>{self.receiver.name}{suffix}"
        self._number = number
        self._base = fields
        self._overlays: list[Fields] = []
        #: How many faults block it (1) or clog it (2) at present.
        self._blocks = {1: 0, 2: 0}

    def set(self, **params: Any) -> None:
        """Change parameters from now on, named as for `Network.link`.

        Frames on the way keep their arrival.

        Raises:
            TypeError, ValueError: A parameter is unknown or out of its range.
        """
        fields = shape_fields(params, self.name)
        self.link.net._usable("set")
        self._base = {**self._base, **fields}
        self._push()
        self.link.net._note(f"{self.name} set {_text(params)}")

    @contextlib.contextmanager
    def degraded(self, **params: Any) -> Iterator[LinkDirection]:
        """Other parameters while the context lasts; those it had come back after it.

        Raises:
            TypeError, ValueError: A parameter is unknown or out of its range.
        """
        end = degrade(self.link.net, [self], self.name, params)
        try:
            yield self
        finally:
            end()

    @property
    def blocked(self) -> bool:
        """Whether nothing passes now (partition)."""
        return self._blocks[1] > 0

    @property
    def clogged(self) -> bool:
        """Whether frames wait now."""
        return self._blocks[2] > 0 and not self.blocked

    @property
    def frames(self) -> int:
        """Frames that entered it so far: the number of the next one."""
        return self.stats().frames

    def stats(self) -> LinkStats:
        """What happened on it so far."""
        out = ffi.new("struct mn_link_stats *")
        self.link.net._check(
            lib.mn_simnet_link_stats(self.link.net._native, self.link._number, self._number, out),
            "stats",
        )
        faults = {
            ffi.string(lib.mn_fault_name(kind)).decode(): int(out.faults[kind])
            for kind in range(1, lib.MN_FAULT_COUNT)
        }
        return LinkStats(int(out.frames), int(out.bytes), int(out.delivered), faults)

    def _shape(self) -> Any:
        fields = dict(self._base)
        for overlay in self._overlays:
            fields.update(overlay)
        fields["blocked"] = 1 if self.blocked else 2 if self.clogged else 0
        return native_shape(fields)

    def _push(self) -> None:
        net = self.link.net
        net._check(
            lib.mn_simnet_shape(net._native, self.link._number, self._number, self._shape()),
            f"{self.name}",
        )

    def _overlay(self, fields: Fields, *, on: bool) -> None:
        if on:
            self._overlays.append(fields)
        else:
            # By identity: equal ones may overlap.
            self._overlays = [kept for kept in self._overlays if kept is not fields]
        self._push()

    def _block(self, mode: int, *, on: bool) -> None:
        self._blocks[mode] += 1 if on else -1
        self._push()

    def __repr__(self) -> str:
        return f"<LinkDirection {self.name}>"


class Link:
    """A link between two nodes; made by `Network.link`.

    Attributes:
        net: The network.
        a: Its first node.
        b: Its second node.
        forward: The direction from ``a`` to ``b``.
        backward: The direction from ``b`` to ``a``.
        nth: 1, or 2 for the second link between the same nodes, and so on.
    """

    def __init__(
        self, net: Network, number: int, ends: tuple[Node, Node], nth: int, shapes: list[Fields]
    ) -> None:
        self.net = net
        self.a, self.b = ends
        self.nth = nth
        self._number = number
        self.forward = LinkDirection(self, 0, (self.a, self.b), shapes[0])
        self.backward = LinkDirection(self, 1, (self.b, self.a), shapes[1])

    @property
    def name(self) -> str:
        """Such as "h1<>h2"; the second one between the same nodes "h1<>h2#2"."""
        return f"{self.a.name}<>{self.b.name}{f'#{self.nth}' if self.nth > 1 else ''}"

    @property
    def directions(self) -> tuple[LinkDirection, LinkDirection]:
        """Forward and backward."""
        return self.forward, self.backward

    def set(self, **params: Any) -> None:
        """Change parameters of both directions from now on, named as for `Network.link`.

        Raises:
            TypeError, ValueError: A parameter is unknown or out of its range.
        """
        for direction in self.directions:
            direction.set(**params)

    @contextlib.contextmanager
    def degraded(self, **params: Any) -> Iterator[Link]:
        """Other parameters while the context lasts; those it had come back after it.

        Raises:
            TypeError, ValueError: A parameter is unknown or out of its range.
        """
        end = degrade(self.net, self.directions, self.name, params)
        try:
            yield self
        finally:
            end()

    def __repr__(self) -> str:
        return f"<Link {self.name}>"


def degrade(
    net: Network, directions: Sequence[LinkDirection], name: str, params: Mapping[str, Any]
) -> Callable[[], None]:
    """Other parameters from now on; what is returned ends it."""
    fields = shape_fields(params, name)
    net._usable("degraded")
    net._note(f"{name} degraded {_text(params)}")
    for direction in directions:
        direction._overlay(fields, on=True)

    def end() -> None:
        if not net.closed:
            for direction in directions:
                direction._overlay(fields, on=False)
            net._note(f"{name} no longer degraded {_text(params)}")

    return end


def _text(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in params.items())


def link_text(direction: LinkDirection) -> str:
    """What a direction does now, in the words of `Network.link`, less what is switched off."""
    shape = direction._shape()
    parts = [f"latency={format_duration(shape.latency_ns)}"]
    if shape.jitter_ns:
        parts.append(f"jitter={format_duration(shape.jitter_ns)}")
    parts += [
        f"{name}={getattr(shape, f'{name}_ppb') / 1e7:g}%"
        for name in ("loss", "reorder", "duplicate", "corrupt")
        if getattr(shape, f"{name}_ppb")
    ]
    return f"{direction.name}: {', '.join(parts)}"
