# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (a network, its nodes and its links are one implementation in several files)
"""What `Network` rests on: its memory, names, how time is driven, and its end."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from machnet._native import ffi, lib
from machnet.errors import ConcurrentUseError, os_error
from machnet.sim.control import Control
from machnet.sim.links import Link, LinkDirection
from machnet.sim.nodes import Host, Node, RawHost
from machnet.sim.records import report
from machnet.sim.rules import Rules
from machnet.sim.simclock import SimClock
from machnet.sim.units import Duration, duration_ns, format_duration
from machnet.stack.clock import NEVER

if TYPE_CHECKING:
    import asyncio

    from machnet.sim.loop import VirtualLoop
    from machnet.sim.network import Network

__all__ = ["EventuallyError", "NetworkBase"]

T = TypeVar("T")

_NAME = re.compile(r"[^\s<>#,]+")
_NAME_BYTES_MAX = 63
_MTU_MIN, _MTU_MAX = 68, 9000
_RECORD_MAX = 1 << 20
#: What `Stack.usage` counts that must go back to what it was.
_USAGE = {
    "tcbs": "connections",
    "half_open": "half-open connections",
    "time_wait": "connections in TIME-WAIT",
    "listeners": "listeners",
    "ooo_blocks": "blocks of out-of-order data",
    "ooo_ranges": "ranges of out-of-order data",
    "sack_ranges": "ranges of the send scoreboard",
    "lanes": "channels",
    "loop_frames": "frames to itself",
}
#: A leak is what is there so long after the last channel was closed.
_LEAK_PATIENCE: Duration = "10min"


class EventuallyError(AssertionError):
    """What was expected of a network did not become true in its virtual time."""


class NetworkBase:
    """Everything about a `Network` that is not its public face."""

    def __init__(
        self,
        seed: int = 0,
        *,
        max_time: Duration = "24h",
        record: int = 4096,
        name: str = "net",
        pool: int = 65536,
        invariants: bool = True,
    ) -> None:
        self.seed = _whole(seed, "seed", 0, 2**64 - 1)
        self.name = name
        self.closed = False
        self.hosts: list[Host] = []
        self.links: list[Link] = []
        self._by_address: dict[int, Host] = {}
        self._links_between: dict[frozenset[int], int] = {}
        self._max_time_ns = duration_ns(max_time, "max_time")
        self._native = self._open(record, pool)
        self.clock = SimClock(self._me, self._native)
        self._nodes: list[Node] = []
        self._control = Control(self._me)
        self._rules = Rules(self._me)
        self._events: list[tuple[int, str]] = []
        self._loop: VirtualLoop | None = None
        self._tasks: dict[str, dict[asyncio.Task[Any], None]] = {}
        self._random: random.Random | None = None
        self._chaos: random.Random | None = None
        self._capturing = False
        self._idle = ffi.new("struct mn_simnet_idle *")
        self.invariants = invariants

    @property
    def _me(self) -> Network:
        return cast("Network", self)

    def _open(self, record: int, pool: int) -> Any:
        config, out = ffi.new("struct mn_simnet_config *"), ffi.new("struct mn_simnet **")
        config.seed = self.seed
        config.end_ns = self._max_time_ns
        config.record_pkts = _whole(record, "record", 0, _RECORD_MAX)
        config.pool_pkts = _whole(pool, "pool", 16, 1 << 20)
        rc = lib.mn_simnet_new(out, config)
        if rc == -errno.ENOMEM:
            raise MemoryError("no memory for the network's packets")
        if rc < 0:
            raise os_error(-rc, "Network")
        net = ffi.gc(out[0], lib.mn_simnet_free)
        self._check_invariants(net, on=True)
        return net

    @staticmethod
    def _check_invariants(net: Any, *, on: bool) -> None:
        if lib.mn_simnet_checks(net, on) < 0:
            raise MemoryError("no memory for the checks")

    @property
    def invariants(self) -> bool:
        """Whether the invariants are checked while the network runs: they are, unless set to False.

        A violation is a fault of the stack: it raises `machnet.InvariantError`, with the connection, the
        rule and the time, from the call that let it happen, once, and ends the checks. What
        applications give and take is compared only where the checks are on from the start.
        """
        return bool(lib.mn_simnet_check(self._native) != ffi.NULL)

    @invariants.setter
    def invariants(self, on: bool) -> None:
        self._check_invariants(self._native, on=on)

    def _usable(self, what: str) -> None:
        """Refuse a network that is closed, or another thread."""
        if self.closed:
            raise ValueError(f"{what}: {self} is closed")
        self.clock._thread(what)

    def _check(self, rc: int, what: str) -> None:
        if rc >= 0:
            return
        self.clock.explain(rc, what)
        if rc == -errno.ENOMEM:
            raise MemoryError(f"{what}: no memory")
        if rc == -errno.EBUSY:
            raise ConcurrentUseError(f"{what}: the network is being stepped")
        raise os_error(-rc, what)

    def _raise_failure(self, what: str) -> NoReturn:
        """Raise what a rule raised."""
        failure, self._rules.failure = self._rules.failure, None
        if failure is None:
            raise RuntimeError(f"{what}: {self.clock._text()}")
        raise failure

    def _note(self, text: str) -> None:
        self._events.append((self.now_ns, text))

    @property
    def now_ns(self) -> int:
        """The virtual time, which starts at 0."""
        return self.clock.now_ns

    def _stream(self, name: str) -> random.Random:
        word = f"{self.seed} stream {name}".encode()
        return random.Random(int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "big"))

    # ---- names -----------------------------------------------------------------------------------

    def _name(self, name: str | None, prefix: str, count: int) -> str:
        taken = {node.name for node in self._nodes}
        if name is None:
            while f"{prefix}{count + 1}" in taken:
                count += 1
            return f"{prefix}{count + 1}"
        given: object = name
        if (
            not isinstance(given, str)
            or not _NAME.fullmatch(given)
            or len(given.encode()) > _NAME_BYTES_MAX
        ):
            raise ValueError(
                f"name: {name!r}: a node's name has 1 to {_NAME_BYTES_MAX} bytes, no blanks, and "
                "none of < > # ,"
            )
        if name in taken:
            raise ValueError(f"name: there is a node {name!r} already")
        return name

    def _add(self, kind: str, name: str, mtu: int, mac: bytes | None) -> int:
        """A node more; its number."""
        text = ffi.new("char[]", name.encode())
        if kind == "switch":
            number = lib.mn_simnet_switch(self._native, text)
        else:
            _whole(mtu, "mtu", _MTU_MIN, _MTU_MAX)
            address = ffi.NULL if mac is None else ffi.new("uint8_t[6]", mac)
            add = lib.mn_simnet_host if kind == "host" else lib.mn_simnet_raw
            number = add(self._native, text, mtu, address)
        if number == -errno.EEXIST:
            raise ValueError(f"mac: another node of {self} has that address")
        if number == -errno.EINVAL and mac is not None:
            raise ValueError(f"mac: {mac.hex(':')} is no address of one node")
        self._check(number, f"{kind} {name}")
        return int(number)

    def _node(self, node: object, what: str) -> Node:
        if isinstance(node, Node):
            if node.net is not self:
                raise ValueError(f"{what}: {node} belongs to another network")
            return node
        for known in self._nodes:
            if known.name == node:
                return known
        names = ", ".join(known.name for known in self._nodes) or "none"
        raise ValueError(f"{what}: there is no node {node!r} (there are: {names})")

    @staticmethod
    def _several(nodes: Any) -> list[Any]:
        return [nodes] if isinstance(nodes, (Node, str)) else list(nodes)

    def _group(self, nodes: Any, what: str) -> list[Node]:
        found: list[Node] = []
        for node in self._several(nodes):
            known = self._node(node, what)
            if known not in found:
                found.append(known)
        if not found:
            raise ValueError(f"{what}: a group of nodes is empty")
        return found

    def _all_directions(self) -> Iterator[LinkDirection]:
        for link in self.links:
            yield from link.directions

    def _direction(self, name: str) -> LinkDirection:
        for direction in self._all_directions():
            if direction.name == name:
                return direction
        names = ", ".join(d.name for d in self._all_directions()) or "none"
        raise ValueError(f"there is no direction {name!r} (there are: {names})")

    def _directions(self, where: Link | LinkDirection | str, what: str) -> list[LinkDirection]:
        """Of a link both directions, or the one that is named."""
        if isinstance(where, str):
            for link in self.links:
                if link.name == where:
                    return list(link.directions)
            return [self._direction(where)]
        if isinstance(where, (Link, LinkDirection)):
            link = where if isinstance(where, Link) else where.link
            if link.net is not self:
                raise ValueError(f"{what}: {where} belongs to another network")
            return list(link.directions) if isinstance(where, Link) else [where]
        raise TypeError(f"{what}: {where!r} is neither a link nor a direction of one")

    # ---- driving time ----------------------------------------------------------------------------

    def _drive(self, predicate: Callable[[], object] | None, until: int | None, what: str) -> bool:
        """Let time pass until the predicate is true, or until a time; whether it became true."""
        clock = self.clock
        clock.check_free(what)
        if self._loop is not None and not self._loop.is_closed():
            return self._loop.run_until(predicate, until)
        clock.settle()
        while not self._holds(predicate):
            if until is not None and clock.now_ns >= until and clock.step(until):
                return self._holds(predicate)
            goal = until if until is not None else NEVER
            event = clock.deadline()
            if event is None and until is None:
                return False
            if predicate is not None and event is not None:
                goal = min(goal, event)
            clock.step(goal)
        return True

    def _holds(self, predicate: Callable[[], object] | None) -> bool:
        if predicate is None:
            return False
        before = self.clock.under_way
        self.clock.under_way = f"the predicate {getattr(predicate, '__qualname__', predicate)}"
        try:
            return bool(predicate())
        finally:
            self.clock.under_way = before

    def _until(
        self, predicate: Callable[[], T], until: int | None, what: str
    ) -> tuple[bool, T | None]:
        """As `_drive`, with the predicate's last value."""
        value: T | None = None

        def ask() -> bool:
            nonlocal value
            value = predicate()
            return bool(value)

        ask.__qualname__ = getattr(predicate, "__qualname__", repr(predicate))
        return self._drive(ask, until, what), value

    def _wait_channel(self, native: Any, left_ns: int, what: str) -> int:
        """What ``mn_chan_wait`` answers, with callbacks and coroutines running meanwhile."""
        clock = self.clock
        if self._loop is not None and not self._loop.is_closed():
            return self._wait_in_loop(native, left_ns, what)
        if clock.run_calls():
            return -errno.EINTR
        call = clock.next_call()
        left = left_ns if call is None else min(left_ns, max(call - clock.now_ns, 0))
        rc = int(lib.mn_chan_wait(native, left))
        if rc < 0 and rc != -errno.EINTR:
            clock.explain(rc, what)
        clock.dispatch()
        if rc == 0 and left < left_ns:
            clock.run_calls()
            return -errno.EINTR
        return rc

    def _wait_in_loop(self, native: Any, left_ns: int, what: str) -> int:
        loop, clock = self._loop, self.clock
        assert loop is not None
        rc = 0

        def published() -> bool:
            nonlocal rc
            rc = int(lib.mn_chan_wait(native, 0))
            return rc not in {0, -errno.EINTR}

        end = None if left_ns >= NEVER - clock.now_ns else clock.now_ns + left_ns
        met = loop.run_until(published, end)
        if not met and end is None:
            clock.deadlock(what)
        if rc < 0 and rc != -errno.EINTR:
            clock.explain(rc, what)
        return rc

    def _is_idle(self) -> bool:
        if not lib.mn_simnet_is_idle(self._native, self._idle):
            return False
        if self.clock.next_call() is not None:
            return False
        return self._loop is None or self._loop.is_closed() or self._loop.next_ns() is None

    def _busy_with(self) -> str:
        lib.mn_simnet_is_idle(self._native, self._idle)
        idle, parts = self._idle, []
        if idle.frames:
            parts.append(f"{idle.frames} frames are under way")
        if idle.timers:
            parts.append(
                f"{idle.timers} timers are armed (the first one on {self._nodes[idle.node].name})"
            )
        if calls := len(self.clock.pending_calls()):
            parts.append(f"{calls} callbacks are on schedule")
        if self._loop is not None and self._loop.next_ns() is not None:
            parts.append("coroutines have something to do")
        return ", ".join(parts) or "nothing any more"

    # ---- files, tasks, the end -------------------------------------------------------------------

    @staticmethod
    def _open_file(path: str | os.PathLike[str]) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def _waiting(self) -> list[str]:
        """Where each coroutine waits for what."""
        return [] if self._loop is None or self._loop.is_closed() else self._loop.waiting()

    def _cancel_tasks(self, host: Host) -> None:
        for task in list(self._tasks.pop(host.name, {})):
            task.cancel()

    def leaks(self) -> list[str]:
        """What is not back to what it was when the hosts started, once their channels are closed.

        Time goes on past TIME-WAIT, and as long as a host lingers, but not longer than it must: at
        most ten minutes. Hosts that are down or paused are not looked at.

        Returns:
            One line for each; none: nothing has leaked.
        """
        self._usable("leaks")
        busy: list[Host] = []

        def at_rest() -> bool:
            # Asked after each event: what is known to be busy is looked at first, and all only then.
            while busy and not self._left_on(busy[-1]):
                busy.pop()
            if busy or self._left_in_pool():
                return False
            busy.extend(host for host in self.hosts if self._left_on(host))
            return not busy

        self._drive(at_rest, self.now_ns + duration_ns(_LEAK_PATIENCE), "leaks")
        self._check(lib.mn_simnet_check_all(self._native), "leaks")
        return self._left()

    @staticmethod
    def _left_on(host: Host) -> list[str]:
        if not host.up or host.is_paused:
            return []
        usage, baseline = host.stack.usage(), host._baseline
        return [
            f"{host.name}: {usage[key] - baseline[key]} {text} ({key})"
            for key, text in _USAGE.items()
            if usage[key] > baseline[key]
        ]

    def _left(self) -> list[str]:
        found = [line for host in self.hosts for line in self._left_on(host)]
        live = 0 if found else self._left_in_pool()
        return [f"{live} packets of the network's pool"] if live else found

    def _left_in_pool(self) -> int:
        if any(isinstance(node, RawHost) for node in self._nodes):
            return 0
        stats = ffi.new("struct mn_simnet_stats *")
        lib.mn_simnet_get_stats(self._native, stats)
        return int(stats.pool_live)

    def close(self) -> None:
        """End all hosts, without a word to each other, the event loop, and a capture. Again: nothing.

        Raises:
            OSError: A capture could not be written in full.
        """
        if self.closed:
            return
        self.clock._thread("close")
        self.clock.check_free("close")
        if self._loop is not None:
            self._loop.shutdown(0)
        for host in self.hosts:
            host._shut()
        self.closed = True
        if self._capturing:
            self._capturing = False
            rc = lib.mn_simnet_capture_end(self._native)
            if rc < 0:
                raise os_error(-rc, "the capture is incomplete")

    def __repr__(self) -> str:
        state = "closed" if self.closed else format_duration(self.now_ns)
        return f"<Network {self.name} seed={self.seed} {len(self._nodes)} nodes, {state}>"

    def report(self, limit: int = 40) -> str:
        """Time, faults in force, sockets and timers, in at most ``limit`` lines."""
        return report(self._me, limit=limit)


def _whole(value: object, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what}: {value!r} is no integer from {low} to {high}")
    return value
