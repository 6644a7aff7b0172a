# SPDX-License-Identifier: MIT
"""What holds whatever a peer sends: random exchanges, all of whose answers are checked."""

from __future__ import annotations

import random

import tcp_peer as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from tcp_peer import FULL, MS, ORDINARY, PLAIN, WRAP_31, WRAP_32, Lab, Peer, errno_of
from tcp_segment import flag_text

#: Distances of sequence and acknowledgement numbers from what would be right.
NEAR = st.sampled_from([0, 0, 0, 0, 1, -1, 10, -10, 1460, -1460, 70_000, 1 << 30, -(1 << 30)])

SEGMENT = st.tuples(
    st.just("segment"),
    st.integers(0, 63).map(flag_text),
    NEAR,
    NEAR,
    st.sampled_from([0, 0, 1, 10, 1400]),
    st.sampled_from([0, 1, 1000, 65535]),
)
STEP = st.one_of(
    SEGMENT,
    SEGMENT,
    st.tuples(st.just("honest"), st.sampled_from([0, 100, 1400])),
    st.tuples(st.just("honest"), st.sampled_from([0, 100, 1400])),
    st.tuples(st.just("write"), st.sampled_from([1, 500, 5000])),
    st.tuples(st.just("read"), st.sampled_from([1, 700, 1 << 20])),
    st.tuples(st.just("wait"), st.sampled_from([1, 45, 250, 1000, 70_000])),
    st.tuples(st.just("shutdown")),
)


class Watch:
    """The oracles: right edge, acknowledgements, content and bounds of what is sent."""

    def __init__(self, p: Peer) -> None:
        self.p = p
        self.edge = 1 + p.syn.wnd
        self.acked = 1
        self.heard = 1  # highest acknowledgement that we may have sent

    def check(self) -> None:
        for got in self.p.drain():
            if "R" in got.flags or "S" in got.flags:
                continue
            assert got.ack >= self.acked, "an acknowledgement went back"
            self.acked = got.ack
            unit = 1 << self.p.shift_in
            assert got.ack + got.wnd > self.edge - unit, "the right edge went left"
            self.edge = max(self.edge, got.ack + got.wnd)
            assert 0 <= got.seq <= 2 + self.p.written
            if got.data:
                assert got.data == tp.pattern(got.seq - 1, got.len), "wrong data"


def segment(p: Peer, flags: str, seq: int, ack: int, size: int, wnd: int) -> None:
    """Anything at all, with data that is right for its place, so that none may be delivered wrong."""
    at = p.snd_nxt + seq
    flags = flags.strip("-")
    before = p.lab.stat("tcp_resets_sent")
    p.send(flags, data=0 if at < 1 else size, seq=at, ack=p.rcv_nxt + ack, wnd=wnd)
    if "R" in flags:
        assert p.lab.stat("tcp_resets_sent") == before, "an RST was answered with an RST"


def step(p: Peer, kind: str, *args: object) -> None:
    if kind == "segment":
        segment(p, *args)
    elif kind == "honest":
        if p.state in ("ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2"):
            p.send("A", data=args[0], seq=p.info_rcv_nxt())
    elif kind == "write":
        errno_of(lambda: p.write(args[0]))
    elif kind == "read":
        errno_of(lambda: p.read(args[0]))
    elif kind == "wait":
        p.lab.advance(args[0] * MS)
        p.tsval += args[0]
    else:
        errno_of(p.shutdown)


@settings(max_examples=150)
@given(
    isns=st.sampled_from([ORDINARY, WRAP_32, WRAP_31]),
    offer=st.sampled_from([PLAIN, FULL]),
    steps=st.lists(STEP, min_size=1, max_size=30),
)
def test_any_exchange(isns, offer, steps):
    lab = Lab(isns, rcv_buf_bytes=16384, flows_max=64)
    try:
        p = tp.established(lab.peer(offer))
        p.nodelay()
        watch = Watch(p)
        for each in steps:
            if p.state == "CLOSED":
                break
            step(p, *each)
            watch.check()
        # Whatever it was, the listener serves the next one.
        other = lab.peer(port=p.port + 1)
        other.listener = p.listener
        tp.established(other)
        other.send("A", data=10)
        assert other.read() == 10
    finally:
        lab.close()


@settings(max_examples=100)
@given(
    seed=st.integers(0, 1 << 30),
    offer=st.sampled_from([PLAIN, FULL]),
    loss=st.sampled_from([0.05, 0.2, 0.4]),
)
def test_any_loss_of_ours(seed, offer, loss):
    """The peer's data gets through with loss, reordering and duplication: in order, once."""
    rng = random.Random(seed)
    lab = Lab(WRAP_32, rcv_buf_bytes=32768, flows_max=64)
    try:
        p = tp.established(lab.peer(offer))
        total, una = 40_000, 1
        for _ in range(3000):
            if una == total + 1:
                break
            starts = list(range(una, min(una + 12_000, total + 1), 1000))
            rng.shuffle(starts)
            for at in starts:
                if rng.random() >= loss:
                    size = min(rng.choice([1000, 1000, 1300, 500]), total + 1 - at)
                    p.send("A", data=size, seq=at)
            p.lab.advance(50 * MS)
            p.tsval += 50
            for got in p.drain():
                una = max(una, got.ack)
            p.read()
        assert una == total + 1
        p.read()
        assert p.read_so_far == total
        assert p.stack.usage()["ooo_blocks"] == 0
    finally:
        lab.close()
