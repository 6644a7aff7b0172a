# SPDX-License-Identifier: MIT
"""Any packets of the message protocol, in any order: the engine keeps its invariants, and nothing is
left of a flow that has ended."""

from __future__ import annotations

import random

import mnp_peer
import pytest
from mnp_peer import ACK, DATA, FIN, MAC, NO_ACK, RST, SYN, SYNACK, Packet, parse, udp_frame

from machnet.errors import FlowError
from machnet.sim import Network

KINDS = [DATA] * 8 + [ACK] * 5 + [SYN, SYNACK, FIN, RST, RST]
M32 = 0xFFFFFFFF


class Stranger:
    """Knows the flow's numbers, more or less, and keeps to no rule."""

    def __init__(self, seed: int, extended: bool) -> None:
        self.rng = random.Random(seed)
        self.extended = extended
        self.net = Network(seed=seed)
        # Every other one has packets of several blocks, and next to no blocks.
        self.mtu = 9000 if seed % 2 else 1500
        blocks = 12 if seed % 2 else 8192
        self.host = self.net.host(
            "10.0.0.2", mtu=self.mtu, mnp_user_timeout_ms=500, ooo_blocks_max=blocks
        )
        self.raw = self.net.raw_host("10.0.0.1", mac=MAC.hex(":"), mtu=self.mtu)
        self.net.link(self.host, self.raw, latency="1us")
        self.host.stack.neighbor("10.0.0.1", MAC.hex(":"))
        self.mac = bytes.fromhex(self.host.stack.mac.replace(":", ""))
        self.channel = self.host.attach(rx_bufs=64)
        self.channel.listen("10.0.0.2", 888, backlog=4)
        self.their_seq = 0  # what the engine will use next
        self.my_seq = 1  # what it expects
        self.ts = 0

    def frame(self, kind: int, seq: int, ack: int, flags: int, rest: bytes, payload: bytes) -> None:
        packet = Packet(kind, seq & M32, ack & M32, flags, rest, payload)
        self.raw.send(
            udp_frame(
                MAC, self.mac, 1024, 888, mnp_peer.header(packet) + packet.rest + packet.payload
            )
        )
        self.net.advance("5us")
        for t, frame in self.raw.take():
            got = parse(frame, t)
            if got is None:
                continue
            self.ts = got.ts[0]
            if got.kind in (DATA, FIN, SYNACK):
                self.their_seq = (got.seq + 1) & M32
            if got.ack != NO_ACK and got.kind != RST:
                self.my_seq = got.ack

    def near(self, number: int) -> int:
        pick = self.rng.random()
        if pick < 0.7:
            return number
        if pick < 0.95:
            return number + self.rng.randint(-3, 300)
        return self.rng.getrandbits(32)

    def rest(self, kind: int, length: int) -> bytes:
        rng = self.rng
        if rng.random() < 0.1:
            return rng.randbytes(42)
        if kind in (SYN, SYNACK):
            if not self.extended:
                return bytes(42)
            return mnp_peer.syn_rest(
                mss=rng.choice([512, 1418, 8900]), feats=rng.choice([0x7F, 0, 0x15])
            )
        if not self.extended:
            return bytes(42)
        word = (
            length
            if kind == DATA and rng.random() < 0.8
            else rng.choice([0, 3, 5000, 1 << 23, M32])
        )
        return mnp_peer.rest(
            word12=word,
            wnd=rng.choice([0, 1, 2, 256, 65535]),
            held=rng.getrandbits(256) if kind == ACK and rng.random() < 0.3 else 0,
            ts=rng.choice([0, 1, rng.getrandbits(32)]),
            echo=(self.ts - rng.choice([0, 0, 1, 100, -50])) & M32,
        )

    def one(self) -> None:
        rng = self.rng
        kind = rng.choice(KINDS)
        payload = b""
        if kind == DATA:
            payload = rng.randbytes(rng.choice([0, 1, 1, 50, 1418, self.mtu - 82]))
        flags = rng.choice([5, 5, 5, 3, 2, 4, 0x0D, rng.getrandbits(8)])
        total = rng.choice([len(payload), 3000])
        self.frame(
            kind,
            self.near(self.my_seq),
            NO_ACK if kind == DATA and rng.random() < 0.3 else self.near(self.their_seq),
            flags,
            self.rest(kind, total),
            payload,
        )

    def application(self) -> None:
        try:
            message = self.channel.try_recv()
            if message is not None and self.rng.random() < 0.7:
                self.channel.send(message.flow, self.rng.randbytes(self.rng.choice([1, 3000])))
            if message is not None and self.rng.random() < 0.05:
                message.flow.close(linger=self.rng.choice([None, 0, 1.0]))
        except (FlowError, BlockingIOError):
            pass

    def open(self) -> None:
        self.my_seq = self.rng.getrandbits(32)
        self.frame(SYN, self.my_seq, 0, 0, self.rest(SYN, 0), b"")
        self.frame(ACK, self.my_seq, self.their_seq, 0, self.rest(ACK, 0), b"")


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "plain"])
@pytest.mark.parametrize("seed", range(6))
def test_any_packets(seed: int, extended: bool) -> None:
    stranger = Stranger(seed, extended)
    with stranger.net:
        for _ in range(12):
            stranger.open()
            for _ in range(stranger.rng.choice([5, 30, 60])):
                stranger.one()
                if stranger.rng.random() < 0.3:
                    stranger.application()
                if stranger.rng.random() < 0.02:
                    stranger.net.advance(stranger.rng.choice([1_000_000, 300_000_000]))
        stats = stranger.host.stack.stats()
        assert stats["mnp_established"] > 0
        stranger.channel.close()
        stranger.net.advance("60s")
        usage = stranger.host.stack.usage()
        left = {k: v for k, v in usage.items() if v and k not in ("neighbors", "lanes", "timers")}
        assert left == {}, left
