# SPDX-License-Identifier: MIT
"""The original C++ Machnet as a host of a simulated network."""

from __future__ import annotations

from collections.abc import Callable

from cpp_peer import TICK_NS, CppMachnet

from machnet.sim import DROP, Hop, Network
from machnet.sim.nodes import Node
from machnet.sim.simclock import Call
from machnet.testing import Packet


class CppHost(CppMachnet):
    """A `CppMachnet` behind an ideal link to ``near``, usually a switch.

    It takes frames as they enter that link and answers at the same moment, whoever lets the time
    pass, so that blocking calls of the other hosts work.

    Args:
        net: The network.
        near: What its link ends at.
        ip: Its address.
        phase: When its slow timer ticks within each second, ns.
        settings: Of `CppMachnet`.

    Attributes:
        log: What it received and sent: time, ">" or "<", frame.
    """

    def __init__(
        self, net: Network, near: Node, ip: str, *, phase: int = 500_000_000, **settings: object
    ) -> None:
        self.raw = net.raw_host(ip)
        super().__init__(ip, self.raw.mac, **settings)  # type: ignore[arg-type]
        self.net = net
        self.log: list[tuple[int, str, bytes]] = []
        self._inbox: list[bytes] = []
        #: Its application: called after each batch of frames, and after each tick.
        self.app: Callable[[], object] | None = None
        self.link = net.link(self.raw, near, latency=0, bandwidth=None, queue=None)
        self._rule = net.rule(self._enter, self.link)
        self._next_ns = net.now_ns - net.now_ns % TICK_NS + phase
        self._call: Call | None = None
        self._schedule()

    def _enter(self, packet: Packet, hop: Hop) -> object:
        if hop.receiver is not self.raw:
            return None
        if not self._inbox:
            self.net.at(self.net.now_ns, self._work, f"{self.ip} receives")
        self._inbox.append(bytes(packet))
        return DROP

    def _work(self) -> None:
        inbox, self._inbox = self._inbox, []
        for raw in inbox:
            self.log.append((self.net.now_ns, "<", raw))
            self.receive(raw)
        self._done()

    def flush(self) -> None:
        """Put on the wire what is to be sent. After a call of an application."""
        for raw in self.take():
            self.log.append((self.net.now_ns, ">", raw))
            self.raw.send(raw)

    def _schedule(self) -> None:
        while self._next_ns <= self.net.now_ns:
            self._next_ns += TICK_NS
        self._call = self.net.at(self._next_ns, self._tick, f"{self.ip} ticks")

    def _tick(self) -> None:
        self.tick()
        self._done()
        self._schedule()

    def _done(self) -> None:
        if self.app is not None:
            self.app()
        self.flush()

    def stop(self) -> None:
        """It stands still from now on, and receives no more."""
        if self._call is not None:
            self._call.cancel()
