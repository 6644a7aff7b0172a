# SPDX-License-Identifier: MIT
"""Messages over UDP in the simulated network: what a bad network does, none of it is noticed."""

from __future__ import annotations

import contextlib
import itertools
import random
from typing import Any

import pytest
from check_kit import stats_of

import machnet
from machnet._native import ffi, lib
from machnet.sim import Network
from machnet.sim.nodes import Host

A, B = "10.0.0.1", "10.0.0.2"
MS, SECOND = 10**6, 10**9
SIZES = [1, 2, 100, 1417, 1418, 1419, 2048, 5000, 20_000, 65_536, 100_000, 300_000]


class Talk:
    """One flow between two hosts, messages in both directions at once."""

    def __init__(self, net: Network, a: Host, b: Host, protocol: str = "udp") -> None:
        self.net = net
        self.left, self.right = a.attach(), b.attach()
        self.right.listen(b.ip, 7, protocol=protocol)
        self.flow = self.left.connect(a.ip, b.ip, 7, protocol=protocol, timeout=30)
        self.left.send(self.flow, b"hello")
        message = self.right.recv(timeout=30)
        assert message.data == b"hello"
        self.back = message.flow

    def run(self, there: list[bytes], back: list[bytes], seconds: int = 120) -> int:
        """Send all, until all has arrived as it was sent; the time it took, ns."""
        got_there: list[bytes] = []
        got_back: list[bytes] = []
        ways = [
            (self.left, self.flow, list(there), self.right, got_there),
            (self.right, self.back, list(back), self.left, got_back),
        ]
        start = self.net.now_ns

        def step() -> bool:
            for sender, flow, waiting, receiver, got in ways:
                while (message := receiver.try_recv()) is not None:
                    got.append(message.data)
                while waiting:
                    try:
                        sender.send(flow, waiting[0])
                    except BlockingIOError:
                        break
                    del waiting[0]
            return len(got_there) == len(there) and len(got_back) == len(back)

        self.net.eventually(step, within=seconds * SECOND)
        assert got_there == there
        assert got_back == back
        return self.net.now_ns - start


def messages(seed: str, count: int) -> list[bytes]:
    draw = random.Random(seed)
    return [draw.randbytes(draw.choice(SIZES)) for _ in range(count)]


def network(seed: int, a: dict[str, Any] | None = None, **link: Any) -> tuple[Network, Host, Host]:
    net = Network(seed=seed)
    left, right = net.host(A, **(a or {})), net.host(B)
    net.link(left, right, **{"latency": "50us", "bandwidth": "1Gbps", "queue": "300p", **link})
    return net, left, right


LOSS, REORDER, DUPLICATE, CORRUPT = (0.0, 0.02, 0.1), (0.0, 0.1), (0.0, 0.1), (0.0, 0.02)
GRID = [
    (loss, reorder, duplicate, corrupt)
    for loss in LOSS
    for reorder in REORDER
    for duplicate in DUPLICATE
    for corrupt in CORRUPT
]


@pytest.mark.parametrize("mode", ["extended", "plain"])
@pytest.mark.parametrize(("loss", "reorder", "duplicate", "corrupt"), GRID)
def test_everything_arrives_once_and_in_order(
    mode: str, loss: float, reorder: float, duplicate: float, corrupt: float
) -> None:
    net, a, b = network(
        5, {"mnp_extended": mode == "extended"}, loss=loss, reorder=reorder,
        reorder_delay="200us", duplicate=duplicate, duplicate_delay="30us", corrupt=corrupt,
    )  # fmt: skip
    with net:
        talk = Talk(net, a, b)
        talk.run(messages("there", 15), messages("back", 15))


@pytest.mark.parametrize("seed", range(6))
def test_jitter_bursts_and_short_queues(seed: int) -> None:
    from machnet.sim import GilbertElliott

    links: list[dict[str, Any]] = [
        {"jitter": "40us", "keep_order": False},
        {"burst_loss": GilbertElliott(bad=0.01, good=0.3)},
        {"queue": "10p", "bandwidth": "50Mbps"},
        {"latency": "20ms", "loss": 0.01},
        {"mtu": 1500, "loss": 0.3},
        {"jitter": "1ms", "distribution": "exponential", "keep_order": False, "loss": 0.01},
    ]
    net, a, b = network(seed, **links[seed])
    with net:
        Talk(net, a, b).run(messages("there", 12), messages("back", 12))


@pytest.mark.parametrize("mtu", [600, 1280, 1500, 4000, 9000])
def test_mtu(mtu: int) -> None:
    with Network(seed=1) as net:
        a, b = net.host(A, mtu=mtu), net.host(B, mtu=9000)
        net.link(a, b, mtu=mtu, loss=0.02)
        Talk(net, a, b).run(messages("there", 10), messages("back", 10))


def test_8_mib_both_ways_with_loss() -> None:
    net, a, b = network(2, loss=0.01, bandwidth="10Gbps")
    with net:
        big = random.Random(1).randbytes(8 << 20)
        Talk(net, a, b).run([big, b"x", big], [big, b"y"])


def test_partition_is_survived_and_a_dead_peer_is_told() -> None:
    net, a, b = network(3, {"mnp_user_timeout_ms": 4000})
    with net:
        talk = Talk(net, a, b)
        with net.partition([a], [b]):
            talk.left.send(talk.flow, b"waits")
            net.advance("2s")
        assert talk.right.recv(timeout=2).data == b"waits"
        b.crash()
        talk.left.send(talk.flow, b"to nobody")
        with pytest.raises(machnet.errors.FlowTimeoutError):
            talk.left.recv(timeout=10)


