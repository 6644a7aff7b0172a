# SPDX-License-Identifier: MIT
"""One stack in virtual time and, at the other end of its wire, a test that speaks mnp by hand."""

from __future__ import annotations

from typing import Any

import mnp_wire as w
from mnp_wire import Addresses, Mnp

import machnet
from machnet._native import ffi
from machnet.sim import Wire
from machnet.testing import Packet

MS = 1_000_000
SECOND = 1_000_000_000
STACK_IP, PEER_IP = "10.0.0.1", "10.0.0.2"
PEER_MAC = "02:00:00:00:00:0b"
PORT, PEER_PORT = 888, 1024


class MnpLab:
    """A stack at 10.0.0.1 that listens on port 888, and packets from 10.0.0.2.

    Args:
        isn: Of the stack.
        peer_isn: Of the test's side.
        offer: The body of the peer's SYN or SYN-ACK: zeros are plain mode.
        mtu: Of the wire.
        settings: Of the stack.

    Attributes:
        path: From the peer to the stack.
        snd: The peer's next sequence number.
        rcv: What the peer expects next.
        log: All packets: time, ">" from the peer or "<" to it, packet.
        icmp: ICMP messages of the stack.
    """

    def __init__(
        self,
        isn: int | None = 5000,
        peer_isn: int = 0,
        *,
        offer: bytes = bytes(32),
        mtu: int = 1500,
        channel: dict[str, int] | None = None,
        **settings: Any,
    ) -> None:
        self.wire = Wire(mtu=mtu)
        self.stack = machnet.Stack(self.wire, ip=f"{STACK_IP}/24", seed=7, isn=isn, **settings)
        self.stack.neighbor(PEER_IP, PEER_MAC)
        self.ch = self.stack.attach(**(channel or {}))
        self.path = Addresses(PEER_MAC, self.stack.mac, PEER_IP, STACK_IP, PEER_PORT, PORT)
        self.isn = isn
        self.peer_isn = peer_isn
        self.offer = offer
        self.snd, self.rcv = w.add32(peer_isn, 1), w.add32(isn or 0, 1)
        self.log: list[tuple[int, str, Mnp]] = []
        self.icmp: list[Packet] = []
        self._token: int | None = None
        self._event = ffi.new("struct mn_ctl_evt *")

    def __enter__(self) -> MnpLab:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close(linger=0)

    # ---- packets ---------------------------------------------------------------------------------

    def inject(self, raw: bytes) -> list[Mnp]:
        """Answers to a frame."""
        self.stack.inject(raw)
        return self.out()

    def put(self, *packets: Mnp | bytes) -> list[Mnp]:
        """Answers to packets that arrive at one moment, one after the other."""
        answers = []
        for packet in packets:
            if isinstance(packet, Mnp):
                self.log.append((self.stack.now_ns, ">", packet))
            answers += self.inject(w.frame(self.path, packet))
        return answers

    def put_together(self, *packets: Mnp) -> list[Mnp]:
        """Answers to packets that one pass of the stack finds."""
        for packet in packets:
            self.log.append((self.stack.now_ns, ">", packet))
            self.wire.inject(w.frame(self.path, packet))
        self.stack.advance(0)
        return self.out()

    def out(self) -> list[Mnp]:
        """What the stack has sent, each packet checked for what all must have."""
        found = []
        for t_ns, raw in self.stack.drain():
            packet = Packet(raw)
            assert packet.error is None, packet.error
            assert packet.csum_ok, packet
            if packet.icmp is not None:
                self.icmp.append(packet)
                continue
            parsed = w.parse_frame(raw)
            assert parsed is not None, packet
            path, mnp = parsed
            assert path == self.path.turned(), path
            assert packet.ip is not None
            assert len(raw) == 14 + packet.ip.total_len
            assert (packet.ip.ihl, packet.ip.ttl, packet.ip.frag & 0x3FFF) == (5, 64, 0)
            assert mnp.net_flags in w.NAMES
            self.log.append((t_ns, "<", mnp))
            found.append(mnp)
        return found

    def wait(self, ns: int) -> list[tuple[int, Mnp]]:
        """What the stack sends within some time, with the time since now."""
        start, at = self.stack.now_ns, len(self.log)
        self.stack.advance(ns)
        self.out()
        return [(t_ns - start, packet) for t_ns, way, packet in self.log[at:] if way == "<"]

    def until_sent(self, limit_ns: int, step_ns: int = MS // 4) -> list[Mnp]:
        """The next that the stack sends, however long it takes, up to a limit."""
        end = self.stack.now_ns + limit_ns
        while self.stack.now_ns < end:
            self.stack.advance(min(step_ns, end - self.stack.now_ns))
            if found := self.out():
                return found
        return []

    def data(self, message: bytes, **fields: Any) -> list[Mnp]:
        """A message of the peer's as packets of the flow's mode; its next number moves on."""
        packets = w.cut(message, self.snd)
        if any(self.offer):
            packets = [packet.with_(ackno=self.rcv, count=64) for packet in packets]
            if int.from_bytes(self.offer[6:8], "big") & w.F_LENGTH:
                packets[0] = packets[0].with_(body=w.word_body(len(message)))
        packets = [packet.with_(**fields) for packet in packets]
        self.snd = w.add32(self.snd, len(packets))
        return packets

    def ack(self, up_to: int | None = None, **fields: Any) -> Mnp:
        """An ACK of the peer's; the window of extended mode is 64 unless it says otherwise."""
        made = Mnp(w.ACK, self.snd, self.rcv if up_to is None else up_to)
        return made.with_(**{"count": 64 if any(self.offer) else 0, **fields})

    # ---- handshakes ------------------------------------------------------------------------------

    def listen(self) -> None:
        """Have the stack listen."""
        self.ch.listen(STACK_IP, PORT)

    def syn(self) -> Mnp:
        """The peer's SYN."""
        return Mnp(w.SYN, self.peer_isn, 0, body=self.offer)

    def passive(self) -> None:
        """The peer connects; the flow appears at the application with its first message."""
        self.listen()
        (answer,) = self.put(self.syn())
        assert (answer.net_flags, answer.ackno) == (w.SYN_ACK, self.snd)
        self.rcv = w.add32(answer.seqno, 1)
        assert self.put(self.ack()) == []

    def start(self, timeout: float | None = 5.0) -> Mnp:
        """The stack begins to connect; its SYN."""
        self._token = self.ch._connect_start(STACK_IP, PEER_IP, PEER_PORT, "udp", timeout, PORT)
        (syn,) = self.out()
        self.rcv = w.add32(syn.seqno, 1)
        return syn

    def result(self) -> machnet.Flow | None:
        """The flow, or None: the stack has not decided. Raises what `connect` would."""
        assert self._token is not None
        if self.ch._result(self._token, self._event) is None:
            return None
        return self.ch._connect_finish(self._event, "connect")

    def syn_ack(self) -> Mnp:
        """The peer's SYN-ACK."""
        return Mnp(w.SYN_ACK, self.peer_isn, self.rcv, body=self.offer)

    def active(self) -> machnet.Flow:
        """The stack connects."""
        self.start()
        self.put(self.syn_ack())
        flow = self.result()
        assert flow is not None
        return flow

    def text(self) -> str:
        """What passed, for a message of a failed test."""
        return "\n".join(
            f"{t_ns / MS:10.3f} ms {way} {p.name} seq={p.seqno} ack={p.ackno} "
            f"flags={p.msg_flags} len={len(p.payload)}"
            for t_ns, way, p in self.log
        )
