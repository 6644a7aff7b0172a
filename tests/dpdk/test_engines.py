# SPDX-License-Identifier: MIT
"""Two engines on a port with two queues that does not say how it spreads flows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from machnet import dpdk
from machnet._native import lib
from machnet.stack.engines import Engines, open_engines

NEAR, FAR = "10.9.4.1", "10.9.4.2"
PATIENCE_S = 60.0 if lib.mn_build_sanitized() else 20.0


@pytest.fixture
def ports() -> Iterator[tuple[dpdk.Port, dpdk.Port]]:
    near, far = dpdk.ring_pair(queues=2)
    with contextlib.closing(near), contextlib.closing(far):
        yield near, far


@pytest.fixture
def engines(ports: tuple[dpdk.Port, dpdk.Port]) -> Iterator[tuple[Engines, Engines]]:
    near, far = ports
    assert near.queues == far.queues == 2
    with (
        open_engines(near, 2, f"{NEAR}/24", spin_us=0) as left,
        open_engines(far, 2, f"{FAR}/24", spin_us=0) as right,
    ):
        yield left, right


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_flows_stay_on_their_queue_and_listeners_work_on_both(
    engines: tuple[Engines, Engines], protocol: str
) -> None:
    left, right = engines
    servers = [stack.attach() for stack in right]
    for server in servers:
        server.listen(FAR, 888, protocol)
    for stack, server in zip(left, servers, strict=True):
        client = stack.attach()
        for size in (1, 100_000):
            flow = client.connect(NEAR, FAR, 888, protocol, timeout=PATIENCE_S)
            client.send(flow, bytes(size), timeout=PATIENCE_S)
            # What is sent in a queue arrives in that queue.
            message = server.recv(timeout=PATIENCE_S)
            assert message.data == bytes(size)
            server.send(message.flow, b"answer", timeout=PATIENCE_S)
            assert client.recv(timeout=PATIENCE_S).data == b"answer"
    opens = "tcp_passive_opens" if protocol == "tcp" else "mnp_passive_opens"
    assert [stack.stats()[opens] for stack in right] == [2, 2]
    for stack in (*left, *right):
        stats = stack.stats()
        assert stats["drop_handoff_full"] == stats["tcp_resets_sent"] == 0
        # An answer to ARP may be another engine's; nothing else was.
        assert stats["handoff_received"] <= stats["arp_requests"] + 2


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_applications_on_both_engines_reach_each_other(
    engines: tuple[Engines, Engines], protocol: str
) -> None:
    left, _ = engines
    first, second = (stack.attach() for stack in left)
    second.listen(NEAR, 777, protocol)
    flow = first.connect(NEAR, NEAR, 777, protocol, timeout=PATIENCE_S)
    first.send(flow, bytes(100_000), timeout=PATIENCE_S)
    message = second.recv(timeout=PATIENCE_S)
    assert message.data == bytes(100_000)
    second.send(message.flow, b"answer", timeout=PATIENCE_S)
    assert first.recv(timeout=PATIENCE_S).data == b"answer"
    assert all(stack.stats()["handoff_received"] > 0 for stack in left)


def test_a_port_with_fewer_queues_is_shared_all_the_same() -> None:
    with contextlib.closing(dpdk.open_port("net_ring7", queues=16)) as port:
        assert port.info()["queues_max"] == 16
    loop = dpdk.open_port("net_pcap0,rx_iface=lo,tx_iface=lo", queues=2)
    with contextlib.closing(loop) as port:
        assert port.queues == 1
        with open_engines(port, 2, f"{NEAR}/24") as engines:
            assert engines.shared is not None
            assert engines.shared.dispatched