def test_a_peer_that_restarts_says_so() -> None:
    net, a, b = network(3)
    with net:
        talk = Talk(net, a, b)
        b.crash()
        b.restart()
        net.advance("10ms")
        before = net.now_ns
        talk.left.send(talk.flow, b"who?")
        with pytest.raises(ConnectionResetError):
            talk.left.recv(timeout=1)
        assert net.now_ns - before < 100 * MS


def test_paused_peer_is_waited_for() -> None:
    net, a, b = network(3)
    with net:
        talk = Talk(net, a, b)
        with b.paused():
            talk.left.send(talk.flow, bytes(100_000))
            net.advance("3s")
        assert talk.right.recv(timeout=3).data == bytes(100_000)


def test_an_application_that_does_not_read_holds_the_sender() -> None:
    net, a, b = network(4, loss=0.01)
    with net:
        talk = Talk(net, a, b)
        sent, quiet = 0, 0
        while quiet < 20:
            before = sent
            with contextlib.suppress(BlockingIOError):
                while True:
                    talk.left.send(talk.flow, sent.to_bytes(4, "big") * 2500)
                    sent += 1
            net.advance("20ms")
            quiet = quiet + 1 if sent == before else 0
            assert sent < 10_000, "nothing holds it back"
        net.advance("20s")  # longer than a silent peer is waited for: it is not silent
        with pytest.raises(BlockingIOError):
            talk.left.send(talk.flow, bytes(10_000))
        for i in range(sent):
            assert talk.right.recv(timeout=5).data == i.to_bytes(4, "big") * 2500


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("first", ["left", "right", "both"])
def test_close_sends_what_is_queued_and_leaves_nothing(first: str, loss: float) -> None:
    net, a, b = network(4)
    with net:
        talk = Talk(net, a, b)
        for link in net.links:
            link.set(loss=loss)
        if first in {"left", "both"}:
            talk.left.send(talk.flow, bytes(50_000))
            talk.flow.close()
            assert talk.right.recv(timeout=5).data == bytes(50_000)
        if first in {"right", "both"}:
            if first == "right":
                talk.right.send(talk.back, bytes(60_000))
            talk.back.close()
            if first == "right":
                assert talk.left.recv(timeout=5).data == bytes(60_000)
        net.advance("12s")
        talk.left.close()
        talk.right.close()
        net.advance("15s")
        assert (a.stack.usage()["tcbs"], b.stack.usage()["tcbs"]) == (0, 0)
        assert net.leaks() == []


def test_refused_connect_is_told_at_once() -> None:
    net, a, b = network(4)
    with net:
        before = net.now_ns
        assert b.up
        with pytest.raises(ConnectionRefusedError):
            a.attach().connect(A, B, 9, timeout=5)
        assert net.now_ns - before < 50 * MS


def test_many_flows_and_both_transports_at_once() -> None:
    net, a, b = network(9, loss=0.01, reorder=0.02, reorder_delay="200us")
    with net:
        left, right = a.attach(), b.attach()
        right.listen(B, 7, protocol="udp")
        right.listen(B, 7, protocol="tcp")
        flows = [
            left.connect(A, B, 7, protocol="udp" if i % 2 else "tcp", timeout=30) for i in range(30)
        ]
        expected: list[tuple[int, bytes]] = []
        for turn in range(5):
            for i, flow in enumerate(flows):
                data = bytes([i, turn]) * (1 + i * 100)
                left.send(flow, data, timeout=10)
                expected.append((i, data))
        got: list[tuple[int, bytes]] = []
        for _ in expected:
            data = right.recv(timeout=30).data
            got.append((data[0], data))
        assert sorted(got) == sorted(expected)
        for i in range(30):
            assert [d for j, d in got if j == i] == [d for j, d in expected if j == i]


@pytest.mark.parametrize(("loss", "limit_ms"), [(0.001, 5), (0.01, 5), (0.05, 10)])
def test_no_stall_at_any_loss(loss: float, limit_ms: int) -> None:
    """Between signs of progress: 5 round trips, and a timeout with its doublings where one repeats."""
    net, a, b = network(1, loss=loss, bandwidth="10Gbps")
    with net:
        talk = Talk(net, a, b)
        times: list[int] = []
        left = 400

        def step() -> bool:
            nonlocal left
            with contextlib.suppress(BlockingIOError):
                while left:
                    talk.left.send(talk.flow, bytes(10_000))
                    left -= 1
            while talk.right.try_recv() is not None:
                times.append(net.now_ns)
            return len(times) == 400

        net.eventually(step, within=60 * SECOND)
        assert max(b - a for a, b in itertools.pairwise(times)) <= limit_ms * MS


def test_invariants_follow_the_messages() -> None:
    net, a, b = network(6, loss=0.02, duplicate=0.05)
    with net:
        assert net.invariants
        talk = Talk(net, a, b)
        sent = messages("x", 20)
        talk.run(sent, sent)
        stats = stats_of(lib.mn_simnet_check(net._native))
        assert stats.delivered >= 2 * sum(map(len, sent))


def test_what_an_application_did_not_send_is_a_violation() -> None:
    net, a, b = network(6)
    with net:
        left, right = a.attach(), b.attach()
        right.listen(B, 7)
        flow = left.connect(A, B, 7)
        info = left._flow_info(flow.id)
        conn = ffi.new("struct mn_check_conn *")
        conn.laddr, conn.lport = info.remote_ip, info.remote_port
        conn.raddr, conn.rport = info.local_ip, info.local_port
        conn.udp = 1
        left.send(flow, b"good")
        check = lib.mn_simnet_check(net._native)
        assert lib.mn_check_taken(check, conn, 99, b"evil", 4, True, net.now_ns) == 0
        with pytest.raises(machnet.errors.InvariantError, match="other bytes"):
            net.advance("1ms")
