# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (a network, its nodes and its links are one implementation in several files)
"""A network in virtual time: real engines on simulated links, and one queue of events.

    with Network(seed=7) as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        net.link(a, b, latency="50us", bandwidth="10Gbps", loss=0.01)
        ...                      # channels and sockets of a.stack and b.stack, as on a real NIC

Time stands still but for blocking calls and `Network.advance`, `Network.run` and their like, and jumps
from event to event. The same seed and the same calls give the same frames, on every machine.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from machnet._native import lib
from machnet.errors import SimulationLimitError, os_error
from machnet.sim.chaos import KINDS, Surroundings, draw
from machnet.sim.control import ActiveFault
from machnet.sim.faults import Fault, TimedFault
from machnet.sim.links import DEFAULTS, Link, LinkDirection, native_shape, shape_fields
from machnet.sim.netbase import EventuallyError, NetworkBase
from machnet.sim.nodes import Host, Node, RawHost, Switch, check_host
from machnet.sim.records import PacketRecord, read_packets, timer_texts
from machnet.sim.rules import Rule, RuleFunction
from machnet.sim.simclock import Call
from machnet.sim.units import Duration, QueueLike, duration_ns, format_duration
from machnet.stack.names import parse_interface, parse_ip, parse_mac

if TYPE_CHECKING:
    import asyncio

    from machnet.sim.links import GilbertElliott
    from machnet.sim.loop import VirtualLoop
    from machnet.stack.info import SocketInfo

__all__ = ["EventuallyError", "Network"]

T = TypeVar("T")


class Network(NetworkBase):
    """Hosts, switches and links in virtual time. A context manager; belongs to the thread that made it.

    Args:
        seed: 0 to 2**64 - 1. All that is random comes from it: faults of links, initial sequence
            numbers, ports, hash keys, `random`; each from a stream of its own.
        max_time: Virtual time that can't be passed.
        record: The last so many frames are kept, for `packets` and `write_pcapng`; 0: none.
        name: For messages.
        pool: Frames that may be in flight at once, all links and queues together.
        invariants: Whether what must hold is checked all the time: see `invariants`.

    Raises:
        ValueError: An argument is out of its range.
        MemoryError: There is no memory for the pool.
    """

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- nodes and links -------------------------------------------------------------------------

    def host(
        self,
        ip: str,
        name: str | None = None,
        gateway: str | None = None,
        mtu: int = 1500,
        **settings: Any,
    ) -> Host:
        """A host with an engine of its own.

        Args:
            ip: Its address, as "10.0.0.1" or "10.0.0.1/24" (without a length: 24).
            name: Unique, without blanks and < > # ,. None: "h1", "h2", ... in the order they are made.
            gateway: Address of its router.
            mtu: Largest IP packet, 68 to 9000 bytes.
            settings: Fields of `machnet.config.Settings`, as for `machnet.Stack`.

        Raises:
            ValueError, TypeError: An argument is wrong, or another host has that name or address.
        """
        self._usable("host")
        address = parse_interface(ip)[0]
        other = self._by_address.get(address)
        if other is not None:
            raise ValueError(f"ip: {ip!r} is the address of {other.name} already")
        check_host(ip, gateway, mtu, settings, "Network.host")
        chosen = self._name(name, "h", len(self.hosts))
        number = self._add("host", chosen, mtu, None)
        host = Host(self, number, chosen, ip, gateway, settings)
        self._nodes.append(host)  # the core has it already, whether its engine starts or not
        host._boot()
        self.hosts.append(host)
        self._by_address[address] = host
        return host

    def switch(self, name: str | None = None) -> Switch:
        """A switch: learns addresses, floods, and forwards along a spanning tree of its links.

        Args:
            name: Unique; None: "sw1", "sw2", ...
        """
        self._usable("switch")
        count = sum(isinstance(node, Switch) for node in self._nodes)
        chosen = self._name(name, "sw", count)
        switch = Switch(self, self._add("switch", chosen, 0, None), chosen)
        self._nodes.append(switch)
        return switch

    def raw_host(
        self, ip: str, name: str | None = None, mac: str | None = None, mtu: int = 1500
    ) -> RawHost:
        """A scripted host: it sends what it is told to and keeps what it receives.

        Args:
            ip: The address that the script stands for.
            name: Unique; None: "raw1", "raw2", ...
            mac: Its MAC address; None: one of its own.
            mtu: Largest IP packet, 68 to 9000 bytes.
        """
        self._usable("raw_host")
        parse_ip(ip, "ip")
        count = sum(isinstance(node, RawHost) for node in self._nodes)
        chosen = self._name(name, "raw", count)
        number = self._add("raw", chosen, mtu, None if mac is None else parse_mac(mac))
        raw = RawHost(self, number, chosen, ip, mtu)
        self._nodes.append(raw)
        return raw

    def link(
        self,
        a: Node | str,
        b: Node | str,
        *,
        latency: Duration = "50us",
        jitter: Duration = 0,
        distribution: str | None = None,
        bandwidth: int | str | None = "10Gbps",
        loss: float | str = 0.0,
        burst_loss: GilbertElliott | None = None,
        reorder: float | str = 0.0,
        reorder_delay: Duration = "1ms",
        duplicate: float | str = 0.0,
        duplicate_delay: Duration = 0,
        corrupt: float | str = 0.0,
        queue: QueueLike = None,
        mtu: int | None = None,
        keep_order: bool = True,
        back: Mapping[str, Any] | None = None,
    ) -> Link:
        """Connect two nodes; the same in both directions but for ``back``.

        Args:
            a: A node, or its name.
            b: Another one.
            latency: From the last bit sent to its arrival.
            jitter: How much that varies: see ``distribution``.
            distribution: "uniform" (latency +- jitter; the default when there is jitter), "normal"
                (mean latency, standard deviation jitter), "exponential" (latency plus a share of
                mean jitter), "fixed".
            bandwidth: Of Ethernet frames; None: no limit.
            loss: Chance of each frame to be lost.
            burst_loss: Losses in bursts, beside ``loss``.
            reorder: Chance of each frame to be held back by ``reorder_delay``.
            reorder_delay: For how long.
            duplicate: Chance of each frame to arrive twice.
            duplicate_delay: How long after the first the copy arrives.
            corrupt: Chance of each frame that one of its bits, behind the Ethernet header, is
                inverted.
            queue: Bound of the queue in front of the bandwidth: "256p" packets, "64KiB" bytes, or
                both. What finds it full is lost. None: 65,536 packets.
            mtu: Longest IP packet that passes, in bytes; a longer one is lost. None: any.
            keep_order: With jitter, no frame overtakes another.
            back: Parameters of the direction from ``b`` to ``a`` that are different.

        Raises:
            ValueError, TypeError: An argument is wrong; the text names it and what is accepted.
        """
        self._usable("link")
        first, second = self._node(a, "link"), self._node(b, "link")
        if first is second:
            raise ValueError(f"link: {first.name} can't be linked to itself")
        given = {key: value for key, value in locals().items() if key in DEFAULTS}
        given["distribution"] = distribution
        there = shape_fields(given)
        other = given if back is None else {**given, **back}
        if back is not None and "jitter" in back and "distribution" not in back:
            other["distribution"] = distribution
        shapes = [there, dict(there) if back is None else shape_fields(other, "link: back")]
        number = lib.mn_simnet_link(
            self._native, first.number, second.number, *map(native_shape, shapes)
        )
        self._check(number, f"link {first.name} {second.name}")
        pair = frozenset((first.number, second.number))
        nth = self._links_between[pair] = 1 + self._links_between.get(pair, 0)
        link = Link(self, int(number), (first, second), nth, shapes)
        self.links.append(link)
        self._rules.install([link])
        self._control.install()
        return link

    def node(self, name: str) -> Node:
        """The node of a name.

        Raises:
            ValueError: There is none.
        """
        return self._node(name, "node")

    # ---- faults ----------------------------------------------------------------------------------

    def partition(
        self, a: Iterable[Node | str], b: Iterable[Node | str], *, one_way: bool = False
    ) -> ActiveFault:
        """Let nothing pass between two groups of nodes until it is healed.

        Frames on the last link of their way still arrive.

        Args:
            a: Nodes or names.
            b: Others.
            one_way: Only what goes from ``a`` to ``b`` is lost.

        Returns:
            The fault: ``heal()`` or the end of a ``with`` ends it.
        """
        self._usable("partition")
        return self._control.between(1, a, b, one_way=one_way)

    def clog(
        self,
        a: Node | str | Iterable[Node | str],
        b: Node | str | Iterable[Node | str],
        *,
        one_way: bool = False,
    ) -> ActiveFault:
        """Let what is sent on the links between nodes wait in their queues until it is healed."""
        self._usable("clog")
        return self._control.between(2, self._several(a), self._several(b), one_way=one_way)

    def heal(self) -> None:
        """End all partitions and clogs."""
        self._usable("heal")
        self._control.heal()

    def pause(self, host: Host | str) -> ActiveFault:
        """Let a host stand still; see `Host.pause`."""
        self._usable("pause")
        node = self._node(host, "pause")
        if not isinstance(node, Host):
            raise ValueError(f"pause: {node.name} is no host")
        return self._control.pause(node)

    def rule(self, function: RuleFunction, link: Link | LinkDirection | None = None) -> Rule:
        """Have a function see every packet that enters a link, and say what becomes of it.

        It is called with a `machnet.testing.Packet` and a `machnet.sim.Hop`, and answers `PASS` (or
        None), `DROP`, `DUPLICATE`, ``delay("1ms")`` or ``replace(frame)``. Rules are asked in the
        order they were made; the first `DROP` decides. What it raises, the call raises that made
        time go on; the packet is lost.

        Args:
            function: It may not let time pass.
            link: Where; None: everywhere.

        Returns:
            The rule: ``remove()`` or the end of a ``with`` takes it out.
        """
        self._usable("rule")
        return self._rules.add(function, link)

    def apply(self, schedule: Iterable[Fault]) -> None:
        """Make the faults of a schedule happen; what it lists of the past begins now.

        Raises:
            ValueError, TypeError: A fault names what there is not, or is none.
        """
        self._usable("apply")
        self._control.apply(schedule)

    def only(self, schedule: Iterable[Fault] | None) -> None:
        """Let only these happen of the faults that links draw, and of those on schedule.

        Random numbers are drawn all the same. Faults by call (`partition`, `Host.crash`, ...) are
        not affected.

        Args:
            schedule: None: all of them again.
        """
        self._control.only(schedule)

    @property
    def schedule(self) -> list[Fault]:
        """The faults of frames that happened so far, in their order, and those on schedule.

        `apply` on links without random faults makes the same happen again.
        """
        return self._control.schedule()

    def chaos(
        self,
        duration: Duration,
        kinds: Iterable[str] = KINDS,
        mean_interval: Duration = "100ms",
    ) -> list[TimedFault]:
        """Draw a schedule of faults from the seed, and apply it.

        Args:
            duration: All of them are over after that time.
            kinds: Of "partition", "one_way", "clog", "pause", "crash", "degrade" and "skew".
            mean_interval: Mean time between two of them.

        Returns:
            The schedule.
        """
        self._usable("chaos")
        wanted = [kinds] if isinstance(kinds, str) else list(kinds)
        for kind in wanted:
            if kind not in KINDS:
                raise ValueError(f"kinds: {kind!r} is none of {', '.join(map(repr, KINDS))}")
        lasts = duration_ns(duration, "duration")
        mean = duration_ns(mean_interval, "mean_interval")
        if mean < 1000:
            raise ValueError(f"mean_interval: {mean_interval!r} is less than 1 us")
        there = Surroundings(
            [host.name for host in self.hosts],
            [(link.a.name, link.b.name, link.name) for link in self.links],
        )
        found = draw(self._stream("chaos"), there, self.now_ns, lasts, wanted, mean)
        self.apply(found)
        return found

    # ---- time ------------------------------------------------------------------------------------

    def at(self, when: Duration, callback: Callable[[], object], name: str | None = None) -> Call:
        """Have a function called at a virtual time, after everything else of that moment.

        It may not let time pass. What it raises, the call raises that made time go on.

        Args:
            when: Since the network's start; what is past: with the next step.
            callback: Without arguments.
            name: For messages; None: the function's own.

        Returns:
            A handle, with ``cancel()``.
        """
        self._usable("at")
        label = name or str(getattr(callback, "__qualname__", repr(callback)))
        return self.clock.call_at(duration_ns(when, "when"), callback, label)

    def advance(self, duration: Duration) -> None:
        """Let virtual time pass.

        Raises:
            ReentrantError: Inside a coroutine of `loop`, a rule or a callback; or another thread.
            SimulationLimitError: That would pass ``max_time``, or work at one moment has no end.
        """
        self._usable("advance")
        until = self.now_ns + duration_ns(duration, "duration")
        self._drive(None, until, "advance")

    def run(self, until: Duration | Callable[[], T] | Awaitable[T] | None = None) -> T | None:
        """Let virtual time pass until something is so.

        Args:
            until: A time since the network's start; a predicate, asked after each event; an
                awaitable, which is run on `loop`; None: as `run_until_idle`.

        Returns:
            The predicate's true value, or the awaitable's result.

        Raises:
            DeadlockError: It can never become so.
            ReentrantError, SimulationLimitError: As `advance`.
            ValueError: The time is past.
        """
        self._usable("run")
        if until is None:
            self.run_until_idle()
            return None
        if inspect.isawaitable(until):
            if self.clock.under_way and inspect.iscoroutine(until):
                until.close()
            self.clock.check_free("run")
            result: T = self.loop.run(until)
            return result
        if callable(until):
            found, value = self._until(until, None, "run")
            if not found:
                self.clock.deadlock("run: the predicate can't become true")
            return value
        when = duration_ns(until, "until")
        if when < self.now_ns:
            raise ValueError(
                f"until: {until!r} is past: it is {format_duration(self.now_ns)} already"
            )
        self._drive(None, when, "run")
        return None

    def run_until_idle(self, limit: Duration = "1h") -> None:
        """Let virtual time pass until nothing is under way.

        Idle: no frame on a link or in a queue, no callback on schedule, no timer of asyncio, no timer
        of an engine but housekeeping (keep-alive, TIME-WAIT, ageing of neighbours, limits on waiting).

        Args:
            limit: How long at most.

        Raises:
            SimulationLimitError: It is not idle by then; the text says what is under way.
        """
        self._usable("run_until_idle")
        most = duration_ns(limit, "limit")
        end = self.now_ns + most
        if not self._drive(self._is_idle, end, "run_until_idle") and not self._is_idle():
            raise SimulationLimitError(
                f"run_until_idle: still busy after {format_duration(most)}: {self._busy_with()}\n"
                f"{self.report()}"
            )

    def eventually(
        self, predicate: Callable[[], T], within: Duration = "5s", message: str = ""
    ) -> T:
        """Let virtual time pass until a predicate is true, and give its value.

        Args:
            predicate: Asked now and after each event; it may not let time pass.
            within: How long at most.
            message: For the error.

        Raises:
            EventuallyError: It is not true by then; the text has the time, sockets and timers.
        """
        __tracebackhide__ = True
        self._usable("eventually")
        limit = duration_ns(within, "within")
        found, value = self._until(predicate, self.now_ns + limit, "eventually")
        if not found:
            what = message or f"{getattr(predicate, '__qualname__', predicate)} is not true"
            raise EventuallyError(
                f"{what}: not within {format_duration(limit)}; its value is {value!r}\n"
                f"{self.report()}"
            )
        return value  # type: ignore[return-value]

    @property
    def random(self) -> random.Random:
        """Random numbers for the test itself, from the seed; nothing else draws from them."""
        if self._random is None:
            self._random = self._stream("user")
        return self._random

    # ---- asyncio ---------------------------------------------------------------------------------

    @property
    def loop(self) -> VirtualLoop:
        """The virtual event loop, whose time is the network's; made on first use."""
        self._usable("loop")
        if self._loop is None:
            from machnet.sim.loop import VirtualLoop

            self._loop = VirtualLoop(self.clock)
        return self._loop

    def create_task(
        self,
        coro: Coroutine[Any, Any, T],
        host: Host | None = None,
        name: str | None = None,
    ) -> asyncio.Task[T]:
        """A task on `loop`; it runs whenever virtual time passes.

        Args:
            coro: What it runs.
            host: It is cancelled when this host crashes.
            name: Of the task.
        """
        self._usable("create_task")
        task: asyncio.Task[T] = self.loop.create_task(coro, name=name)
        if host is not None:
            tasks = self._tasks.setdefault(host.name, {})
            tasks[task] = None
            task.add_done_callback(lambda done: tasks.pop(done, None))
        return task

    # ---- what happened ---------------------------------------------------------------------------

    def packets(self, last: int | None = None) -> list[PacketRecord]:
        """The last frames, as each left a node and as it reached one, oldest first.

        Args:
            last: At most so many; None: all that are kept (``record``).
        """
        return read_packets(self, last)

    @property
    def events(self) -> list[tuple[int, str]]:
        """What was done to the network, each with its time in ns: faults, crashes, changes."""
        return list(self._events)

    def sockets(self) -> list[tuple[Host, SocketInfo]]:
        """Connections and listeners of all hosts, each with its host."""
        return [(host, info) for host in self.hosts for info in host.sockets()]

    def timers(self) -> list[str]:
        """Armed timers of all hosts, host by host, and callbacks on schedule."""
        found = [text for host in self.hosts for text in timer_texts(host)]
        now = self.now_ns
        return found + [
            f"callback {call.name} in {format_duration(max(call.t_ns - now, 0))}"
            for call in self.clock.pending_calls()
        ]

    def write_pcapng(self, path: str | os.PathLike[str]) -> None:
        """Write the frames that are kept to a pcapng file: one interface per node, fates as comments.

        Raises:
            OSError: The file can't be written.
        """
        rc = lib.mn_simnet_dump(self._native, self._open_file(path))
        if rc < 0:
            raise os_error(-rc, f"writing {os.fspath(path)}")

    def capture(self, path: str | os.PathLike[str]) -> None:
        """Write all frames from now on to a pcapng file, which is complete when the network is closed.

        Raises:
            RuntimeError: There is a capture already.
            OSError: The file can't be written.
        """
        self._usable("capture")
        if self._capturing:
            raise RuntimeError("capture: there is one already: stop_capture() ends it")
        fd = self._open_file(path)
        rc = lib.mn_simnet_capture(self._native, fd)
        if rc < 0:
            os.close(fd)
            raise os_error(-rc, f"capture to {os.fspath(path)}")
        self._capturing = True

    def stop_capture(self) -> None:
        """End the capture, if there is one.

        Raises:
            OSError: Not all of it could be written.
        """
        if self._capturing:
            self._capturing = False
            rc = lib.mn_simnet_capture_end(self._native)
            if rc < 0:
                raise os_error(-rc, "the capture is incomplete")
