# SPDX-License-Identifier: MIT
"""One stack on a wire that is fed by hand, in virtual time; see `tcp_peer` for who talks to it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripted import Offer
from tcp_segment import MOD, Segment, is_tcp, parse

from machnet import Stack
from machnet.sim import Wire

if TYPE_CHECKING:
    from tcp_peer import Peer

US, MS, SEC = 1_000, 1_000_000, 1_000_000_000

STACK_IP, STACK_PORT = "10.0.0.2", 80
PEER_IP, PEER_PORT = "10.0.0.1", 40000
PEER_MAC = bytes.fromhex("020000000001")
STACK_MAC = bytes.fromhex("024d4e000001")

#: How much later than in theory a timer may fire: the wheel's tick, twice.
LATE_NS = 2_100

PURE_ACK = {"flags": "A", "len": 0}


@dataclass(frozen=True)
class Isns:
    """Initial sequence numbers of both sides."""

    name: str
    stack: int
    peer: int


ORDINARY = Isns("ordinary", 0x1000_0000, 0x2000_0000)
WRAP_32 = Isns("wrap32", MOD - 1500, MOD - 3)
WRAP_31 = Isns("wrap31", MOD // 2 - 1500, MOD // 2 - 3)


PLAIN = Offer()
SACK = Offer(sack=True)
TS = Offer(ts=True)
FULL = Offer(wscale=7, sack=True, ts=True)


def relative(number: int, base: int) -> int:
    """A wire number as a distance from ``base``, negative when it is before it."""
    distance = (number - base) % MOD
    return distance if distance < MOD - MOD // 4 else distance - MOD


def would_block(call: Callable[[], Any]) -> bool:
    """Whether a socket call says that it would have to wait."""
    try:
        call()
    except BlockingIOError:
        return True
    return False


class Lab:
    """One stack on a wire that is fed by hand.

    Args:
        isns: Initial sequence numbers; with ``isn=None`` the stack makes its own.
        mtu: Of the wire, bytes.
        queue_frames: Bound of the wire's queues.
        resolve: The stack must ask for the peer's MAC address (`answer_arp`).
        config: Settings of the stack by the names of ``struct mn_config``.
    """

    def __init__(
        self,
        isns: Isns = ORDINARY,
        *,
        mtu: int = 1500,
        queue_frames: int = 8192,
        resolve: bool = False,
        **config: Any,
    ) -> None:
        self.isns = isns
        self.random_isn = "isn" in config and config["isn"] is None
        config = {"ip": f"{STACK_IP}/24", "seed": 7, "isn": isns.stack, **config}
        self.wire = Wire(mtu=mtu, queue_frames=queue_frames)
        self.stack = Stack(self.wire, **config)
        if not resolve:
            self.stack.neighbor(PEER_IP, PEER_MAC.hex(":"))
        self.frames: list[tuple[int, bytes]] = []
        self.log: list[tuple[int, str, bytes]] = []

    def close(self) -> None:
        self.stack.close()
        self.wire.close()

    @property
    def now(self) -> int:
        return self.stack.now_ns

    def stat(self, name: str) -> int:
        return self.stack.stats()[name]

    def inject(self, frame: bytes) -> None:
        """A frame that arrives now."""
        self.log.append((self.now, ">", frame))
        self.stack.inject(frame)
        self.collect()

    def inject_together(self, *frames: bytes) -> None:
        """Frames that lie in the NIC's queue when the stack looks at it: one pass sees them all."""
        for frame in frames:
            self.log.append((self.now, ">", frame))
            self.wire.inject(frame)
        self.collect()

    def counts(self, **rises: int) -> Counting:
        """A block in which counters must rise by exactly these numbers."""
        return Counting(self, rises)

    def collect(self) -> None:
        """Let the stack work at the present time, and fetch what it has sent."""
        self.stack.advance(0)
        sent = self.stack.drain()
        self.frames += sent
        self.log += [(t_ns, "<", frame) for t_ns, frame in sent]

    def advance(self, ns: int) -> None:
        self.stack.advance(ns)
        self.collect()

    def advance_to(self, t_ns: int) -> None:
        assert t_ns >= self.now, f"{t_ns} is before {self.now}"
        self.advance(t_ns - self.now)

    def socket(self) -> Any:
        return self.stack.socket()

    def listen(self, port: int = STACK_PORT, backlog: int = 16, ip: str = STACK_IP) -> Any:
        sock = self.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ip, port))
        sock.listen(backlog)
        self.collect()
        return sock

    def peer(self, offer: Offer = PLAIN, **where: Any) -> Peer:
        """A scripted peer for one connection."""
        from tcp_peer import Peer

        return Peer(self, offer, **where)

    def _arp(self) -> list[bytes]:
        self.collect()
        return [frame for _, frame in self.frames if frame[12:14] == b"\x08\x06"]

    def arp_requests(self) -> int:
        """How many ARP frames wait."""
        return len(self._arp())

    def answer_arp(self) -> None:
        """Answer the requests for the peer's address that wait."""
        requests = self._arp()
        assert requests
        self.frames = [(t, frame) for t, frame in self.frames if frame[12:14] != b"\x08\x06"]
        for frame in requests:
            sender, target = frame[22:32], frame[38:42]
            head = bytes.fromhex("0001080006040002")
            self.inject(frame[6:12] + PEER_MAC + b"\x08\x06" + head + PEER_MAC + target + sender)

    def tcp_frames(self) -> list[Segment]:
        """All TCP segments sent and not yet looked at; they stay."""
        self.collect()
        return [parse(t, frame) for t, frame in self.frames if is_tcp(frame)]


class Counting:
    """See `Lab.counts`."""

    def __init__(self, lab: Lab, rises: dict[str, int]) -> None:
        self.lab, self.rises = lab, rises

    def __enter__(self) -> None:
        self.before = self.lab.stack.stats()

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            after = self.lab.stack.stats()
            risen = {name: after[name] - self.before[name] for name in self.rises}
            assert risen == self.rises, f"counters rose by {risen}, wanted {self.rises}"
