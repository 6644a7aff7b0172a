# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (a network, its nodes and its links are one implementation in several files)
"""Faults while a network runs: partitions, clogs, hosts that pause, crash and start anew, clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.errors import os_error
from machnet.sim.faults import (
    Clog,
    Corrupt,
    Crash,
    Degrade,
    Drop,
    Duplicate,
    Fault,
    FrameFault,
    Partition,
    Pause,
    Reorder,
    Skew,
    TimedFault,
)
from machnet.sim.links import LinkDirection, degrade, shape_fields
from machnet.sim.nodes import Host, Node, Switch
from machnet.sim.units import Duration, duration_ns, format_duration

if TYPE_CHECKING:
    from machnet.sim.network import Network

__all__ = ["ActiveFault", "Control"]

_PARTITIONED, _CLOGGED = 1, 2
#: What the core calls a fault of a frame, and the classes of it.
_KINDS: dict[int, type[FrameFault]] = {
    int(lib.MN_FAULT_LOSS): Drop,
    int(lib.MN_FAULT_BURST): Drop,
    int(lib.MN_FAULT_DUPLICATE): Duplicate,
    int(lib.MN_FAULT_CORRUPT): Corrupt,
    int(lib.MN_FAULT_REORDER): Reorder,
}
_PPM_MAX = 900_000


class ActiveFault:
    """A fault that is in force; made by `Network.partition` and its like.

    A context manager, whose end heals it.

    Attributes:
        text: What it is.
        since_ns: Virtual time at which it began.
    """

    def __init__(self, control: Control, text: str, undo: Callable[[], None]) -> None:
        self._control = control
        self._undo = undo
        self.text = text
        self.since_ns = control.net.now_ns
        control.active.append(self)
        control.net._note(text)

    @property
    def active(self) -> bool:
        """Whether it is still in force."""
        return self in self._control.active

    def heal(self) -> None:
        """End it. Again: nothing."""
        if not self.active:
            return
        self._control.active.remove(self)
        if not self._control.net.closed:
            self._undo()
            self._control.net._note(f"{self.text} healed")

    def __enter__(self) -> ActiveFault:
        return self

    def __exit__(self, *exc: object) -> None:
        self.heal()

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<{self.text}{'' if self.active else ', healed'}>"


class Control:
    """The faults of a network; its public face is in `Network` and `Host`."""

    def __init__(self, net: Network) -> None:
        self.net = net
        #: Faults that are in force, in the order they began.
        self.active: list[ActiveFault] = []
        self._kinds: dict[int, list[ActiveFault]] = {_PARTITIONED: [], _CLOGGED: []}
        self._paused: list[tuple[Host, ActiveFault]] = []
        #: Faults on schedule that began, with their time.
        self._begun: list[tuple[int, Fault]] = []
        self._only: set[Fault] | None = None
        self._forced: list[FrameFault] = []

    # ---- between nodes ---------------------------------------------------------------------------

    def between(
        self, mode: int, first: Iterable[Node | str], second: Iterable[Node | str], *, one_way: bool
    ) -> ActiveFault:
        """Let nothing pass (mode 1), or wait (2), between two groups of nodes."""
        word = "partition" if mode == _PARTITIONED else "clog"
        left, right = self.net._group(first, word), self.net._group(second, word)
        for node in left:
            if node in right:
                raise ValueError(f"{word}: {node.name} is on both sides")
        pairs = [(a, b) for a in left for b in right]
        if not one_way:
            pairs += [(b, a) for a in left for b in right]
        directions: list[LinkDirection] = []
        apart: list[tuple[Node, Node]] = []
        for a, b in pairs:
            found = [d for d in self.net._all_directions() if d.sender is a and d.receiver is b]
            directions += found if mode == _CLOGGED or not self._by_pair(a, b) else []
            if mode == _PARTITIONED and self._by_pair(a, b):
                apart.append((a, b))
            elif not found:
                raise ValueError(f"{word}: there is no link between {a.name} and {b.name}")
        arrow = ">" if one_way else "<>"
        text = f"{word} {_list(left)} {arrow} {_list(right)}"
        self._set_blocks(mode, directions, apart, on=True)
        fault = ActiveFault(self, text, lambda: self._set_blocks(mode, directions, apart, on=False))
        self._kinds[mode].append(fault)
        return fault

    @staticmethod
    def _by_pair(a: Node, b: Node) -> bool:
        """Whether the core can tell what goes between them, whatever the way."""
        return not isinstance(a, Switch) and not isinstance(b, Switch)

    def _set_blocks(
        self,
        mode: int,
        directions: list[LinkDirection],
        pairs: list[tuple[Node, Node]],
        *,
        on: bool,
    ) -> None:
        for direction in directions:
            direction._block(mode, on=on)
        for a, b in pairs:
            self.net._check(
                lib.mn_simnet_part(self.net._native, a.number, b.number, on), "partition"
            )

    def heal(self) -> None:
        """End all partitions and clogs."""
        for kind in self._kinds.values():
            for fault in list(kind):
                fault.heal()
            kind.clear()

    # ---- hosts -----------------------------------------------------------------------------------

    def pause(self, host: Host) -> ActiveFault:
        """Let a host stand still."""
        self._set_paused(host, 1)
        fault = ActiveFault(self, f"pause {host.name}", lambda: self._set_paused(host, -1))
        self._paused.append((host, fault))
        return fault

    def _set_paused(self, host: Host, step: int) -> None:
        host._paused += step
        rc = lib.mn_simnet_pause(self.net._native, host.number, host._paused > 0)
        self.net._check(rc, f"{host.name}: pause")

    def resume(self, host: Host) -> None:
        """End all pauses of a host."""
        self.net._usable("resume")
        for paused, fault in self._paused:
            if paused is host:
                fault.heal()
        self._paused = [entry for entry in self._paused if entry[1].active]

    def crash(self, host: Host) -> None:
        """Take a host down."""
        self._outside("crash", host)
        self.resume(host)  # what has ended is not stopped
        if not host.up:
            return
        rc = lib.mn_simnet_down(self.net._native, host.number, True)
        self.net._check(rc, f"{host.name}: crash")
        host._shut()
        self.net._note(f"crash {host.name}")
        self.net._cancel_tasks(host)

    def restart(self, host: Host, settings: dict[str, Any]) -> None:
        """Start a host anew."""
        self._outside("restart", host)
        settings = {**host.settings, **settings}
        host._check(settings)
        self.crash(host)
        host.settings = settings
        host._boot()
        rc = lib.mn_simnet_down(self.net._native, host.number, False)
        self.net._check(rc, f"{host.name}: restart")
        self.net._note(f"restart {host.name}")
        if host.on_restart is not None:
            host.on_restart(host)

    def _outside(self, what: str, host: Host) -> None:
        self.net._usable(what)
        self.net.clock.check_outside(
            f"{host.name}: {what}: not inside a rule (net.at(0, ...) is right behind it)"
        )

    def skew(self, host: Host, ppm: float, jump: Duration) -> None:
        """Change how a host's clock runs."""
        self.net._usable("skew")
        jump_ns = duration_ns(jump, "jump")
        given: object = ppm
        if not isinstance(given, (int, float)) or not -_PPM_MAX <= ppm <= _PPM_MAX:
            raise ValueError(f"ppm: {ppm!r} is not within -{_PPM_MAX} to {_PPM_MAX}")
        rc = lib.mn_simnet_skew(self.net._native, host.number, round(ppm * 1000), jump_ns)
        if rc < 0:
            raise os_error(-rc, f"{host.name}: skew by {ppm} ppm and {jump!r}")
        jumped = f", jump {format_duration(jump_ns)}" if jump_ns else ""
        self.net._note(f"skew {host.name} {ppm:+g} ppm{jumped}")

    # ---- schedules -------------------------------------------------------------------------------

    def apply(self, schedule: Iterable[Fault]) -> None:
        """Make faults happen: those of frames when their frame comes, the others at their time."""
        faults = list(schedule)
        for fault in faults:
            self._check_fault(fault)
        frames = [fault for fault in faults if isinstance(fault, FrameFault)]
        if frames:
            self._forced += frames
            self._force()
        for fault in faults:
            if isinstance(fault, TimedFault):
                self._arm(fault)

    def _check_fault(self, fault: Fault) -> None:
        if isinstance(fault, FrameFault):
            self.net._direction(fault.link)
        elif isinstance(fault, (Partition, Clog)):
            self.net._group(fault.a, repr(fault))
            self.net._group(fault.b, repr(fault))
        elif isinstance(fault, (Pause, Crash, Skew)):
            self._host(fault)
        elif isinstance(fault, Degrade):
            self.net._directions(fault.link, repr(fault))
            shape_fields(dict(fault.params), repr(fault))
        else:
            raise TypeError(f"apply: {fault!r} is no fault: see machnet.sim.faults")

    def _host(self, fault: Pause | Crash | Skew) -> Host:
        node = self.net._node(fault.host[0], repr(fault))
        if not isinstance(node, Host):
            raise ValueError(f"{fault!r}: {node.name} is no host")
        return node

    def _arm(self, fault: TimedFault) -> None:
        if fault.at_ns <= self.net.now_ns and not self.net.clock.under_way:
            self._begin(fault)
        else:
            self.net.clock.call_at(fault.at_ns, lambda: self._begin(fault), repr(fault))

    def _begin(self, fault: TimedFault) -> None:
        if self._only is not None and fault not in self._only:
            return
        self._begun.append((self.net.now_ns, fault))
        end = self._start(fault)
        if end is not None and fault.for_ns:
            self.net.clock.call_at(self.net.now_ns + fault.for_ns, end, f"the end of {fault!r}")

    def _start(self, fault: TimedFault) -> Callable[[], None] | None:
        """Have it begin; how it ends."""
        if isinstance(fault, Partition):
            return self.between(_PARTITIONED, fault.a, fault.b, one_way=fault.one_way).heal
        if isinstance(fault, Clog):
            return self.between(_CLOGGED, fault.a, fault.b, one_way=False).heal
        if isinstance(fault, Degrade):
            return self._degrade(fault)
        assert isinstance(fault, (Pause, Crash, Skew))
        host = self._host(fault)
        if isinstance(fault, Pause):
            return self.pause(host).heal
        if isinstance(fault, Crash):
            self.crash(host)
            return lambda: None if host.up else self.restart(host, {})
        self.skew(host, fault.ppm, fault.jump)
        return lambda: self.skew(host, 0.0, 0)

    def _degrade(self, fault: Degrade) -> Callable[[], None]:
        params = dict(fault.params)
        return degrade(self.net, self.net._directions(fault.link, repr(fault)), fault.link, params)

    # ---- replays ---------------------------------------------------------------------------------

    def schedule(self) -> list[Fault]:
        """What happened so far: faults of frames in their order, and faults on schedule."""
        native, batch, start = self.net._native, 4096, 0
        ids = ffi.new("struct mn_fault_id[]", batch)
        found: dict[Fault, None] = {}
        while n := lib.mn_simnet_faults(native, start, ids, batch):
            start += n
            for i in range(n):
                kind = _KINDS.get(ids[i].kind)
                if kind is not None:
                    direction = self.net.links[ids[i].link].directions[ids[i].dir]
                    found[kind(direction.name, int(ids[i].frame_no))] = None
        return [*found, *(fault for _, fault in self._begun)]

    def only(self, schedule: Iterable[Fault] | None) -> None:
        """Of all faults that are drawn or on schedule, let only these happen; None: all again."""
        self.net._usable("only")
        if schedule is None:
            self._only = None
            self.net._check(lib.mn_simnet_only(self.net._native, ffi.NULL, 0), "only")
            return
        faults = list(schedule)
        for fault in faults:
            if not isinstance(fault, (FrameFault, TimedFault)):
                raise TypeError(f"only: {fault!r} is no fault: see machnet.sim.faults")
        self._only = set(faults)
        self.install()

    def install(self) -> None:
        """Tell the core again which faults of frames there are: links have come since."""
        if self._only is not None:
            ids, n = self._ids(f for f in self._only if isinstance(f, FrameFault))
            self.net._check(lib.mn_simnet_only(self.net._native, ids, n), "only")
        if self._forced:
            self._force()

    def _force(self) -> None:
        ids, n = self._ids(self._forced)
        self.net._check(lib.mn_simnet_force(self.net._native, ids, n), "apply")

    def _ids(self, faults: Iterable[FrameFault]) -> tuple[Any, int]:
        """Sorted ``struct mn_fault_id`` of faults; of links that are not there yet: none."""
        known = {d.name: d for d in self.net._all_directions()}
        rows = sorted(
            (known[fault.link].link._number, known[fault.link]._number, fault.nth, kind)
            for fault in faults
            if fault.link in known
            for kind, cls in _KINDS.items()
            if type(fault) is cls
        )
        ids = ffi.new("struct mn_fault_id[]", len(rows) + 1)
        for i, (link, way, nth, kind) in enumerate(rows):
            ids[i].link, ids[i].dir, ids[i].frame_no, ids[i].kind = link, way, nth, kind
        return ids, len(rows)


def _list(nodes: list[Node]) -> str:
    names = [node.name for node in nodes]
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"
