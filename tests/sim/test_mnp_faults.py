# SPDX-License-Identifier: MIT
"""Messages over UDP through links that lose, reorder, repeat and garble: all arrive, once, in order.

The networks check their invariants while they run.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from machnet.errors import FlowError
from machnet.sim import Network

FAULTS = {
    "loss": {"loss": 0.05},
    "heavy loss": {"loss": 0.3},
    "reordering": {"reorder": 0.2},
    "duplicates": {"duplicate": 0.2},
    "garbled": {"corrupt": 0.02},
    "jitter": {"jitter": "200us"},
    "everything": {"loss": 0.05, "reorder": 0.1, "duplicate": 0.1, "corrupt": 0.01},
    "short queue": {"queue": "8p", "bandwidth": "100Mbps"},
}


def talk(net: Network, host: Any, other: Any, *, seed: int, n: int, large: int) -> None:
    """Messages of many sizes both ways, some at once; each arrives whole, once, in order."""
    rng = random.Random(seed)
    client, server = host.attach(), other.attach()
    server.listen("10.0.0.2", 888)
    flow = client.connect("10.0.0.1", "10.0.0.2", 888, timeout=60.0)
    sent = [rng.randbytes(rng.choice([1, 64, 1418, 1419, 5000, large])) for _ in range(n)]
    back = [rng.randbytes(rng.choice([1, 3000])) for _ in range(n)]
    for data in sent:
        client.send(flow, data, timeout=60.0)
    for i, data in enumerate(sent):
        message = server.recv(timeout=60.0)
        assert message.data == data, i
        server.send(message.flow, back[i], timeout=60.0)
    for i, data in enumerate(back):
        assert client.recv(timeout=60.0).data == data, i
    flow.close()
    net.advance("20s")
    for node in (host, other):
        usage = node.stack.usage()
        assert usage["mnp_flows"] == 0 or node is other, usage
        assert usage["ooo_blocks"] == 0, usage


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "plain"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", [1, 2])
def test_everything_arrives(fault: str, extended: bool, seed: int) -> None:
    settings: dict[str, Any] = {"latency": "50us", "bandwidth": "10Gbps", **FAULTS[fault]}
    with Network(seed=seed) as net:
        patient = {"mnp_user_timeout_ms": 60_000, "arp_retries": 30}
        host = net.host("10.0.0.1", mnp_extended=extended, **patient)
        other = net.host("10.0.0.2", **patient)
        net.link(host, other, **settings)
        talk(net, host, other, seed=seed, n=40, large=100_000)


@pytest.mark.parametrize("seed", range(4))
def test_a_partition_ends_in_delivery_or_in_an_error_on_both_sides(seed: int) -> None:
    rng = random.Random(seed)
    with Network(seed=seed) as net:
        a = net.host("10.0.0.1", mnp_user_timeout_ms=2000)
        b = net.host("10.0.0.2", mnp_user_timeout_ms=2000)
        net.link(a, b, latency="50us", bandwidth="1Gbps", loss=0.02)
        client, server = a.attach(), b.attach()
        server.listen("10.0.0.2", 888)
        flow = client.connect("10.0.0.1", "10.0.0.2", 888, timeout=10.0)
        sent = got = 0
        failed = False

        def take(timeout: float) -> None:
            nonlocal got, failed
            try:
                while True:
                    server.recv(timeout=timeout)
                    got += 1
            except TimeoutError:
                pass
            except FlowError:
                failed = True

        for _ in range(6):
            for _ in range(20):
                try:
                    client.send(flow, rng.randbytes(rng.choice([10, 4000])), timeout=1.0)
                    sent += 1
                except (BlockingIOError, FlowError):  # noqa: PERF203
                    break
            with net.partition([a], [b]):
                net.advance(rng.choice([1_000_000, 200_000_000, 5_000_000_000]))
            take(0.2)
        take(10.0)
        if flow.live and not failed:
            assert got == sent
        else:  # the other side finds out by asking, or is told
            with pytest.raises((FlowError, TimeoutError)):
                client.recv(timeout=10.0)
        assert got <= sent


@pytest.mark.parametrize("window", [1, 32])
def test_goodput_under_loss(window: int) -> None:
    """10 kB messages, RTT 100 us: at 1 % loss four fifths of what goes without."""
    rates = {}
    for loss in (0.0, 0.01):
        with Network(seed=7) as net:
            a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
            net.link(a, b, latency="50us", bandwidth="10Gbps", loss=loss)
            client, server = a.attach(), b.attach()
            server.listen("10.0.0.2", 888)
            flow = client.connect("10.0.0.1", "10.0.0.2", 888)
            start, sent = net.now_ns, 0
            worst, last = 0, start
            for got in range(400):
                while sent < 400 and sent - got < window:
                    client.send(flow, bytes(10_000), timeout=1.0)
                    sent += 1
                server.recv(timeout=1.0)
                worst, last = max(worst, net.now_ns - last), net.now_ns
            rates[loss] = 400 / (net.now_ns - start)
            assert worst < 1_500_000 + 200_000, "5 RTT + RTO, and the time of a message"
    assert rates[0.01] >= 0.8 * rates[0.0]
