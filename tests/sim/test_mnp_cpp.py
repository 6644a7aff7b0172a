# SPDX-License-Identifier: MIT
"""A machnet host and the C++ Machnet in one network: neither crashes, stalls or garbles the other.

The C++ side is emulated (tests/support/cpp_peer.py), with all its defects: where the original would
die the test fails, and so does a test in which it is sent what it should not be.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import mnp_wire as w
import pytest
from cpp_host import CppHost
from cpp_peer import CppFlow

import machnet
from machnet.errors import FlowTimeoutError
from machnet.sim import DROP, Hop, Network
from machnet.testing import Packet

MS = 10**6
SECOND = 10**9
OURS, CPP = "10.0.0.1", "10.0.0.2"
SIZES = [1, 64, 1417, 1418, 1419, 2836, 10_000, 30_000, 60_000]


class Lab:
    """Ours -- a link with faults -- a switch -- the C++ host."""

    def __init__(
        self, seed: int, *, garbage: str = "random", csum: str = "valid", **link: Any
    ) -> None:
        self.net = Network(seed=seed)
        self.switch = self.net.switch()
        self.ours = self.net.host(OURS)
        # Duplicates of our packets would be duplicate ACKs that are none of our making, and the C++
        # host looks at no checksum: only its packets are duplicated and corrupted.
        back = {name: link.pop(name, 0.0) for name in ("duplicate", "corrupt")}
        self.link = self.net.link(self.ours, self.switch, **{"latency": "50us", **link}, back=back)
        self.cpp = CppHost(
            self.net, self.switch, CPP, garbage=garbage, csum=csum, phase=seed * 37 % 1000 * MS
        )
        self.ch = self.ours.attach()
        self.cpp_flow: CppFlow | None = None

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self.cpp.stop()
        self.net.close()

    def ours_connects(self) -> machnet.Flow:
        """Ours is the client."""
        self.cpp.on_flow = lambda flow: setattr(self, "cpp_flow", flow)
        self.cpp.listen(888)
        flow = self.ch.connect(OURS, CPP, 888, timeout=20)
        assert self.cpp_flow is not None
        return flow

    def cpp_connects(self) -> machnet.Flow:
        """The C++ host is the client; the flow comes with its first message."""
        self.ch.listen(OURS, 888)
        box = self.cpp.connect(OURS, 888)
        self.run(lambda: bool(box) and box[0].state == "ESTABLISHED")
        self.cpp_flow = box[0]
        box[0].send(b"hello")
        self.cpp.flush()
        message = self.ch.recv(timeout=60)
        assert message.data == b"hello"
        return message.flow

    def run(self, until: Callable[[], object], seconds: float = 60) -> None:
        """Let time pass until something holds."""
        self.net.eventually(until, within=int(seconds * SECOND))

    def check(self) -> None:
        """Nothing was sent to the C++ host that should not be, and its flow lives."""
        assert self.cpp.violations == []
        assert self.cpp_flow is not None
        assert self.cpp_flow.state == "ESTABLISHED", self.cpp_flow.gone


def messages(seed: int, count: int) -> list[bytes]:
    draw = random.Random(seed)
    return [draw.randbytes(draw.choice(SIZES)) for _ in range(count)]


FAULTS: dict[str, dict[str, Any]] = {
    "clean": {},
    "loss 1%": {"loss": 0.01},
    "loss 5%": {"loss": 0.05},
    "reorder": {"reorder": 0.1, "reorder_delay": "300us"},
    "duplicate": {"duplicate": 0.2},
    "corrupt": {"corrupt": 0.02},
    "jitter": {"jitter": "40us", "keep_order": False},
    "all": {
        "loss": 0.02,
        "reorder": 0.05,
        "reorder_delay": "1ms",
        "duplicate": 0.05,
        "corrupt": 0.01,
    },
}


@pytest.mark.parametrize("client", ["ours", "cpp"])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_both_send_and_all_arrives(fault: str, seed: int, client: str) -> None:
    with Lab(seed, **FAULTS[fault]) as lab:
        flow = lab.ours_connects() if client == "ours" else lab.cpp_connects()
        assert lab.cpp_flow is not None
        to_cpp, to_us = messages(seed, 25), messages(seed + 100, 25)
        for message in to_us:
            lab.cpp_flow.send(message)
        lab.cpp.flush()
        for message in to_cpp:
            lab.ch.send(flow, message, timeout=60)
        got: list[bytes] = []

        def all_there() -> bool:
            while (message := lab.ch.try_recv()) is not None:
                got.append(message.data)
            assert lab.cpp_flow is not None
            return len(got) == len(to_us) and len(lab.cpp_flow.messages) == len(to_cpp)

        lab.run(all_there, seconds=300)
        assert got == to_us
        assert lab.cpp_flow.messages == to_cpp
        lab.net.advance("12s")
        lab.check()
        assert lab.cpp_flow.idle


@pytest.mark.parametrize("client", ["ours", "cpp"])
@pytest.mark.parametrize("fault", ["clean", "loss 5%", "reorder", "duplicate"])
def test_requests_and_answers(fault: str, client: str) -> None:
    """One at a time: each packet is the last one for a while, and idle hosts meet late ACKs."""
    with Lab(11, csum="zero", **FAULTS[fault]) as lab:
        flow = lab.ours_connects() if client == "ours" else lab.cpp_connects()
        there = lab.cpp_flow
        assert there is not None

        def echo() -> None:
            for message in there.messages:
                there.send(message[::-1])
            there.messages.clear()

        lab.cpp.app = echo
        for i, message in enumerate(messages(5, 30)):
            lab.ch.send(flow, message)
            assert lab.ch.recv(timeout=60).data == message[::-1], i
        lab.net.advance("12s")
        lab.check()


@pytest.mark.parametrize("loss", [0.001, 0.01, 0.05])
def test_what_we_send_does_not_stall(loss: float) -> None:
    """The original stalls for 2 to 3 s at a lost tail packet, and dies of others; we recover in RTTs."""
    with Lab(3, loss=loss) as lab:
        flow = lab.ours_connects()
        there = lab.cpp_flow
        assert there is not None
        lab.cpp.log.clear()
        payload = bytes(10_000)
        for _ in range(300):
            lab.ch.send(flow, payload, timeout=60)
        lab.run(lambda: len(there.messages) == 300)
        # Between any two signs of progress: 5 RTT of 100 us and a timeout (1 ms, doubled at
        # times, as a repeated packet may be lost as well).
        heard = [t_ns for t_ns, way, _ in lab.cpp.log if way == "<"]
        gaps = [b - a for a, b in itertools.pairwise(heard)]
        assert max(gaps) <= 20 * MS
        lab.check()


def drop_nth(kind: int, numbers: set[int], sender: str) -> Callable[[Packet, Hop], Any]:
    """A rule that drops some of the packets of a kind that one host sends."""
    seen = [0]

    def rule(packet: Packet, hop: Hop) -> Any:
        if packet.udp is None or packet.ip is None or packet.ip.src != sender:
            return None
        found = w.Mnp.parse(packet.udp.payload)
        if found is None or found.net_flags != kind:
            return None
        seen[0] += 1
        return DROP if seen[0] in numbers else None

    return rule


@pytest.mark.parametrize("kind", [w.SYN, w.ACK])
@pytest.mark.parametrize("lost", [{1}, {1, 2}])
def test_handshake_of_ours_that_loses_packets(kind: int, lost: set[int]) -> None:
    # With the last ACK lost, the C++ side drops DATA until one comes.
    with Lab(1) as lab:
        lab.net.rule(drop_nth(kind, lost, OURS), lab.link)
        flow = lab.ours_connects()
        there = lab.cpp_flow
        assert there is not None
        before = lab.net.now_ns
        lab.ch.send(flow, b"first")
        lab.run(lambda: there.messages == [b"first"], seconds=2)
        assert lab.net.now_ns - before < 500 * MS
        lab.check()


def test_handshake_of_ours_that_loses_the_answer() -> None:
    with Lab(1) as lab:
        lab.net.rule(drop_nth(w.SYN_ACK, {1, 2, 3}, CPP), lab.link)
        flow = lab.ours_connects()
        lab.ch.send(flow, b"first")
        there = lab.cpp_flow
        assert there is not None
        lab.run(lambda: there.messages == [b"first"], seconds=2)
        lab.check()


@pytest.mark.parametrize("kind", [w.SYN_ACK, w.DATA])
@pytest.mark.parametrize("lost", [{1}, {1, 2}])
def test_handshake_of_the_original_that_loses_packets(kind: int, lost: set[int]) -> None:
    with Lab(1) as lab:
        lab.net.rule(drop_nth(kind, lost, CPP if kind == w.DATA else OURS), lab.link)
        lab.cpp_connects()
        lab.check()


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_lost_acknowledgements_of_a_last_packet(lost: int) -> None:
    # It repeats the packet thrice, 2 to 3 s apart, and gives the flow up when no answer comes.
    with Lab(1) as lab:
        lab.cpp_connects()
        there = lab.cpp_flow
        assert there is not None
        lab.net.advance("1s")
        there.send(b"x")
        lab.net.rule(drop_nth(w.ACK, set(range(1, lost + 1)), OURS), lab.link)
        lab.cpp.flush()
        lab.run(lambda: there.idle, seconds=15)
        lab.check()
        assert lab.ch.recv(timeout=1).data == b"x"


def test_application_of_the_original_goes_away() -> None:
    with Lab(1) as lab:
        lab.ours_connects()
        lab.cpp.close()
        lab.cpp.flush()
        with pytest.raises(ConnectionResetError):
            lab.ch.recv(timeout=1)


def test_ours_closes_and_the_original_knows() -> None:
    with Lab(1) as lab:
        flow = lab.ours_connects()
        lab.ch.send(flow, bytes(5000))
        flow.close()
        there = lab.cpp_flow
        assert there is not None
        lab.run(lambda: there.gone == "reset", seconds=5)
        assert there.messages == [bytes(5000)]
        assert lab.cpp.violations == []


def test_original_without_buffers_loses_nothing_in_the_end() -> None:
    # It drops DATA without a word; we go on as long as the user timeout allows.
    with Lab(1) as lab:
        flow = lab.ours_connects()
        there = lab.cpp_flow
        assert there is not None
        lab.cpp.starved = True
        for i in range(50):
            lab.ch.send(flow, bytes([i]) * 3000, timeout=60)
        lab.net.advance("8s")
        lab.cpp.starved = False
        lab.run(lambda: len(there.messages) == 50, seconds=10)
        lab.check()


def test_original_that_restarts_is_noticed() -> None:
    """Its new process knows nothing and answers nothing: the user timeout ends the flow."""
    with Lab(1) as lab:
        flow = lab.ours_connects()
        lab.cpp.flows.clear()
        lab.ch.send(flow, b"x")
        with pytest.raises(FlowTimeoutError):
            lab.ch.recv(timeout=None)


@pytest.mark.parametrize("garbage", ["ones", "random", "marker"])
def test_garbage_in_its_packets_is_never_a_mode(garbage: str) -> None:
    with Lab(1, garbage=garbage) as lab:
        flow = lab.cpp_connects()
        there = lab.cpp_flow
        assert there is not None
        for i in range(40):
            there.send(bytes([i]) * (i * 100 + 1))
        lab.cpp.flush()
        assert [lab.ch.recv(timeout=5).data for _ in range(40)] == [
            bytes([i]) * (i * 100 + 1) for i in range(40)
        ]
        lab.ch.send(flow, b"back")
        lab.run(lambda: there.messages == [b"back"])
        lab.check()


def test_our_messages_of_8_mib_in_both_directions() -> None:
    with Lab(1) as lab:
        flow = lab.ours_connects()
        there = lab.cpp_flow
        assert there is not None
        big = random.Random(1).randbytes(8 << 20)
        lab.ch.send(flow, big)
        lab.run(lambda: there.messages == [big])
        small = big[: 4 << 20]
        there.send(small)
        lab.cpp.flush()
        assert lab.ch.recv(timeout=60).data == small
        lab.check()


@pytest.mark.parametrize("latency", ["20ms", "250ms", "900ms"])
def test_long_way_to_the_original(latency: str) -> None:
    """Our SYN goes out many times before the first answer; each answer is one more SYN-ACK to us."""
    with Lab(1, latency=latency) as lab:
        flow = lab.ours_connects()
        lab.net.advance("10s")
        there = lab.cpp_flow
        assert there is not None
        assert there.dup_acks <= 2
        lab.ch.send(flow, bytes(30_000))
        there.send(bytes(30_000))
        lab.cpp.flush()
        assert lab.ch.recv(timeout=60).data == bytes(30_000)
        lab.run(lambda: there.messages == [bytes(30_000)])
        lab.net.advance("15s")
        lab.check()
