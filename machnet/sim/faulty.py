# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (NICs and stacks are one implementation in several files)
"""A bad network around a NIC: loss, delay, reordering and so on, in real or in virtual time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from machnet._native import ffi, lib
from machnet.errors import os_error
from machnet.sim.links import GilbertElliott, native_shape, shape_fields
from machnet.sim.nicstr import DIRECTIONS, NicSpec
from machnet.stack.clock import Clock
from machnet.stack.nics import Nic, Wire
from machnet.stack.opening import check_unused

if TYPE_CHECKING:
    from machnet.stack.stack import Stack

__all__ = ["Faulty"]

Direction = Literal["tx", "rx"]

_NUMBERS = {"tx": int(lib.MN_FAULTNIC_TX), "rx": int(lib.MN_FAULTNIC_RX)}
#: Where `Network.link` has other defaults: a real NIC has its own latency and bandwidth.
_DEFAULTS: dict[str, Any] = {"queue": "1000p", "reorder_delay": "1ms", "keep_order": True}
_GE = {"ge_bad": "bad", "ge_good": "good", "ge_loss_bad": "loss_bad", "ge_loss_good": "loss_good"}
_BLOCKED, _CLOGGED = 1, 2


class Faulty(Nic):
    """Middleware: what a bad network would do to the frames of a NIC, in each direction.

    Each direction is a link as in `machnet.sim.Network`, with the parameters of `Network.link`:
    ``latency``, ``jitter``, ``distribution``, ``bandwidth``, ``queue`` (here "1000p" by default),
    ``loss``, ``burst_loss``, ``reorder``, ``reorder_delay``, ``duplicate``, ``duplicate_delay``,
    ``corrupt``, ``mtu``, ``keep_order``. What is not given does nothing. The decisions depend on
    the seed and on the number of each frame, so in real time they repeat as far as the traffic does.

    Args:
        inner: The NIC; it stays the caller's. It must hand over single frames: a `Tap` is opened
            with ``offload=False``.
        seed: Of the faults.
        tx: Parameters for what the stack sends only; they come before those of both.
        rx: Parameters for what it receives only.
        params: Parameters of both directions.

    Raises:
        TypeError: There is no such parameter.
        ValueError: A value is out of its range, or the NIC hands over more than single frames.
    """

    def __init__(
        self,
        inner: Nic,
        *,
        seed: int = 0,
        tx: Mapping[str, Any] | None = None,
        rx: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> None:
        own = {"tx": tx or {}, "rx": rx or {}}
        self._fields = {name: _link_fields(name, params, own[name]) for name in DIRECTIONS}
        self._blocks = {name: {_BLOCKED: 0, _CLOGGED: 0} for name in DIRECTIONS}
        check_unused(inner)
        if inner._info().tx_gso:
            raise ValueError(
                f"{inner} hands over segments of many frames, which faults can't hit one by one: "
                "open it without offload (Tap(..., offload=False))"
            )
        config = ffi.new("struct mn_faultnic_config *")
        config.seed = seed & (2**64 - 1)
        for name in DIRECTIONS:
            setattr(config, name, self._shape(name)[0])
        out = ffi.new("struct mn_nic **")
        rc = lib.mn_faultnic_open(inner.native, config, out)
        if rc < 0:
            raise os_error(-rc, f"faults around {inner}")
        super().__init__(ffi.gc(out[0], lib.mn_faultnic_close), f"{inner.name} with faults")
        self._inner = inner
        self._owned = False
        self.realtime = inner.realtime
        self.stepped_only = inner.stepped_only
        inner.wrapped_by(self)

    @classmethod
    def from_spec(cls, inner: Nic, spec: NicSpec) -> Faulty:
        """The layer that the part of a NIC string behind the ``?`` asks for. It owns ``inner``.

        Raises:
            ValueError: As for the class; the text has the whole string.
        """
        both, own = split_params(spec)
        seed = both.pop("seed", 0)
        try:
            layer = cls(inner, seed=seed, tx=own["tx"], rx=own["rx"], **both)
        except ValueError as error:
            raise ValueError(f"NIC {str(spec)!r}: {error}") from None
        layer._owned = True
        layer.name = str(spec)
        return layer

    # ---- as any NIC ------------------------------------------------------------------------------

    def watchers(self) -> list[tuple[Any, Any]]:
        """The inner NIC's, and the layer's own: it delays by the clock of the stack."""
        mine = (ffi.addressof(lib, "mn_faultnic_set_now"), self.native)
        return [*self._inner.watchers(), mine]

    def new_clock(self) -> Clock:
        """The clock of the inner NIC."""
        return self._inner.new_clock()

    def prepare(self, ip: str, isn: int | None) -> int | None:
        """As the inner NIC has it."""
        isn = self._inner.prepare(ip, isn)
        lib.mn_faultnic_sync(self.native)
        return isn

    def hand_fed_wire(self) -> Wire | None:
        """The inner NIC's."""
        return self._inner.hand_fed_wire()

    @property
    def inner(self) -> Nic:
        """The NIC that is wrapped."""
        return self._inner

    def _release(self) -> None:
        ffi.release(self._handle)
        self._handle = None
        if self._owned:
            self._inner.close()

    # ---- faults ----------------------------------------------------------------------------------

    def set(
        self,
        *,
        tx: Mapping[str, Any] | None = None,
        rx: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> None:
        """Change parameters from now on; the others stay. Frames on the way keep their arrival.

        From any thread. A stack that is stepped takes them with its next poll.

        Raises:
            TypeError, ValueError: As for the class.
        """
        own = {"tx": tx or {}, "rx": rx or {}}
        new = {name: shape_fields({**params, **own[name]}, name) for name in DIRECTIONS}
        for name in DIRECTIONS:
            self._fields[name] = {**self._fields[name], **new[name]}
        self._push()

    @contextlib.contextmanager
    def degraded(
        self,
        *,
        tx: Mapping[str, Any] | None = None,
        rx: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> Iterator[Faulty]:
        """`set` while the context lasts.

        Raises:
            TypeError, ValueError: As for the class.
        """
        before = self._fields.copy()
        self.set(tx=tx, rx=rx, **params)
        try:
            yield self
        finally:
            self._fields = before
            self._push_if_open()

    @contextlib.contextmanager
    def partitioned(self, direction: Direction | None = None) -> Iterator[Faulty]:
        """Nothing passes while the context lasts; None: in neither direction."""
        with self._blocking(_BLOCKED, direction):
            yield self

    @contextlib.contextmanager
    def clogged(self, direction: Direction | None = None) -> Iterator[Faulty]:
        """Frames wait in the queue while the context lasts, and go on after it."""
        with self._blocking(_CLOGGED, direction):
            yield self

    @contextlib.contextmanager
    def _blocking(self, mode: int, direction: Direction | None) -> Iterator[None]:
        if direction is not None and direction not in DIRECTIONS:
            raise ValueError(f"direction: {direction!r} is neither 'tx' nor 'rx'")
        names = DIRECTIONS if direction is None else (direction,)
        for name in names:
            self._blocks[name][mode] += 1
        self._push()
        try:
            yield
        finally:
            for name in names:
                self._blocks[name][mode] -= 1
            self._push_if_open()

    def _shape(self, name: str) -> Any:
        blocks = self._blocks[name]
        shape = native_shape(self._fields[name])
        shape.blocked = _BLOCKED if blocks[_BLOCKED] else _CLOGGED if blocks[_CLOGGED] else 0
        return shape

    def _push_if_open(self) -> None:
        if self._handle is not None:
            self._push()

    def _push(self) -> None:
        native = self.native
        for name in DIRECTIONS:
            rc = lib.mn_faultnic_set(native, _NUMBERS[name], self._shape(name))
            if rc < 0:
                raise os_error(-rc, f"{name} of {self}")
        stack: Stack | None = self._user() if self._user is not None else None
        if stack is not None and stack.threaded and not stack.closed:
            # A sleeping thread has no reason to look. The first call may come at the end of a pass
            # that began before.
            stack.usage()
            stack.usage()

    def stats(self) -> dict[str, int]:
        """What happened in each direction, as "tx_frames", "rx_loss" and so on.

        frames and bytes that were offered, frames that passed (copies included), are waiting, or
        were lost for want of memory (dropped_pool) or for their length (dropped_size); how often the
        NIC took no more (refused); and frames that met with each fault.
        """
        out = ffi.new("struct mn_faultnic_stats *")
        found = {}
        for name in DIRECTIONS:
            lib.mn_faultnic_get_stats(self.native, _NUMBERS[name], out)
            for field, _ in ffi.typeof(out).item.fields:
                if field != "faults":
                    found[f"{name}_{field}"] = int(getattr(out, field))
            for kind in range(int(lib.MN_FAULT_LOSS), int(lib.MN_FAULT_RULE)):
                fault = ffi.string(lib.mn_fault_name(kind)).decode()
                found[f"{name}_{fault}"] = int(out.faults[kind])
        return found


def check_faults(spec: NicSpec) -> None:
    """Refuse a NIC string that asks for faults which there can't be.

    Raises:
        ValueError: A value is wrong; the text has the whole string.
    """
    both, own = split_params(spec)
    both.pop("seed", None)
    try:
        for name in DIRECTIONS:
            _link_fields(name, both, own[name])
    except ValueError as error:
        raise ValueError(f"NIC {str(spec)!r}: {error}") from None


def _link_fields(name: str, both: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, int]:
    return shape_fields({**_DEFAULTS, **both, **own}, f"{name} of a faulty NIC")


def split_params(spec: NicSpec) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The parameters of a NIC string: for both directions, and for each alone.

    Raises:
        ValueError: One that is no text of its own (seed, mtu, keep_order, ge_...) is wrong.
    """
    texts: dict[str, dict[str, str]] = {"": {}, "tx": {}, "rx": {}}
    for key, value in spec.faults.items():
        direction, _, name = key.rpartition(".")
        texts[direction][name] = value
    both = _params(spec, texts[""])
    return both, {name: _params(spec, texts[name]) for name in DIRECTIONS}


def _params(spec: NicSpec, texts: dict[str, str]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    bursts: dict[str, str] = {}
    for key, text in texts.items():
        if key in {"seed", "mtu"}:
            params[key] = _number(spec, key, text)
        elif key == "keep_order":
            if text not in {"0", "1"}:
                raise ValueError(f"NIC {str(spec)!r}: keep_order: {text!r} is neither 0 nor 1")
            params[key] = text == "1"
        elif key in _GE:
            bursts[_GE[key]] = text
        else:
            params[key] = text
    if bursts:
        if not {"bad", "good"} <= set(bursts):
            raise ValueError(f"NIC {str(spec)!r}: bursts need both ge_bad and ge_good")
        try:
            params["burst_loss"] = GilbertElliott(**bursts)
        except ValueError as error:
            raise ValueError(f"NIC {str(spec)!r}: {error}") from None
    return params


def _number(spec: NicSpec, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"NIC {str(spec)!r}: {key}: {text!r} is no whole number")
    return int(text)
